"""End to end: from a snapshot's being sent to `src-data` until the average of its quote can be
read on `aggregated-data` by a reader of committed records."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import msgspec
from confluent_kafka import Producer
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.figures import Pace, percentile
from benchmarks.stage import (
    PAIRS,
    PARTITIONS,
    Reader,
    is_ready,
    producing,
    reading,
    running,
    service,
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


@dataclass
class Latencies:
    """Of one variant, milliseconds: one value a round, of all quotes in it."""

    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def add(self, seconds: Sequence[float]) -> None:
        self.p50.append(percentile(seconds, 50) * _MILLISECONDS)
        self.p99.append(percentile(seconds, 99) * _MILLISECONDS)

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.p50), statistics.median(self.p99)


def measure(
    bootstrap: str, folder: Path, progress: Progress, rounds: int, rate: float, seconds: float
) -> dict[Variant, Latencies]:
    """Every variant once a round, in turn, so that what else the machine does meets all of them.
    Raises `BenchmarkError`."""
    found = {variant: Latencies() for variant in VARIANTS}
    bar = progress.add_task("latency", total=rounds * len(VARIANTS))
    for _ in range(rounds):
        for variant, latencies in found.items():
            words = f"latency, {variant.guarantee}, commits each {variant.commit_interval} s"
            progress.update(bar, description=words)
            progress.print(words)
            latencies.add(_round(bootstrap, folder, variant, rate, seconds))
            progress.print(f"p50 {latencies.p50[-1]:.0f} ms, p99 {latencies.p99[-1]:.0f} ms")
            progress.advance(bar)
    return found


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
