"""Quotes from Kafka into Postgres, as SQLAlchemy's tutorial would have it, at least once.

    python -m benchmarks.plain.loader BOOTSTRAP DATABASE_URL SECONDS BATCH

With a BATCH of 1 each message is one object, added to a session of its own and committed; with more
it is one `executemany` and commit for so many. Prints rows and seconds, as JSON, when there is
nothing more to read or SECONDS are over.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
from confluent_kafka import Consumer
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from benchmarks.plain.models import Quote
from ratestream import events

_JOIN_SECONDS = 30.0
_IDLE_SECONDS = 3.0

Sessions = async_sessionmaker[AsyncSession]
Store = Callable[[Sessions, Sequence[dict[str, Any]]], Awaitable[None]]


def columns(value: bytes) -> dict[str, Any]:
    quote = msgspec.json.decode(value, type=events.Quote)
    return {
        "origin_topic": quote.origin.topic,
        "origin_partition": quote.origin.partition,
        "origin_offset": quote.origin.offset,
        "pair": quote.pair,
        "source": quote.source,
        "value": quote.value,
        "observed_at": quote.observed_at,
        "received_at": quote.received_at,
    }


async def add_one(sessions: Sessions, rows: Sequence[dict[str, Any]]) -> None:
    async with sessions() as session:
        session.add(Quote(**rows[0]))
        await session.commit()


async def add_many(sessions: Sessions, rows: Sequence[dict[str, Any]]) -> None:
    async with sessions() as session:
        await session.execute(insert(Quote.__table__), rows)  # type: ignore[arg-type]  # a Table
        await session.commit()


def read(consumer: Consumer, batch: int, timeout: float) -> list[bytes]:
    messages = consumer.consume(batch, timeout)
    return [message.value() or b"" for message in messages if message.error() is None]


async def load(consumer: Consumer, sessions: Sessions, seconds: float, batch: int) -> None:
    store: Store = add_one if batch == 1 else add_many
    values = read(consumer, 1, _JOIN_SECONDS)
    started = time.monotonic()
    rows = 0
    while values and time.monotonic() < started + seconds:
        await store(sessions, list(map(columns, values)))
        rows += len(values)
        values = read(consumer, batch, _IDLE_SECONDS)
    print(json.dumps({"rows": rows, "seconds": time.monotonic() - started}))


async def main(bootstrap: str, url: str, seconds: float, batch: int) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url)
    )
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"plain-{uuid4()}",
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe(["processed-data"])
    try:
        await load(consumer, async_sessionmaker(engine), seconds, batch)
    finally:
        consumer.close()
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])))
