"""End to end: from a snapshot's being sent to `src-data` until the average of its quote can be
read on `aggregated-data` by a reader of committed records."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.figures import Pace, percentile
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import (
    PAIRS,
    PARTITIONS,
    Reader,
    is_ready,
    producing,
    reading,
    running,
    service,
    stage,
    wait_until,
)
from ratestream.events import Average

_READY_SECONDS = 120.0
_WARM_UP_SECONDS = 5.0
_LATE_SECONDS = 60.0
_IDLE_SECONDS = 0.1
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Variant:
    """How both services are set. Intervals are in seconds."""

    guarantee: str
    commit_interval: float = 0.1

    def environment(self) -> dict[str, str]:
        return {
            "RATESTREAM_DATA_PROCESSOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_DATA_AGGREGATOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_RUNTIME__COMMIT_INTERVAL": str(self.commit_interval),
        }


VARIANTS = (
    Variant("at_least_once"),
    Variant("exactly_once"),
    Variant("at_least_once", commit_interval=0.02),
    Variant("exactly_once", commit_interval=0.02),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=int, default=200, help="quotes a second, of latency")
    parser.add_argument("--seconds", type=int, default=20, help="of a round of latency")


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress):
        subjects = [
            Subject(
                f"{variant.guarantee}, commits each {variant.commit_interval} s",
                partial(_figures, bootstrap, folder, variant, options),
            )
            for variant in VARIANTS
        ]
        found = measure(subjects, options.rounds, progress, "latency")
    return Report("latency", {"rate": options.rate, "seconds": options.seconds}, found)


def _figures(
    bootstrap: str, folder: Path, variant: Variant, options: argparse.Namespace
) -> Figures:
    seconds = _round(bootstrap, folder, variant, options.rate, options.seconds)
    return {f"p{at}_ms": percentile(seconds, at) * _MILLISECONDS for at in (50, 99, 100)}


def _round(
    bootstrap: str, folder: Path, variant: Variant, rate: float, seconds: float
) -> list[float]:
    names = ("data_processor", "data_aggregator")
    services = [service(name, bootstrap, folder / name, variant.environment()) for name in names]
    with running(*services):
        wait_until(
            lambda: all(map(is_ready, services)), _READY_SECONDS, "services ready", *services
        )
        with reading(bootstrap, "aggregated-data") as reader, producing(bootstrap) as producer:
            return _stream(reader, producer, rate, seconds)


def _stream(reader: Reader, producer: Producer, rate: float, seconds: float) -> list[float]:
    """The latencies, seconds, of all quotes that are sent after the warm-up, which begins with
    the first average."""
    decode = msgspec.json.Decoder(Average).decode
    snapshots = _snapshots()
    pace = Pace(rate, time.monotonic())
    deadline = pace.started + _READY_SECONDS
    count_from = stop_at = math.inf
    counted_from = datetime.max.replace(tzinfo=UTC)
    expected, found = 0, list[float]()
    while (now := time.monotonic()) < stop_at or len(found) < expected:
        if now > deadline:
            raise BenchmarkError(f"{expected - len(found)} averages, or the first, did not come")
        if now >= count_from:
            count_from, counted_from = math.inf, datetime.now(UTC)
        for _ in range(pace.due(now) if now < stop_at else 0):
            source, sent_at, snapshot = next(snapshots)
            producer.produce("src-data", key=source, value=snapshot)
            expected += sent_at >= counted_from
        producer.poll(0)
        messages = reader.read(pace.wait(now) if now < stop_at else _IDLE_SECONDS)
        seen_at = datetime.now(UTC)
        if messages and stop_at == math.inf:
            count_from = now + _WARM_UP_SECONDS
            stop_at = count_from + seconds
            deadline = stop_at + _LATE_SECONDS
        for message in messages:
            sent_at = decode(message.value() or b"").received_at
            if sent_at >= counted_from:
                found.append((seen_at - sent_at).total_seconds())
    return found


def _snapshots() -> Iterator[tuple[str, datetime, bytes]]:
    """Source, time and value, without end; one rate each."""
    for number in count():
        source, now = f"s{number % PARTITIONS}", datetime.now(UTC)
        rates = {PAIRS[number // PARTITIONS % len(PAIRS)]: "1.2345"}
        snapshot = {"source": source, "observed_at": now, "received_at": now, "rates": rates}
        yield source, now, msgspec.json.encode(snapshot)
