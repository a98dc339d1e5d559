"""The input: snapshots whose rates carry serial numbers, each written to `src-data` once."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime

from confluent_kafka import KafkaError, Message, Producer

from tests.chaos import ChaosError

TOPIC = "src-data"
PARTITIONS = 8
PAIRS = tuple(
    f"EUR{currency}"
    for currency in (
        *("AUD", "BGN", "CAD", "CHF", "CNY", "CZK", "DKK", "GBP", "HKD", "HUF", "IDR", "ILS"),
        *("INR", "JPY", "KRW", "MXN", "MYR", "NOK", "NZD", "PLN", "RON", "RUB", "SEK", "TRY"),
        "USD",
    )
)

_FLUSH_SECONDS = 120.0


def rate(serial: int) -> str:
    """Its whole part is the serial number; its many digits put rounding to the test."""
    return f"{serial}.{serial * 7919 % 10**9:09d}"


class Writer:
    """Writes `quotes` quotes with an idempotent producer that never gives up a record, so that
    whatever dies, each snapshot is written once. Every source has a partition of its own."""

    def __init__(self, bootstrap: str, quotes: int) -> None:
        self.quotes = quotes
        self.written = 0
        self._snapshots = 0
        self._failure: KafkaError | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "compression.type": "lz4",
                "log_level": 2,
            }
        )

    async def write_some(self, quotes: int, seconds: float) -> None:
        """At least so many if there are as many left, spread evenly over this time. Raises
        `ChaosError`."""
        started = time.monotonic()
        snapshots = -(-min(quotes, self.quotes - self.written) // len(PAIRS))
        for number in range(snapshots):
            due = started + seconds * number / snapshots
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self._write_next()

    async def write_rest(self, seconds: float) -> None:
        """Returns when Kafka has everything. Raises `ChaosError`."""
        await self.write_some(self.quotes, seconds)
        left = await asyncio.to_thread(self._producer.flush, _FLUSH_SECONDS)
        self._raise_failure()
        if left:
            raise ChaosError(f"{left} snapshots not acknowledged within {_FLUSH_SECONDS} s")

    def _write_next(self) -> None:
        serials = range(self.written + 1, min(self.written + len(PAIRS), self.quotes) + 1)
        partition = self._snapshots % PARTITIONS
        now = datetime.now(UTC).isoformat()
        source = f"source-{partition}"
        snapshot = {
            "source": source,
            "observed_at": now,
            "received_at": now,
            "rates": dict(zip(PAIRS, map(rate, serials), strict=False)),
        }
        self._producer.produce(
            TOPIC,
            key=source,
            value=json.dumps(snapshot),
            partition=partition,
            on_delivery=self._delivered,
        )
        self._producer.poll(0)
        self._raise_failure()
        self._snapshots += 1
        self.written = serials.stop - 1

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ChaosError(f"a snapshot was not written: {self._failure}")
