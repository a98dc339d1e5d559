// Asks the REST API every second and draws what it says. Values stay the exact strings they are;
// only the charts turn them into numbers.

const POLL_MS = 1000;
const SLOWEST_POLL_MS = 10_000;
const TIMEOUT_MS = 5000;
const OLD_SECONDS = 60; // or three times what usually lies between two quotes
const MOST_PAIRS = 200;
const MOST_AVERAGES = 2000;
const CHART_QUOTES = 120;
const SEEDS_AT_ONCE = 4;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const rows = new Map(); // "USDRUB demo" -> what is known of it, and its elements
let chosen = null;
let clockOffset = 0; // ms that the server's clock is ahead of this one

async function get(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  const answer = await fetch(`${path}?${query}`, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!answer.ok) throw new Error(answer.status === 503 ? "Database away" : `Error ${answer.status}`);
  const date = Date.parse(answer.headers.get("date") ?? "");
  if (date) clockOffset = date - Date.now();
  return answer.json();
}

async function poll() {
  const [pairs, averages] = await Promise.all([
    get("pairs", { limit: MOST_PAIRS }),
    everyAverage(),
  ]);
  for (const pair of pairs.items) for (const quote of pair.newest) receive(quote);
  for (const average of averages) {
    const row = rows.get(nameOf(average));
    if (row) row.average = average;
  }
  byId("more").hidden = !pairs.next;
  byId("more").textContent = `The first ${MOST_PAIRS} pairs are shown.`;
  chosen ??= rows.values().next().value ?? null;
  const unseeded = [...rows.values()].filter((row) => !row.seeded).slice(0, SEEDS_AT_ONCE);
  await Promise.all([...new Set([chosen, ...unseeded])].filter(Boolean).map(readHistory));
}

// One for each source of a pair, so there may be more of them than pairs.
async function everyAverage() {
  const averages = [];
  for (let cursor = ""; cursor !== null; ) {
    const page = await get("pairs/average", { limit: MOST_PAIRS, ...(cursor && { cursor }) });
    averages.push(...page.items);
    cursor = averages.length < MOST_AVERAGES ? page.next : null;
  }
  return averages;
}

const nameOf = (item) => `${item.pair_name} ${item.source}`;

function receive(quote) {
  const name = nameOf(quote);
  if (!rows.has(name)) rows.set(name, { quote, history: [], seeded: false, ...newRow(name) });
  const row = rows.get(name);
  if (row.quote.received_at !== quote.received_at) row.history.push(quote);
  row.history.splice(0, row.history.length - CHART_QUOTES);
  row.quote = quote;
}

async function readHistory(row) {
  const { pair_name, source } = row.quote;
  const newest = await get("pairs/currencies", { pair_name, source, limit: CHART_QUOTES });
  row.history = newest.items.reverse();
  row.seeded = true;
}

function newRow(name) {
  const element = document.createElement("tr");
  const cells = {};
  for (const { className } of byId("rates").tHead.rows[0].cells) {
    const kind = className.split(" ")[0];
    cells[kind] = element.appendChild(document.createElement(kind === "pair" ? "th" : "td"));
    cells[kind].className = className;
  }
  cells.pair.scope = "row";
  const button = cells.pair.appendChild(document.createElement("button"));
  button.type = "button";
  const choose = () => { chosen = rows.get(name); draw(); };
  element.addEventListener("click", choose);
  const spark = cells.trend.appendChild(document.createElementNS(SVG, "svg"));
  spark.setAttribute("viewBox", "0 0 100 24");
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("aria-hidden", "true");
  const [pair, source] = name.split(/ (.*)/);
  const after = [...rows.entries()].find(([other]) => other > name)?.[1].element ?? null;
  byId("rates").tBodies[0].insertBefore(element, after);
  button.textContent = slashed(pair);
  cells.source.textContent = source;
  return { element, cells, button, spark, pair, source };
}

const slashed = (pair) => `${pair.slice(0, 3)}/${pair.slice(3)}`;
const plain = (value) => (value.includes(".") ? value.replace(/\.?0+$/, "") : value);
const day = (time) => time.slice(0, 10);
const clock = (time) => new Date(time).toLocaleTimeString([], { hour12: false });
const ageOf = (item) => Math.max(0, (Date.now() + clockOffset - Date.parse(item.received_at)) / 1000);

