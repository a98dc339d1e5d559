"""What came of it: read back from Kafka and Postgres with plain clients, not with the runtime."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import asyncpg
import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from tests.chaos import ChaosError
from tests.chaos.oracle import Fact, Key

_READ_SECONDS = 60.0
_CONSUME_SECONDS = 0.2  # `consume` waits for so long unless there is a whole batch
_BATCH = 10_000

POSTGRES_IS_AWAY = (
    OSError,
    asyncpg.PostgresError,  # it has no tables yet, or is only just starting
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # it died between two messages
)
"""What a question may raise while Postgres is killed and started again."""


class _Snapshot(msgspec.Struct):
    source: str
    received_at: datetime
    rates: dict[str, Decimal]


class _Result(msgspec.Struct):
    """A quote or an average."""

    pair: str
    source: str
    value: Decimal
    received_at: datetime
    origin: tuple[str, int, int]
    count: int = 1


@dataclass(frozen=True)
class Stored:
    """A row of Postgres."""

    fact: Fact
    stored_at: datetime


def read_source(bootstrap: str) -> list[Fact]:
    """Every quote that is on `src-data`."""
    decode = msgspec.json.Decoder(_Snapshot).decode
    return [
        Fact(Key(partition, offset, pair), snapshot.source, value, snapshot.received_at)
        for partition, offset, content in read_topic(bootstrap, "src-data")
        for snapshot in (decode(content),)
        for pair, value in snapshot.rates.items()
    ]


def read_results(bootstrap: str, topic: str) -> list[Fact]:
    """Every quote or average that is on this topic and committed, in order of its partition."""
    decode = msgspec.json.Decoder(_Result).decode
    return [_fact(decode(content)) for _, _, content in read_topic(bootstrap, topic)]


def count_records(bootstrap: str, topic: str) -> int:
    return sum(1 for _ in read_topic(bootstrap, topic))


def read_topic(bootstrap: str, topic: str) -> Iterator[tuple[int, int, bytes]]:
    """Partition, offset and value of all records, up to the end of now. Raises `ChaosError`
    when a transaction that is still open stands before the end."""
    open_ends = ends(bootstrap, topic)
    reader = Consumer(
        {
            **_settings(bootstrap),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        reader.assign([TopicPartition(topic, each, OFFSET_BEGINNING) for each in open_ends])
        last_news = time.monotonic()
        while open_ends:
            messages = reader.consume(_BATCH, _CONSUME_SECONDS)
            if messages:
                last_news = time.monotonic()
            elif time.monotonic() > last_news + _READ_SECONDS:
                raise ChaosError(
                    f"{topic}: partitions {sorted(open_ends)} cannot be read to the end"
                )
            for message in messages:
                error = message.error()
                partition, offset = message.partition(), message.offset()
                assert partition is not None
                assert offset is not None
                if error is None:
                    yield partition, offset, message.value() or b""
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise ChaosError(f"{topic}: {error}")
                elif offset >= open_ends.get(partition, 0):
                    open_ends.pop(partition, None)
    finally:
        reader.close()


def ends(bootstrap: str, topic: str) -> dict[int, int]:
    """High watermarks, open transactions included."""
    asked = Consumer({**_settings(bootstrap), "isolation.level": "read_uncommitted"})
    try:
        partitions = asked.list_topics(topic, timeout=_READ_SECONDS).topics[topic].partitions
        return {
            each: asked.get_watermark_offsets(TopicPartition(topic, each), timeout=_READ_SECONDS)[1]
            for each in partitions
        }
    finally:
        asked.close()


def _settings(bootstrap: str) -> dict[str, object]:
    return {"bootstrap.servers": bootstrap, "group.id": "chaos", "log_level": 2}


def _fact(result: _Result) -> Fact:
    _, partition, offset = result.origin
    key = Key(partition, offset, result.pair)
    return Fact(key, result.source, result.value, result.received_at, result.count)


async def read_table(url: str, table: str) -> list[Stored]:
    """All rows of `quotes` or `averages`."""
    fill = "window_fill" if table == "averages" else "1"
    query = (
        "SELECT origin_partition, origin_offset, pair, source, value, received_at,"
        f" {fill}, stored_at FROM {table}"
    )
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            rows = await connection.cursor(query)
            stored = []
            while batch := await rows.fetch(_BATCH):
                stored += [Stored(Fact(Key(*row[:3]), *row[3:7]), row[7]) for row in batch]
            return stored
    finally:
        await connection.close()


async def count_stored(url: str) -> tuple[int, int]:
    """Rows of `quotes` and of `averages`."""
    connection = await asyncpg.connect(url, timeout=_READ_SECONDS)
    try:
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM quotes), (SELECT count(*) FROM averages)"
        )
        return row[0], row[1]
    finally:
        await connection.close()
