"""End to end: from a source's answer until its quotes, and their averages, can be read in Postgres.

data_processor, data_aggregator and db_loader run as processes of their own, with the settings that
they have by default (`RATESTREAM_…` variables change them), on one broker of Apache Kafka and one
Postgres that waits for its disk. The answers are either made here, put on `src-data` at an even
pace, or come from demo_server through data_requester. The first can be had at any rate and takes
little from a machine that the services need; the second shows that nothing is missing in the first.

The time begins with `received_at`, when the source's answer is there, and ends when somebody who
asks Postgres again and again sees the row (`visibility.py`). "readable" is when the average can be
read on `aggregated-data` by a reader of committed records, one hop earlier.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

import asyncpg
import msgspec
from confluent_kafka import Producer
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.figures import Pace, percentile
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure
from benchmarks.stage import (
    PARTITIONS,
    Reader,
    is_ready,
    postgres,
    producing,
    reading,
    running,
    service,
    stage,
    wait_until,
)
from benchmarks.usage import Cores
from benchmarks.visibility import first_seen, watching
from ratestream.events import Average
from ratestream.rates.currencies import ACTIVE
from ratestream.settings import load
from tests.support.processes import ServiceProcess

GUARANTEES = ("at_least_once", "exactly_once")
TARGET_RATE = 1_000
TARGETS_MS = {"at_least_once": 50.0, "exactly_once": 250.0}
MOST_ANSWERS_PER_SECOND = 100
"""However many quotes there are: as of a hundred sources that are asked each second. With more
quotes the answers have more rates."""

POLLED_PAIRS = 100
_SERVICES = ("data_processor", "data_aggregator", "db_loader")
_SETTINGS = ("runtime.commit_interval", "db_loader.batch_seconds", "db_loader.batch_max_rows")
_TABLES = ("quotes", "averages")

_READY_SECONDS = 120.0
_FIRST_SECONDS = 60.0
_WARM_UP_SECONDS = 3.0
_LATE_SECONDS = 60.0
_QUIET_SECONDS = 1.0
_TICK_SECONDS = 0.001
_READ_SECONDS = 0.1
_MILLISECONDS = 1000
_PERCENTS = {"p50": 50, "p99": 99, "max": 100}

_ROWS = """
SELECT extract(epoch FROM received_at)::float8 AS received, xmin::text::bigint AS transaction
FROM {table} WHERE received_at >= $1 AND received_at < $2
"""


@dataclass(frozen=True)
class Place:
    """What one run of a subject needs."""

    bootstrap: str
    database: str
    folder: Path

    def service(self, name: str, environment: Mapping[str, str]) -> ServiceProcess:
        return service(name, self.bootstrap, self.folder / name, dict(environment))


class Span(NamedTuple):
    """What is received from `start` on and before `end` is measured."""

    start: datetime
    end: datetime

    def __contains__(self, moment: object) -> bool:
        return isinstance(moment, datetime) and self.start <= moment < self.end


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate",
        type=int,
        nargs="+",
        default=[10, 1_000, 10_000],
        help="quotes a second, of latency (default: 10 1000 10000)",
    )
    parser.add_argument(
        "--seconds", type=int, default=10, help="that are measured, of latency (%(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress), postgres(folder) as database:
        place = Place(bootstrap, database, folder)
        subjects = [
            Subject(each.name, partial(each.run, place, options.seconds))
            for each in variants(options.rate)
        ]
        found = measure(subjects, options.rounds, progress, "latency")
    settings = load().in_force()
    described: dict[str, object] = {name: settings[name] for name in _SETTINGS}
    return Report(
        "latency",
        {"rate": options.rate, "seconds": options.seconds, **described},
        found,
        targets(found),
    )


def targets(found: Mapping[str, Found]) -> list[Target]:
    """For the rate that has them, when it was measured."""
    return [
        Target(f"{name}: {rows}, p99, ms", found[name].median(f"{rows}_p99_ms"), at_most=at_most)
        for guarantee, at_most in TARGETS_MS.items()
        if (name := Paced(guarantee, TARGET_RATE).name) in found
        for rows in _TABLES
    ]


def variants(rates: Sequence[int]) -> list[Variant]:
    paced: list[Variant] = [Paced(guarantee, rate) for rate in rates for guarantee in GUARANTEES]
    return paced + [Polled(guarantee) for guarantee in GUARANTEES]


@dataclass(frozen=True)
class Variant:
    """A flow of quotes, through services with one guarantee."""

    guarantee: str

    @property
    def name(self) -> str:
        raise NotImplementedError

    def flowing(self, place: Place) -> AbstractContextManager[None]:
        """Quotes flow within the block."""
        raise NotImplementedError

    def run(self, place: Place, seconds: float) -> Figures:
        services = [place.service(name, self._environment(place)) for name in _SERVICES]
        with running(*services):
            wait_until(
                lambda: all(map(is_ready, services)), _READY_SECONDS, "services ready", *services
            )
            with (
                reading(place.bootstrap, "aggregated-data") as reader,
                watching(place.database) as watcher,
            ):
                with self.flowing(place), Cores() as cores:
                    span, readable = _measured(reader, seconds)
                rows = asyncio.run(_stored(place.database, span, len(readable)))
        delays = {"readable": readable}
        for table, stored in rows.items():
            seen = first_seen((row["transaction"] for row in stored), watcher.answers)
            delays[table] = [seen[row["transaction"]] - row["received"] for row in stored]
        return {**_percentiles(delays), "busy_cores": cores.machine}

    def _environment(self, place: Place) -> dict[str, str]:
        return {
            "RATESTREAM_DATA_PROCESSOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_DATA_AGGREGATOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_POSTGRES__URL": place.database,
        }


@dataclass(frozen=True)
class Paced(Variant):
    """Snapshots that are made here, at an even pace."""

    rate: int

    @property
    def name(self) -> str:
        return f"{self.guarantee}, {self.rate:,}/s"

    @contextmanager
    def flowing(self, place: Place) -> Iterator[None]:
        enough = Event()
        with producing(place.bootstrap) as producer:
            sender = Thread(target=self._send, args=(producer, enough), name="sender")
            sender.start()
            try:
                yield
            finally:
                enough.set()
                sender.join()

    def _send(self, producer: Producer, enough: Event) -> None:
        answers = min(self.rate, MOST_ANSWERS_PER_SECOND)
        pace = Pace(answers, time.monotonic())
        snapshots = _snapshots(self.rate // answers)
        while not enough.is_set():
            for source, snapshot in islice(snapshots, pace.due(time.monotonic())):
                producer.produce("src-data", key=source, value=snapshot)
            producer.poll(0)
            enough.wait(max(_TICK_SECONDS, pace.wait(time.monotonic())))


@dataclass(frozen=True)
class Polled(Variant):
    """demo_server, asked by data_requester ten times a second for a hundred pairs."""

    @property
    def name(self) -> str:
        return f"{self.guarantee}, {TARGET_RATE:,}/s through data_requester"

    @contextmanager
    def flowing(self, place: Place) -> Iterator[None]:
        interval = POLLED_PAIRS / TARGET_RATE
        demo = place.service(
            "demo_server",
            {
                "RATESTREAM_DEMO_SERVER__MODE": "walk",
                "RATESTREAM_DEMO_SERVER__TICK_SECONDS": str(interval),
                "RATESTREAM_DEMO_SERVER__PAIRS": json.dumps(pairs(POLLED_PAIRS)),
            },
        )
        source = {"kind": "demo", "url": demo.url, "interval_seconds": interval}
        requester = place.service(
            "data_requester", {"RATESTREAM_DATA_REQUESTER__SOURCES": json.dumps([source])}
        )
        with running(demo, requester):
            yield


def pairs(number: int) -> list[str]:
    """So many names of pairs, always the same."""
    names = (base + quoted for base in sorted(ACTIVE) for quoted in sorted(ACTIVE - {base}))
    return list(islice(names, number))


def _snapshots(rates: int) -> Iterator[tuple[str, bytes]]:
    """Source and value, without end, of so many rates each."""
    names = cycle(pairs(200))
    for number in count():
        source, now = f"s{number % PARTITIONS}", datetime.now(UTC)
        of_pairs = dict.fromkeys(islice(names, rates), "1.2345")
        snapshot = {"source": source, "observed_at": now, "received_at": now, "rates": of_pairs}
        yield source, msgspec.json.encode(snapshot)


def _measured(reader: Reader, seconds: float) -> tuple[Span, list[float]]:
    """The time that is measured, which begins some seconds after the first average, and the delays
    of all averages of it."""
    if not _read(reader, _FIRST_SECONDS):
        raise BenchmarkError(f"no average came within {_FIRST_SECONDS} s")
    warm = time.monotonic() + _WARM_UP_SECONDS
    while time.monotonic() < warm:
        _read(reader, _READ_SECONDS)
    span = _span_from_now(seconds)
    delays: list[float] = []
    quiet_at = time.monotonic() + seconds + _QUIET_SECONDS
    while time.monotonic() < quiet_at:
        if found := _of(span, _read(reader, _READ_SECONDS)):
            delays += found
            quiet_at = max(quiet_at, time.monotonic() + _QUIET_SECONDS)
    return span, delays


def _span_from_now(seconds: float) -> Span:
    now = time.time()
    return Span(datetime.fromtimestamp(now, UTC), datetime.fromtimestamp(now + seconds, UTC))


_Seen = tuple[datetime, float]
"""When a quote was received, and for how many seconds until its average was read."""

_decode = msgspec.json.Decoder(Average).decode


def _read(reader: Reader, timeout: float) -> list[_Seen]:
    messages = reader.read(timeout)
    now = datetime.now(UTC)
    received = (_decode(message.value() or b"").received_at for message in messages)
    return [(at, (now - at).total_seconds()) for at in received]


def _of(span: Span, seen: Sequence[_Seen]) -> list[float]:
    return [delay for received, delay in seen if received in span]


async def _stored(url: str, span: Span, expected: int) -> dict[str, list[Any]]:
    """The rows of that time, when all of them are there; the tables are then emptied."""
    connection = await asyncpg.connect(url)
    deadline = time.monotonic() + _LATE_SECONDS
    try:
        while True:
            rows = {
                each: await connection.fetch(_ROWS.format(table=each), *span) for each in _TABLES
            }
            numbers = {table: len(found) for table, found in rows.items()}
            if set(numbers.values()) == {expected}:
                await connection.execute(f"TRUNCATE {', '.join(_TABLES)}")
                return rows
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{expected} averages could be read, and stored are {numbers}")
            await asyncio.sleep(_QUIET_SECONDS)
    finally:
        await connection.close()


def _percentiles(delays: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {
        f"{what}_{name}_ms": percentile(found, percent) * _MILLISECONDS
        for what in (*_TABLES, "readable")
        for name, percent in _PERCENTS.items()
        if (found := delays[what])
    }
