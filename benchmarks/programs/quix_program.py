"""Quix Streams with its own best documented settings:

- plain JSON in and out, through orjson, which it brings along; strings as keys;
- RocksDB behind the cache that lasts from checkpoint to checkpoint, with a changelog;
- checkpoints every second: its default of 5 s costs as much, and leaves the last ones waiting;
- larger batches and fetches for librdkafka, lz4.
"""

from __future__ import annotations

from typing import Any

from quixstreams import Application, State
from quixstreams.dataframe import StreamingDataFrame

from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import Json, average, split


def app_of(given: Arguments) -> Application:
    return Application(
        broker_address=given.bootstrap,
        consumer_group=given.group,
        auto_offset_reset="earliest",
        state_dir=str(given.data_dir),
        processing_guarantee=given.guarantee.replace("_", "-"),
        commit_interval=1.0,
        loglevel="WARNING",
        consumer_extra_config={
            "fetch.message.max.bytes": 4 * 1024 * 1024,
            "queued.max.messages.kbytes": 64 * 1024,
        },
        producer_extra_config={
            "linger.ms": 20,
            "batch.size": 1024 * 1024,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 1_000_000,
        },
    )


def averaged(quote: Json, state: State) -> Json:
    value, window = average(quote, state.get("window", []))
    state.set("window", window)
    return value


def pair_of(quote: Any) -> str:
    return str(quote["pair"])


def main(given: Arguments) -> None:
    app = app_of(given)
    source = app.topic(given.input, key_deserializer="str", value_deserializer="json")
    target = app.topic(given.output, key_serializer="str", value_serializer="json")
    frame: StreamingDataFrame = app.dataframe(source)
    if given.job == "stateful":
        frame = frame.apply(averaged, stateful=True).to_topic(target)
    else:
        frame = frame.apply(lambda snapshot: list(split(snapshot)), expand=True)
        frame = frame.to_topic(target, key=pair_of)
    app.run()


if __name__ == "__main__":
    main(arguments())
