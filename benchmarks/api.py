"""api_gateway: requests a second and how long they take, beside the same questions answered the
plain way (`plain/api.py`), on the same rows. wrk asks, over 1, 16 and 128 connections.

Pairs are asked for in turn, so that no two requests in a row are the same.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure, ratio
from benchmarks.stage import is_ready, running, service, stage, wait_until
from ratestream.storage.database import upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from tests.support.kafka_servers import free_port

CONNECTIONS = (1, 16, 128)
GATEWAY, PLAIN = "api_gateway", "the plain way"
SERIES = 200

_NEEDED_BYTES_A_ROW = 400
_CHUNK_ROWS = 500_000
_ROWS_AN_AVERAGE = 10
_READY_SECONDS = 60.0
_WARM_UP_SECONDS = 1
_RATE = "requests_per_second"
_SCRIPT = """
local paths = {paths}
local asked = 0
request = function()
  asked = asked + 1
  return wrk.format("GET", paths[asked % #paths + 1])
end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "errors": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout
  ))
end
"""
_PAIR = "'EUR' || chr(65 + {n} / 20) || chr(65 + {n} % 20) || 'X'"
_INSERT = """
    INSERT INTO {table} (pair, source, value, observed_at, received_at, origin_topic,
                         origin_partition, origin_offset{more})
    SELECT {pair}, 'demo', 1 + n % 50000 / 10000.0, at, at, 'src-data', snapshot % 8, snapshot / 8
           {filled}
    FROM generate_series({first}, {last}) AS n,
         LATERAL (SELECT n / 50 AS snapshot) AS numbered,
         LATERAL (SELECT now() - interval '1 day' + snapshot * interval '1 ms' AS at) AS dated
"""


@dataclass(frozen=True)
class Question:
    """What is asked, with the paths that take turns."""

    name: str
    paths: Sequence[str]


def pair(number: int) -> str:
    return f"EUR{chr(65 + number // 20)}{chr(65 + number % 20)}X"


QUESTIONS = (
    Question(
        "newest quotes of a pair",
        [f"/pairs/currencies?pair_name={pair(number)}&limit=10" for number in range(SERIES)],
    ),
    Question(
        "current average of a pair",
        [f"/pairs/average?pair_name={pair(number)}" for number in range(SERIES)],
    ),
    Question("current averages of all pairs", [f"/pairs/average?limit={SERIES}"]),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rows", type=int, default=10_000_000, help="quotes stored, of api (default: %(default)s)"
    )
    parser.add_argument("--wrk-seconds", type=int, default=5, help="of each run of wrk, of api")


def run(options: argparse.Namespace, console: Console) -> Report:
    if shutil.which("wrk") is None:
        raise BenchmarkError("api: wrk is not installed (Debian: apt-get install wrk)")
    with (
        stage(console) as (bootstrap, folder, progress),
        _database(folder, options.rows, progress) as url,
    ):
        gateway = service("api_gateway", bootstrap, folder / "gateway", {
            "RATESTREAM_POSTGRES__URL": url
        })  # fmt: skip
        with running(gateway), _plain(url) as plain_url:
            wait_until(lambda: is_ready(gateway), _READY_SECONDS, "ready", gateway)
            servers = {GATEWAY: gateway.url, PLAIN: plain_url}
            subjects = [
                Subject(
                    _subject(question, connections, server),
                    partial(_figures, address, question, connections, options.wrk_seconds, folder),
                )
                for question in QUESTIONS
                for connections in CONNECTIONS
                for server, address in servers.items()
            ]
            found = measure(subjects, options.rounds, progress, "api")
    return Report(
        "api",
        {"rows": options.rows, "series": SERIES, "wrk_seconds": options.wrk_seconds},
        found,
        _targets(found),
        {"wrk": _wrk_version()},
    )


def _subject(question: Question, connections: int, server: str) -> str:
    return f"{question.name}, {connections} at once, {server}"


def _targets(found: dict[str, Found]) -> list[Target]:
    """Of the current averages of all pairs, however many ask."""
    all_pairs = QUESTIONS[-1]
    return [
        Target(
            f"{all_pairs.name}, {connections} at once, against the plain way",
            ratio(
                found,
                _RATE,
                _subject(all_pairs, connections, GATEWAY),
                _subject(all_pairs, connections, PLAIN),
            ),
            at_least=10.0,
        )
        for connections in CONNECTIONS
    ]


def _wrk_version() -> str:
    said = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return said.split()[1] if said else "unknown"


@contextmanager
def _database(folder: Path, rows: int, progress: Progress) -> Iterator[str]:
    """So many quotes, and an average for every tenth of them."""
    free, needed = shutil.disk_usage(folder).free, rows * _NEEDED_BYTES_A_ROW
    if free < needed:
        raise BenchmarkError(f"api: {rows} rows need {needed} bytes of disk and {free} are free")
    with EmbeddedPostgres(folder / "postgres") as server:
        asyncio.run(upgrade(server.url))
        asyncio.run(_fill(server.url, rows, progress))
        yield server.url


async def _fill(url: str, rows: int, progress: Progress) -> None:
    connection = await asyncpg.connect(url)
    bar = progress.add_task("rows stored", total=rows)
    try:
        await connection.execute(
            f"INSERT INTO series SELECT {_PAIR.format(n='n')}, 'demo' "
            f"FROM generate_series(0, {SERIES - 1}) AS n"
        )
        for first in range(0, rows, _CHUNK_ROWS):
            last = min(rows, first + _CHUNK_ROWS) - 1
            await _insert(connection, "quotes", first, last)
            progress.update(bar, completed=last + 1)
        await _insert(connection, "averages", 0, rows // _ROWS_AN_AVERAGE - 1)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _insert(connection: asyncpg.Connection, table: str, first: int, last: int) -> None:
    is_average = table == "averages"
    await connection.execute(
        _INSERT.format(
            table=table,
            pair=_PAIR.format(n=f"n % {SERIES}"),
            more=", window_fill" if is_average else "",
            filled=", 10" if is_average else "",
            first=first,
            last=last,
        ),
        timeout=None,
    )


@contextmanager
def _plain(url: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.plain.api", str(port), url]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"{address}/openapi.json", timeout=5):
                return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchmarkError(f"the plain API does not answer: {error}") from error
            time.sleep(0.1)


def _figures(
    address: str, question: Question, connections: int, seconds: int, folder: Path
) -> Figures:
    script = folder / "wrk.lua"
    paths = "{" + ", ".join(f'"{path}"' for path in question.paths) + "}"
    script.write_text(_SCRIPT.format(paths=paths))
    _wrk(address, script, connections, _WARM_UP_SECONDS)
    said = _wrk(address, script, connections, seconds)
    if said["errors"]:
        raise BenchmarkError(f"{said['errors']} wrong answers to {question.name}: {address}")
    return {
        _RATE: said["requests"] / said["microseconds"] * 1e6,
        "p50_ms": said["p50"] / 1000,
        "p99_ms": said["p99"] / 1000,
    }


def _wrk(address: str, script: Path, connections: int, seconds: int) -> dict[str, int]:
    ended = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{seconds}s", "--timeout", "30s", "--script", str(script), address),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        check=False,
    )
    if ended.returncode != 0:
        raise BenchmarkError(f"wrk failed: {ended.stderr or ended.stdout}")
    said: dict[str, int] = json.loads(ended.stdout.strip().splitlines()[-1])
    return said