function spoken(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

function draw() {
  byId("empty").hidden = rows.size > 0;
  byId("rates").hidden = rows.size === 0;
  for (const row of rows.values()) drawRow(row);
  byId("focus").hidden = !chosen;
  if (chosen) drawFocus(chosen);
}

function isOld({ quote, history }) {
  const span = history.length ? Date.parse(quote.received_at) - Date.parse(history[0].received_at) : 0;
  const usual = history.length > 1 ? span / 1000 / (history.length - 1) : 0;
  return ageOf(quote) > Math.max(OLD_SECONDS, 3 * usual);
}

function drawRow(row) {
  const { cells, element, quote, average } = row;
  const rate = plain(quote.value);
  const before = cells.rate.textContent;
  if (before && before !== rate) flash(cells.rate, Number(rate) > Number(before) ? "up" : "down");
  cells.rate.textContent = rate;
  cells.average.textContent = average ? plain(average.value) : "–";
  cells.observed.textContent = day(quote.observed_at);
  cells.age.textContent = spoken(ageOf(quote));
  element.toggleAttribute("data-old", isOld(row));
  element.toggleAttribute("data-chosen", row === chosen);
  row.button.setAttribute("aria-pressed", String(row === chosen));
  drawLine(row.spark, numbers(row), 100, 24);
}

function flash(cell, direction) {
  cell.classList.remove("up", "down");
  void cell.offsetWidth; // starts the animation again
  cell.classList.add(direction);
}

function drawFocus(row) {
  const { quote, average, history } = row;
  const values = numbers(row);
  byId("focus-name").textContent = slashed(quote.pair_name);
  byId("focus-about").textContent =
    `from ${quote.source} · rate of ${day(quote.observed_at)} · received ${clock(quote.received_at)}`;
  byId("focus-rate").textContent = plain(quote.value);
  byId("focus-average").textContent = average ? plain(average.value) : "–";
  byId("focus-window").textContent = average ? `Average of last ${average.count}` : "Average";
  const range = drawLine(byId("chart"), values, 800, 240, average && Number(average.value));
  byId("chart-high").textContent = values.length ? short(range.high) : "";
  byId("chart-low").textContent = values.length ? short(range.low) : "";
  byId("chart-from").textContent = history.length ? clock(history[0].received_at) : "";
  byId("chart-to").textContent = history.length ? clock(history.at(-1).received_at) : "";
  byId("chart").setAttribute(
    "aria-label",
    `The newest ${values.length} quotes of ${slashed(quote.pair_name)}: ` +
      `between ${range.low} and ${range.high}, now ${plain(quote.value)}`,
  );
}

const short = (number) => String(Number(number.toPrecision(7)));
const numbers = (row) => row.history.map((quote) => Number(quote.value));

function drawLine(svg, values, width, height, average) {
  const shown = average === undefined ? values : [...values, average];
  const low = Math.min(...shown);
  const high = Math.max(...shown);
  const x = (index) => (index / Math.max(1, values.length - 1)) * width;
  const pad = height / 20;
  const y = (value) =>
    high === low ? height / 2 : height - pad - ((value - low) / (high - low)) * (height - 2 * pad);
  const points = values.map((value, index) => `${x(index).toFixed(1)} ${y(value).toFixed(1)}`);
  const line = `M${points.join("L")}`;
  const paths = values.length > 1 ? { area: `${line}L${width} ${height}L0 ${height}Z`, line } : {};
  if (average !== undefined) paths.average = `M0 ${y(average).toFixed(1)}H${width}`;
  svg.replaceChildren(
    ...Object.entries(paths).map(([name, shape]) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      path.setAttribute("d", shape);
      return path;
    }),
  );
  return { low, high };
}

function say(state, text) {
  const element = byId("state");
  if (element.textContent !== text) element.textContent = text;
  element.dataset.state = state;
  document.body.toggleAttribute("data-away", state === "away");
}

function sayFreshness() {
  if (!rows.size) return say("waiting", "No quotes yet");
  const youngest = Math.min(...[...rows.values()].map((row) => ageOf(row.quote)));
  if ([...rows.values()].every(isOld)) return say("stale", `Nothing new for ${spoken(youngest)}`);
  return say("live", "Live");
}

async function run() {
  let wait = POLL_MS;
  for (;;) {
    if (!document.hidden) {
      try {
        await poll();
        wait = POLL_MS;
        sayFreshness();
      } catch (error) {
        wait = Math.min(2 * wait, SLOWEST_POLL_MS);
        const unanswered = error instanceof TypeError || error.name === "TimeoutError";
        say("away", unanswered ? "API unreachable" : error.message);
      }
      draw();
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

run();
