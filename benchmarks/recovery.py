"""kill -9 of one of two aggregators that share a large table: how long its partitions stand still.

The survivor has never had them: without a standby it restores them from the changelog.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.figures import Pace, Takeover, restores
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import (
    PAIRS,
    PARTITIONS,
    SESSION_TIMEOUT,
    Reader,
    is_ready,
    metric,
    producing,
    reading,
    running,
    service,
    stage,
    wait_until,
)
from ratestream.events import Average, Origin, Quote
from tests.support.processes import ServiceProcess

_READY_SECONDS = 300.0
_FILL_SECONDS = 900.0
_TAKEOVER_SECONDS = 180.0
_QUOTES_PER_SECOND = 80.0
_IDLE_SECONDS = 0.5
_BUFFER_RECORDS = 50_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", type=int, default=1_000_000, help="of the table, of recovery (%(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    """The number of keys is rounded up to a multiple of the number of pairs."""
    sources = -(-options.keys // len(PAIRS))
    with stage(console) as (bootstrap, folder, progress):
        _fill(bootstrap, folder, progress, sources)
        subjects = [
            Subject(name, partial(_figures, bootstrap, folder, sources, standby))
            for name, standby in (("without a standby", False), ("with a standby", True))
        ]
        found = measure(subjects, options.rounds, progress, "recovery")
    return Report(
        "recovery", {"keys": options.keys, "session_timeout_seconds": SESSION_TIMEOUT}, found
    )


def _fill(bootstrap: str, folder: Path, progress: Progress, sources: int) -> None:
    """One quote for every key, and its average."""
    total = sources * len(PAIRS)
    bar = progress.add_task("keys filled", total=total)
    aggregator = service("data_aggregator", bootstrap, folder / "filling", {})
    with running(aggregator):
        wait_until(lambda: is_ready(aggregator), _READY_SECONDS, "ready", aggregator)
        with reading(bootstrap, "aggregated-data") as reader:
            with producing(bootstrap, linger_ms=50) as producer:
                for quote in _quotes(sources, total):
                    _send(producer, quote)
                    if len(producer) > _BUFFER_RECORDS:
                        producer.poll(0.1)
            averages, deadline = 0, time.monotonic() + _FILL_SECONDS
            while averages < total:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{averages} of {total} keys within {_FILL_SECONDS} s")
                averages += len(reader.read(_IDLE_SECONDS))
                progress.update(bar, completed=averages)
    shutil.rmtree(folder / "filling")


def _figures(bootstrap: str, folder: Path, sources: int, standby: bool) -> Figures:
    """Seconds from the kill until every partition has given an average again, and, of those, what
    the restore took."""
    with _two_aggregators(bootstrap, folder, sources, standby) as (victim, survivor):
        with reading(bootstrap, "aggregated-data") as reader, producing(bootstrap) as producer:
            takeover = _take_over(victim, reader, producer, sources)
        log = (survivor.data_dir / "output").read_text().splitlines()
    restored = restores(log, takeover.killed_at)
    return {
        "takeover_seconds": takeover.longest,
        "restore_seconds": restored.seconds,
        "restored_records": restored.records,
    }


@contextmanager
def _two_aggregators(
    bootstrap: str, folder: Path, sources: int, standby: bool
) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    """With half of the partitions each. Both begin with nothing; the second one has never had
    those of the first, unless it keeps copies of them, which are then complete."""
    environment = {"RATESTREAM_RUNTIME__STANDBY": str(standby).lower()}
    both = [
        service("data_aggregator", bootstrap, folder / name, environment)
        for name in ("victim", "survivor")
    ]
    victim, survivor = both

    def has_copies() -> bool:
        restored = metric(survivor, "ratestream_restored_records_total")
        lag = metric(survivor, "ratestream_standby_lag_records")
        return restored >= sources * len(PAIRS) and lag == 0

    try:
        with running(victim):
            wait_until(lambda: _has(victim, PARTITIONS), _READY_SECONDS, "restored", victim)
            with running(survivor):
                half = PARTITIONS // 2
                wait_until(
                    lambda: all(_has(each, half) for each in both),
                    _READY_SECONDS,
                    "partitions shared and restored",
                    *both,
                )
                if standby:
                    wait_until(has_copies, _READY_SECONDS, "copies complete", *both)
                yield victim, survivor
    finally:
        for each in both:
            shutil.rmtree(each.data_dir, ignore_errors=True)


def _has(service: ServiceProcess, partitions: int) -> bool:
    """So many, restored. Without any a service is ready, too."""
    return (
        metric(service, "ratestream_assigned_partitions") == partitions
        and metric(service, "ratestream_restoring_partitions") == 0
        and is_ready(service)
    )


def _take_over(
    victim: ServiceProcess, reader: Reader, producer: Producer, sources: int
) -> Takeover:
    """Kill the victim when quotes flow in every partition, and wait until they do so again."""
    decode = msgspec.json.Decoder(Average).decode
    quotes = _quotes(sources)
    pace = Pace(_QUOTES_PER_SECOND, time.monotonic())
    flowing: set[str] = set()
    takeover: Takeover | None = None
    deadline = pace.started + _TAKEOVER_SECONDS
    while takeover is None or not takeover.is_over:
        if (now := time.monotonic()) > deadline:
            seen = takeover.seconds if takeover else flowing
            raise BenchmarkError(f"no averages within {_TAKEOVER_SECONDS} s but for {seen}")
        if takeover is None and flowing == set(PAIRS):
            takeover = Takeover(datetime.now(UTC), frozenset(PAIRS))
            victim.kill()
            deadline = now + _TAKEOVER_SECONDS
        for _ in range(pace.due(now)):
            _send(producer, next(quotes))
        producer.poll(0)
        messages = reader.read(pace.wait(now))
        seen_at = datetime.now(UTC)
        for message in messages:
            average = decode(message.value() or b"")
            if average.count < 2:
                raise BenchmarkError(f"the window of {average.pair}/{average.source} is lost")
            flowing.add(average.pair)
            if takeover:
                takeover.saw(average.pair, average.received_at, seen_at)
    return takeover


def _quotes(sources: int, total: int | None = None) -> Iterator[Quote]:
    """Every pair and source once, then again."""
    value, origin = Decimal("1.2345"), Origin("src-data", 0, 0)
    for number in count() if total is None else range(total):
        pair, source = PAIRS[number % len(PAIRS)], f"s{number // len(PAIRS) % sources}"
        now = datetime.now(UTC)
        yield Quote(pair, source, value, now, now, origin)


def _send(producer: Producer, quote: Quote) -> None:
    """Every pair has a partition of its own, so that all of them are of the same size."""
    partition = PAIRS.index(quote.pair)
    value = msgspec.json.encode(quote)
    producer.produce("processed-data", key=quote.pair, value=value, partition=partition)
