"""The input: snapshots whose rates carry serial numbers, each written to `src-data` once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime

from confluent_kafka import KafkaException, Producer

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

_STEP_SECONDS = 0.1
_PATIENCE_SECONDS = 120.0
_CALL_SECONDS = 5.0

_Message = tuple[int, str, str]
"""Partition, key and value."""


def rate(serial: int) -> str:
    """Its whole part is the serial number; its many digits put rounding to the test."""
    return f"{serial}.{serial * 7919 % 10**9:09d}"


class Writer:
    """Writes `quotes` quotes, whatever dies; every source has a partition of its own.

    In transactions: librdkafka's idempotent producer alone was seen to write a snapshot twice when
    the leader of its partition was killed (it takes a new epoch, with which Kafka cannot know the
    snapshot again).
    """

    def __init__(self, bootstrap: str, quotes: int) -> None:
        self.quotes = quotes
        self.written = 0
        self._made = 0
        self._snapshots = 0
        self._has_given_up = False
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "transactional.id": "chaos",
                "transaction.timeout.ms": 300_000,
                "compression.type": "lz4",
                "log_level": 2,
            }
        )

    async def start(self) -> None:
        """Raises `ChaosError`."""
        try:
            await asyncio.to_thread(self._producer.init_transactions, _PATIENCE_SECONDS)
        except KafkaException as error:
            raise ChaosError(f"no quotes can be written: {error}") from error

    async def write_some(self, quotes: int, seconds: float) -> None:
        """So many, rounded up to a snapshot, or all that are left, spread evenly over this time.
        Returns when Kafka has them. Raises `ChaosError`."""
        goal = min(self._made + quotes, self.quotes)
        begin, started = self._made, time.monotonic()
        while self._made < goal:
            await asyncio.sleep(_STEP_SECONDS)
            share = min(1.0, (time.monotonic() - started) / seconds)
            snapshots = []
            while self._made < begin + share * (goal - begin):
                snapshots.append(self._next_snapshot())
            if snapshots:
                await asyncio.to_thread(self._write, snapshots)
                self.written = self._made

    def give_up(self) -> None:
        """What is being written in another thread ends soon, one way or the other."""
        self._has_given_up = True

    def _next_snapshot(self) -> _Message:
        first = self._made + 1
        self._made = min(self._made + len(PAIRS), self.quotes)
        partition = self._snapshots % PARTITIONS
        self._snapshots += 1
        source, now = f"source-{partition}", datetime.now(UTC).isoformat()
        rates = dict(zip(PAIRS, map(rate, range(first, self._made + 1)), strict=False))
        snapshot = {"source": source, "observed_at": now, "received_at": now, "rates": rates}
        return partition, source, json.dumps(snapshot)

    def _write(self, messages: list[_Message]) -> None:
        """One transaction, as often as it takes."""
        try:
            while not self._is_written(messages):
                self._until_it_is_known(self._producer.abort_transaction)
        except KafkaException as error:
            raise ChaosError(f"quotes cannot be written: {error}") from error

    def _is_written(self, messages: list[_Message]) -> bool:
        """Whether the transaction was committed; if not, it must be aborted."""
        self._producer.begin_transaction()
        for partition, key, value in messages:
            self._producer.produce(TOPIC, key=key, value=value, partition=partition)
        try:
            self._until_it_is_known(self._producer.commit_transaction)
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise
            return False
        return True

    def _until_it_is_known(self, call: Callable[[float], None]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return call(_CALL_SECONDS)
            except KafkaException as error:
                is_late = self._has_given_up or time.monotonic() > deadline
                if is_late or not error.args[0].retriable():
                    raise
