"""Where quotes come from when latency is measured: an even flow that is made here, or a source that
data_requester asks. The first can be had at any rate and takes little from a machine that the
services need; the second shows that the first leaves nothing out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count, cycle, islice
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

import msgspec
from confluent_kafka import Producer

from benchmarks.figures import Pace
from benchmarks.stage import PARTITIONS, producing, running, service
from ratestream.rates.currencies import ACTIVE
from tests.support.processes import ServiceProcess

MOST_ANSWERS_PER_SECOND = 100
"""As of a hundred sources that are asked each second: with more quotes the answers have more rates.
"""

PAIRS = 200

_TICK_SECONDS = 0.001


@dataclass(frozen=True)
class Place:
    """Where services run."""

    bootstrap: str
    database: str
    folder: Path

    def service(self, name: str, environment: Mapping[str, str]) -> ServiceProcess:
        """Not started yet; its data folder is the same each time."""
        return service(name, self.bootstrap, self.folder / name, dict(environment))


class Flow(Protocol):
    @property
    def name(self) -> str: ...

    def flowing(self, place: Place) -> AbstractContextManager[None]:
        """Snapshots come to `src-data` within the block, received just before."""
        ...


@dataclass(frozen=True)
class Paced:
    """Snapshots that are made here, at an even pace. `rate` is in quotes a second, up to
    `MOST_ANSWERS_PER_SECOND` or a multiple of it."""

    rate: int

    @property
    def name(self) -> str:
        return f"{self.rate:,}/s"

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
        snapshots = _snapshots(self.rate // answers)
        pace = Pace(answers, time.monotonic())
        while not enough.is_set():
            for source, snapshot in islice(snapshots, pace.due(time.monotonic())):
                producer.produce("src-data", key=source, value=snapshot)
            producer.poll(0)
            enough.wait(max(_TICK_SECONDS, pace.wait(time.monotonic())))


@dataclass(frozen=True)
class Polled:
    """demo_server, asked for so many pairs, so many times a second, by data_requester."""

    pairs: int
    polls_per_second: int

    @property
    def name(self) -> str:
        return f"{self.pairs * self.polls_per_second:,}/s through data_requester"

    @contextmanager
    def flowing(self, place: Place) -> Iterator[None]:
        interval = 1 / self.polls_per_second
        demo = place.service(
            "demo_server",
            {
                "RATESTREAM_DEMO_SERVER__MODE": "walk",
                "RATESTREAM_DEMO_SERVER__TICK_SECONDS": str(interval),
                "RATESTREAM_DEMO_SERVER__PAIRS": json.dumps(pairs(self.pairs)),
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
    names = cycle(pairs(PAIRS))
    for number in count():
        source, now = f"s{number % PARTITIONS}", datetime.now(UTC)
        of_pairs = dict.fromkeys(islice(names, rates), "1.2345")
        snapshot = {"source": source, "observed_at": now, "received_at": now, "rates": of_pairs}
        yield source, msgspec.json.encode(snapshot)
