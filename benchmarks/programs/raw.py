"""The limit of restoring: read a topic to its end, and do nothing with it. Prints how many records
there were and the seconds from the moment at which it knew where to read, as JSON."""

from __future__ import annotations

import json
import sys
import time

from confluent_kafka import Consumer, TopicPartition

from benchmarks.programs.job import PARTITIONS

_MESSAGES = 10_000
_WAIT_SECONDS = 0.01  # `consume` waits as long unless it gets all that it may
_ASK_SECONDS = 30.0


def main(bootstrap: str, topic: str) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "raw",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": 64 * 1024,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,
        }
    )
    partitions = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    for each in partitions:
        consumer.get_watermark_offsets(each, _ASK_SECONDS)
    started = time.monotonic()
    consumer.assign(partitions)
    records, at_end = 0, 0
    while at_end < PARTITIONS:
        messages = consumer.consume(_MESSAGES, _WAIT_SECONDS)
        errors = sum(message.error() is not None for message in messages)
        records, at_end = records + len(messages) - errors, at_end + errors
    print(json.dumps({"records": records, "seconds": time.monotonic() - started}))
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
