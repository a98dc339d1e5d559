"""End to end: from a source's answer until its quotes, and their averages, can be read in Postgres.

data_processor, data_aggregator and db_loader run as processes of their own, with the settings that
they have by default (`RATESTREAM_…` variables change them), on one broker of Apache Kafka and one
Postgres that waits for its disk. `flows.py` has what flows.

The time begins with `received_at`, when the source's answer is there, and ends when somebody who
asks Postgres again and again sees the row (`visibility.py`). "readable" is when the average can be
read on `aggregated-data` by a reader of committed records, one hop earlier. `busy_cores` are those
of the whole machine: when it has no more, it is the machine that is late.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import asyncpg
import msgspec
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.figures import percentile
from benchmarks.flows import MOST_ANSWERS_PER_SECOND, Flow, Paced, Place, Polled
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure
from benchmarks.stage import Reader, is_ready, postgres, reading, running, stage, wait_until
from benchmarks.usage import Cores
from benchmarks.visibility import first_seen, watching
from ratestream.events import Average
from ratestream.settings import load

GUARANTEES = ("at_least_once", "exactly_once")
TARGET = Paced(1_000)
TARGETS_MS = {"at_least_once": 50.0, "exactly_once": 250.0}

_POLLED = Polled(pairs=100, polls_per_second=10)
_SERVICES = ("data_processor", "data_aggregator", "db_loader")
_SETTINGS = ("runtime.commit_interval", "db_loader.batch_seconds", "db_loader.batch_max_rows")
_TABLES = ("quotes", "averages")

_READY_SECONDS = 120.0
_FIRST_SECONDS = 60.0
_WARM_UP_SECONDS = 3.0
_BROKER_WARM_UP_SECONDS = 90.0
_LATE_SECONDS = 60.0
_QUIET_SECONDS = 1.0
_READ_SECONDS = 0.1
_MILLISECONDS = 1000
_PERCENTS = {"p50_ms": 50, "p99_ms": 99, "max_ms": 100}

_ROWS = """
SELECT extract(epoch FROM received_at)::float8 AS received, xmin::text::bigint AS transaction
FROM {table} WHERE received_at >= $1 AND received_at < $2
"""


class Span(NamedTuple):
    """What is received from `start` on and before `end` is measured."""

    start: datetime
    end: datetime

    def has(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rate",
        type=even,
        nargs="+",
        default=[10, 1_000, 10_000],
        help="quotes a second, of latency (default: 10 1000 10000)",
    )
    parser.add_argument(
        "--flow-seconds", type=int, default=8, help="that are measured, of latency (%(default)s)"
    )


def even(text: str) -> int:
    """A rate that can be had: up to `MOST_ANSWERS_PER_SECOND`, or a multiple of it."""
    rate = int(text)
    if rate < 1 or (rate > MOST_ANSWERS_PER_SECOND and rate % MOST_ANSWERS_PER_SECOND):
        most = MOST_ANSWERS_PER_SECOND
        raise argparse.ArgumentTypeError(f"{rate}: must be from 1 to {most}, or a multiple of it")
    return rate


def run(options: argparse.Namespace, console: Console) -> Report:
    flows: list[Flow] = [*map(Paced, options.rate), _POLLED]
    ways = [Way(guarantee, flow) for flow in flows for guarantee in GUARANTEES]
    with stage(console) as (bootstrap, folder, progress), postgres(folder) as database:
        place = Place(bootstrap, database, folder)
        progress.print("warming the broker: a Java that has just started is slow")
        Way(GUARANTEES[0], TARGET).run(place, _BROKER_WARM_UP_SECONDS)
        subjects = [
            Subject(way.name, partial(way.run, place, options.flow_seconds)) for way in ways
        ]
        found = by_row(measure(subjects, options.rounds, progress, "latency"))
    settings = load().in_force()
    described: dict[str, object] = {name: settings[name] for name in _SETTINGS}
    described |= {"rate": options.rate, "seconds": options.flow_seconds}
    return Report("latency", described, found, targets(found))


def by_row(found: Mapping[str, Found]) -> dict[str, Found]:
    """One for each thing that was waited for, instead of one for each way: of "quotes: p50_ms" of
    a way it makes "p50_ms" of "way: quotes". Figures that are of nothing alone are of each."""
    rows: dict[str, Found] = {}
    for way, figures in found.items():
        of_all = {name: each for name, each in figures.rounds.items() if ": " not in name}
        for name, each in figures.rounds.items():
            what, separator, figure = name.partition(": ")
            if separator:
                row = rows.setdefault(f"{way}: {what}", Found())
                row.rounds |= {figure: each} | of_all
    return rows


def targets(found: Mapping[str, Found]) -> list[Target]:
    """For the rate that has them, when it was measured."""
    return [
        Target(f"{row}, p99, ms", found[row].median("p99_ms"), at_most=at_most)
        for guarantee, at_most in TARGETS_MS.items()
        for table in _TABLES
        if (row := f"{Way(guarantee, TARGET).name}: {table}") in found
    ]


@dataclass(frozen=True)
class Way:
    """A flow of quotes, through services with one guarantee."""

    guarantee: str
    flow: Flow

    @property
    def name(self) -> str:
        return f"{self.guarantee}, {self.flow.name}"

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
                with self.flow.flowing(place), Cores() as cores:
                    span, readable = _measured(reader, seconds)
                if not readable:
                    raise BenchmarkError(f"{self.name}: nothing came within {seconds} s")
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
    return [delay for received, delay in seen if span.has(received)]


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
        f"{what}: {name}": percentile(delays[what], percent) * _MILLISECONDS
        for what in (*_TABLES, "readable")
        for name, percent in _PERCENTS.items()
    }
