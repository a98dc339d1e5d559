"""Growth: what the number of keys does to one instance of data_aggregator.

Each key's window is full, of ten quotes, and the quotes come to all keys in turn, so that a cache
smaller than the table is of no use. The instance starts with nothing on its disk: it restores the
table from its changelog, in which every key is once, then it reads the quotes, exactly once.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path

import msgspec
from confluent_kafka import Message
from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.backlog import (
    CHANGELOG,
    SERVICE,
    Backlog,
    Key,
    ToWrite,
    quotes,
    quotes_per_second,
)
from benchmarks.figures import Restore, restores
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure
from benchmarks.stage import PARTITIONS, metric, reading, running, service, stage, wait_until
from benchmarks.usage import most_resident_megabytes, resident_megabytes
from ratestream.events import Average, Origin, Quote
from ratestream.services.data_aggregator import build
from ratestream.settings import Settings
from ratestream.streaming.testing import AppTester
from tests.support.processes import ServiceProcess

TARGET_KEYS = 100_000
TARGET_MEGABYTES = 200.0

_WINDOW = 10
_READY_SECONDS = 1800.0
_FIRST_SECONDS = 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key-counts",
        type=int,
        nargs="+",
        default=[1_000, 10_000, 100_000, 1_000_000],
        help="of the table (default: 1000 10000 100000 1000000; 10000000 takes minutes a round)",
    )
    parser.add_argument(
        "--key-quotes",
        type=int,
        default=1_000_000,
        help="that wait for the instance (%(default)s)",
    )
    parser.add_argument(
        "--key-seconds",
        type=float,
        default=10.0,
        help="that the instance is watched reading them (%(default)s)",
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    window = asyncio.run(full_window())
    with stage(console) as (bootstrap, folder, progress):
        subjects = [
            Subject(
                name(keys),
                partial(_figures, bootstrap, folder, progress, keys, window, options),
            )
            for keys in options.key_counts
        ]
        found = measure(subjects, options.rounds, progress, "keys")
    described = {"quotes": options.key_quotes, "seconds": options.key_seconds}
    return Report("keys", described, found, targets(found))


def name(keys: int) -> str:
    return f"{keys:,} keys"


def targets(found: Mapping[str, Found]) -> list[Target]:
    if (of_keys := found.get(name(TARGET_KEYS))) is None:
        return []
    megabytes = of_keys.median("resident_mb")
    return [Target(f"{name(TARGET_KEYS)}: resident, MB", megabytes, at_most=TARGET_MEGABYTES)]


async def full_window() -> bytes:
    """A window of ten quotes as data_aggregator writes it to its changelog: asked of itself."""
    app, key, now = build(Settings()), Key(0), datetime.now(UTC)
    async with AppTester(app) as tester:
        for number in range(_WINDOW):
            value = Decimal(10_000 + number) / 1000
            quote = Quote(key.pair, key.source, value, now, now, Origin("src-data", 0, number))
            await tester.send("processed-data", quote, key=key.pair)
        await tester.settle()
        last = tester.records(CHANGELOG)[-1]
    if last.key != key.in_changelog or last.value is None:
        raise BenchmarkError(f"the changelog has another form than is known here: {last}")
    return last.value


def _windows(keys: int, window: bytes) -> Iterator[ToWrite]:
    for key in map(Key, range(keys)):
        yield CHANGELOG, key.partition, key.in_changelog, window


def _figures(
    bootstrap: str,
    folder: Path,
    progress: Progress,
    keys: int,
    window: bytes,
    options: argparse.Namespace,
) -> Figures:
    backlog, total = Backlog(bootstrap), options.key_quotes
    backlog.start_over()
    backlog.write(_windows(keys, window), keys, progress, "windows written")
    backlog.write(quotes(keys, total), total, progress, "quotes written")
    aggregator = service(SERVICE, bootstrap, folder / SERVICE, {})
    started = datetime.now(UTC)
    try:
        with reading(bootstrap, "aggregated-data") as reader, running(aggregator):
            wait_until(lambda: _has_restored(aggregator), _READY_SECONDS, "restored", aggregator)
            rate = quotes_per_second(backlog, total // PARTITIONS, options.key_seconds)
            _check_first(reader.read(_FIRST_SECONDS))
            memory = _memory(aggregator)
        log = (aggregator.data_dir / "output").read_text().splitlines()
    finally:
        shutil.rmtree(aggregator.data_dir, ignore_errors=True)
    return {"quotes_per_second": rate, **memory, **_restored(restores(log, started), keys)}


def _memory(aggregator: ServiceProcess) -> dict[str, float]:
    assert aggregator.process is not None
    return {
        "resident_mb": resident_megabytes(aggregator.process.pid),
        "most_resident_mb": most_resident_megabytes(aggregator.process.pid),
    }


def _restored(restored: Restore, keys: int) -> dict[str, float]:
    if restored.records < keys:
        raise BenchmarkError(f"restored were {restored.records} of {keys} keys")
    return {
        "restore_seconds": restored.seconds,
        "restored_per_second": restored.records / restored.seconds,
    }


def _has_restored(aggregator: ServiceProcess) -> bool:
    return (
        metric(aggregator, "ratestream_assigned_partitions") == PARTITIONS
        and metric(aggregator, "ratestream_restoring_partitions") == 0
        and metric(aggregator, "ratestream_restored_records_total") > 0
    )


def _check_first(averages: Sequence[Message]) -> None:
    if not averages:
        raise BenchmarkError(f"no average came within {_FIRST_SECONDS} s")
    average = msgspec.json.decode(averages[0].value() or b"", type=Average)
    if average.count != _WINDOW:
        raise BenchmarkError(f"a window was to have {_WINDOW} quotes and has {average.count}")
