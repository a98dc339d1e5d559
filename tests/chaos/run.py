"""One run: start everything, let faults happen while quotes flow, wait until all is stored."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import ChaosError, results, workload
from tests.chaos.faults import (
    INSTANCES,
    INTERVAL,
    SESSION_TIMEOUT,
    Fault,
    Injector,
    permanent,
    spare,
)
from tests.chaos.oracle import Outcome
from tests.chaos.results import Stored
from tests.chaos.servers import BROKERS, Brokers, Postgres
from tests.chaos.services import RATESTREAM, Death, Instance, environment
from tests.chaos.workload import Writer

_WARM_UP_QUOTES = 500
_WARM_UP_SECONDS = 120.0
_AFTER_LAST_FAULT_SECONDS = 4.0
_LOOK_SECONDS = 2.0

# With everything stored, or something missing, and nothing new for so long, it is over.
_QUIET_SECONDS = 6.0
_STALL_SECONDS = 90.0


@dataclass(frozen=True)
class Plan:
    """What a run is made of. `guarantee` is the processing guarantee of the two services that
    have one."""

    quotes: int
    schedule: Sequence[Fault]
    guarantee: str


@dataclass(frozen=True)
class Evidence:
    """What a run has shown."""

    outcome: Outcome
    averages: Sequence[Stored]
    struck: Mapping[Fault, datetime]
    deaths: Sequence[Death]


async def run(plan: Plan, folder: Path, console: Console) -> Evidence:
    """Everything is below `folder`, and what is worth keeping when something is wrong in its
    `logs`. Nothing runs any more when this ends, whatever ends it. Raises `ChaosError`, maybe in
    a group."""
    (folder / "logs").mkdir()
    console.print("starting three brokers, Postgres and the services ...")
    async with _servers(folder) as (brokers, postgres):
        stage = _Stage(plan, brokers, postgres, folder, console)
        async with stage.services():
            await stage.play()
        console.print("reading back what there is ...")
        return await stage.evidence()


@asynccontextmanager
async def _servers(folder: Path) -> AsyncIterator[tuple[Brokers, Postgres]]:
    brokers, postgres = Brokers(folder / "kafka"), Postgres(folder / "postgres")
    try:
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(brokers.start)
        yield brokers, postgres
    finally:
        postgres.stop()
        brokers.stop()
        _keep_logs(folder)


def _keep_logs(folder: Path) -> None:
    for log in [*folder.glob("kafka/node-*/*.log"), *folder.glob("postgres/*.log")]:
        shutil.copy(log, folder / "logs" / f"{log.parent.name}-{log.name}")


class _Stage:
    """The servers run; the services and what happens to them are here."""

    def __init__(
        self, plan: Plan, brokers: Brokers, postgres: Postgres, folder: Path, console: Console
    ) -> None:
        self._plan = plan
        self._brokers = brokers
        self._postgres = postgres
        self._console = console
        self._settings = _settings(plan, brokers, postgres, folder)
        self._deaths: list[Death] = []
        names = [*permanent(), *map(spare, INSTANCES)]
        logs = folder / "logs"
        self._instances = {
            name: Instance(name, self._settings, logs / f"{name}.log", self._deaths)
            for name in names
        }
        self._injector = Injector(brokers, postgres, self._instances)
        self._writer = Writer(brokers.bootstrap, plan.quotes)
        self._stored = (0, 0)

    @asynccontextmanager
    async def services(self) -> AsyncIterator[None]:
        """At the end they are asked to stop, and killed if anything went wrong."""
        await asyncio.to_thread(self._create_topics)
        await asyncio.to_thread(self._brokers.wait_in_sync)
        instances = self._instances.values()
        try:
            await asyncio.gather(*(self._instances[name].start() for name in permanent()))
            yield
            await asyncio.gather(*(instance.stop() for instance in instances))
        finally:
            self._writer.give_up()
            await asyncio.gather(*(instance.kill() for instance in instances))

    async def play(self) -> None:
        """Quotes and faults, then quiet."""
        with self._progress() as progress:
            async with asyncio.TaskGroup() as acts:
                watching = acts.create_task(self._watch(progress))
                await self._warm_up()
                await self._let_faults_happen(progress)
                await self._settle()
                watching.cancel()

    async def evidence(self) -> Evidence:
        bootstrap, url = self._brokers.bootstrap, self._postgres.url
        quotes = await results.read_table(url, "quotes")
        averages = await results.read_table(url, "averages")
        read = asyncio.to_thread
        outcome = Outcome(
            written=self._writer.written,
            source=await read(results.read_source, bootstrap),
            processed=await read(results.read_results, bootstrap, "processed-data"),
            aggregated=await read(results.read_results, bootstrap, "aggregated-data"),
            stored_quotes=[row.fact for row in quotes],
            stored_averages=[row.fact for row in averages],
            dead_letters=await read(results.count_records, bootstrap, "dead-letter"),
        )
        return Evidence(outcome, averages, self._injector.struck, self._deaths)

    def _create_topics(self) -> None:
        command = [*RATESTREAM, "topics", "create"]
        made = subprocess.run(
            command,
            env=environment(self._settings),
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise ChaosError(f"topics cannot be created: {made.stdout}{made.stderr}")

    async def _warm_up(self) -> None:
        """Until the first quotes are through: from then on faults interrupt work."""
        await self._writer.start()
        await self._writer.write_some(_WARM_UP_QUOTES, seconds=1.0)
        deadline = time.monotonic() + _WARM_UP_SECONDS
        while min(self._stored) < self._writer.written:
            if time.monotonic() > deadline:
                raise ChaosError(
                    f"before any fault, only {self._stored} quotes and averages of "
                    f"{self._writer.written} were stored within {_WARM_UP_SECONDS:.0f} s"
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def _let_faults_happen(self, progress: Progress) -> None:
        schedule = self._plan.schedule
        bar = progress.add_task("faults", total=len(schedule))
        started = time.monotonic()

        async def at_its_time(number: int, fault: Fault) -> None:
            await asyncio.sleep(started + fault.at - time.monotonic())
            self._console.print(f"{number:4}/{len(schedule)}  {fault}", highlight=False)
            await self._injector.inject(fault)
            progress.advance(bar)

        async with asyncio.TaskGroup() as acts:
            for number, fault in enumerate(schedule, start=1):
                acts.create_task(at_its_time(number, fault))
            length = INTERVAL * len(schedule) + _AFTER_LAST_FAULT_SECONDS
            await self._writer.write_some(self._plan.quotes, length)

    async def _settle(self) -> None:
        """Until everything is stored, or nothing comes any more."""
        last: object = None
        since = time.monotonic()
        quiet = 0.0
        while quiet < (_QUIET_SECONDS if self._all_is_stored() else _STALL_SECONDS):
            await asyncio.sleep(_LOOK_SECONDS)
            ends = await asyncio.to_thread(self._ends_of_outputs)
            if (ends, self._stored) != last:
                last, since = (ends, self._stored), time.monotonic()
            quiet = time.monotonic() - since

    def _ends_of_outputs(self) -> list[dict[int, int]]:
        topics = ("processed-data", "aggregated-data")
        return [results.ends(self._brokers.bootstrap, topic) for topic in topics]

    def _all_is_stored(self) -> bool:
        return self._stored == (self._writer.written, self._writer.written)

    async def _watch(self, progress: Progress) -> None:
        """Shows how far it is, until cancelled."""
        total = self._plan.quotes
        written = progress.add_task("quotes written", total=total)
        stored = progress.add_task("quotes and averages stored", total=total)
        while True:
            with suppress(*results.POSTGRES_IS_AWAY):
                self._stored = await results.count_stored(self._postgres.url)
            progress.update(written, completed=self._writer.written)
            progress.update(stored, completed=min(self._stored))
            await asyncio.sleep(_LOOK_SECONDS)

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        return Progress(*columns, TimeElapsedColumn(), console=self._console)


def _settings(plan: Plan, brokers: Brokers, postgres: Postgres, folder: Path) -> dict[str, str]:
    """Of every service: sessions and back-offs are short, or a run would take hours."""
    return {
        "RATESTREAM_KAFKA__BOOTSTRAP_SERVERS": brokers.bootstrap,
        "RATESTREAM_POSTGRES__URL": postgres.url,
        "RATESTREAM_DATA_DIR": str(folder / "services"),
        "RATESTREAM_TOPICS__PARTITIONS": str(workload.PARTITIONS),
        "RATESTREAM_TOPICS__REPLICATION_FACTOR": str(len(BROKERS)),
        "RATESTREAM_DATA_PROCESSOR__PORT": "0",
        "RATESTREAM_DATA_AGGREGATOR__PORT": "0",
        "RATESTREAM_DB_LOADER__PORT": "0",
        "RATESTREAM_DATA_PROCESSOR__PROCESSING_GUARANTEE": plan.guarantee,
        "RATESTREAM_DATA_AGGREGATOR__PROCESSING_GUARANTEE": plan.guarantee,
        "RATESTREAM_RUNTIME__SESSION_TIMEOUT": str(SESSION_TIMEOUT),
        "RATESTREAM_RUNTIME__HEARTBEAT_INTERVAL": "0.5",
        "RATESTREAM_RUNTIME__TRANSACTION_TIMEOUT": "10",
        "RATESTREAM_RUNTIME__RETRY_BACKOFF_MIN": "0.1",
        "RATESTREAM_RUNTIME__RETRY_BACKOFF_MAX": "2",
    }
