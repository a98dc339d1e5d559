"""The limit: what Python can do with librdkafka when it promises nothing. No changelog, no store,
no transaction, no retry; after a crash everything is wrong.

Tuned: 10,000 messages a call, both ways in lists; types that msgspec decodes into and the cyclic
garbage collector need not look at; large fetches and batches, lz4, one acknowledgement.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import msgspec
from confluent_kafka import Consumer, Message, Producer

from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import WINDOW
from benchmarks.programs.messages import Average, Quote, Snapshot
from ratestream.rates.averages import mean, push

_MESSAGES = 10_000
_WAITING = 400_000
_WAIT_SECONDS = 0.01  # `consume` waits as long unless it gets all that it may

Outgoing = dict[str, Any]
Work = Callable[[Sequence[Message]], list[Outgoing]]


def stateful() -> Work:
    decode = msgspec.json.Decoder(Quote).decode
    encode = msgspec.json.Encoder(decimal_format="string").encode
    windows: defaultdict[str, list[Decimal]] = defaultdict(list)

    def work(messages: Sequence[Message]) -> list[Outgoing]:
        outgoing = []
        for message in messages:
            quote = decode(message.value())  # type: ignore[arg-type]  # an error is no JSON
            pair = quote.pair
            windows[pair] = window = push(windows[pair], quote.price, WINDOW)
            average = Average(
                pair,
                quote.source,
                mean(window),
                len(window),
                quote.observed_at,
                quote.received_at,
            )
            outgoing.append({"key": pair, "value": encode(average)})
        return outgoing

    return work


def stateless() -> Work:
    decode = msgspec.json.Decoder(Snapshot).decode
    encode = msgspec.json.Encoder(decimal_format="string").encode

    def work(messages: Sequence[Message]) -> list[Outgoing]:
        outgoing = []
        for message in messages:
            snapshot = decode(message.value())  # type: ignore[arg-type]  # an error is no JSON
            source, observed, received = (
                snapshot.source,
                snapshot.observed_at,
                snapshot.received_at,
            )
            for pair, price in snapshot.rates.items():
                value = encode(Quote(pair, source, price, observed, received))
                outgoing.append({"key": pair, "value": value})
        return outgoing

    return work


def main(given: Arguments) -> None:
    work = {"stateful": stateful, "stateless": stateless}[given.job]()
    messages_a_call = _MESSAGES if given.job == "stateful" else _MESSAGES // 50
    consumer = Consumer(
        {
            "bootstrap.servers": given.bootstrap,
            "group.id": given.group,
            "auto.offset.reset": "earliest",
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": 64 * 1024,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": given.bootstrap,
            "acks": 1,
            "linger.ms": 20,
            "batch.size": 1024 * 1024,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 2 * _WAITING,
        }
    )
    consumer.subscribe([given.input])
    gc.freeze()
    gc.disable()
    while True:
        outgoing = work(consumer.consume(messages_a_call, _WAIT_SECONDS))
        if producer.produce_batch(given.output, outgoing) != len(outgoing):
            raise RuntimeError("a message was not taken")
        producer.poll(0)
        while len(producer) > _WAITING:
            producer.poll(_WAIT_SECONDS)


if __name__ == "__main__":
    main(arguments())
