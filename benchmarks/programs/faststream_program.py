"""FastStream on confluent-kafka with its own best documented settings:

- batches of up to 1,000 messages a call, read in the form in which librdkafka has them;
- a decoder of its own for orjson, no validation of types, no log of every message;
- it publishes without waiting for each message's confirmation, already encoded;
- larger batches and fetches for librdkafka, lz4; uvloop.

It has no state: windows are in a dict, without a changelog, and are gone when it ends.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from decimal import Decimal
from typing import Any

import orjson
import uvloop
from faststream import FastStream
from faststream.confluent import KafkaBroker

from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import WINDOW, Json, average_of, split
from ratestream.rates.averages import push

_MESSAGES = 1_000
_SNAPSHOTS = 100


def broker_of(given: Arguments) -> KafkaBroker:
    return KafkaBroker(
        given.bootstrap,
        apply_types=False,
        logger=None,
        config={
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": 64 * 1024,
            "linger.ms": 20,
            "batch.size": 1024 * 1024,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 2_000_000,
        },
    )


async def decoded(message: Any) -> list[Json]:
    return [orjson.loads(each.value()) for each in message.raw_message]


def stateful(broker: KafkaBroker, given: Arguments) -> None:
    windows: defaultdict[str, list[Decimal]] = defaultdict(list)

    @broker.subscriber(
        given.input,
        batch=True,
        max_records=_MESSAGES,
        polling_interval=0.01,
        group_id=given.group,
        auto_offset_reset="earliest",
        decoder=decoded,
    )
    async def averaging(quotes: list[Json]) -> None:
        for quote in quotes:
            pair = quote["pair"]
            windows[pair] = window = push(windows[pair], Decimal(quote["price"]), WINDOW)
            value = orjson.dumps(average_of(quote, window))
            await broker.publish(value, given.output, key=pair.encode(), no_confirm=True)


def stateless(broker: KafkaBroker, given: Arguments) -> None:
    @broker.subscriber(
        given.input,
        batch=True,
        max_records=_SNAPSHOTS,
        polling_interval=0.01,
        group_id=given.group,
        auto_offset_reset="earliest",
        decoder=decoded,
    )
    async def splitting(snapshots: list[Json]) -> None:
        for snapshot in snapshots:
            for quote in split(snapshot):
                key = quote["pair"].encode()
                value = orjson.dumps(quote)
                await broker.publish(value, given.output, key=key, no_confirm=True)


def main(given: Arguments) -> None:
    broker = broker_of(given)
    {"stateful": stateful, "stateless": stateless}[given.job](broker, given)
    asyncio.run(FastStream(broker, logger=None).run())


if __name__ == "__main__":
    uvloop.install()
    main(arguments())
