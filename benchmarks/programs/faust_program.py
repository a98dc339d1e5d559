"""Faust (faust-streaming) with its own best documented settings:

- the extras `fast` (orjson, Cython) and `rocksdict`, uvloop as its event loop, compiled streams;
- plain JSON in and out, since its typed records cost more;
- commits every 10,000 records or second, fetches of 4 MB, a producer that waits for 0.1 s for
  batches of 1 MB;
- no log below warnings, of its libraries neither.

What did not pay: the other RocksDB driver, a larger stream buffer (131,072, which its documentation
names for throughput), its threaded producer, `send_soon`, lz4. Its tables are RocksDB behind every
single read and write, with a changelog. It is run at least once, the faster of its two guarantees.
"""

from __future__ import annotations

import logging

import faust
import mode.loop

from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import PARTITIONS, average, split


def app_of(given: Arguments) -> faust.App:
    return faust.App(
        given.group,
        broker=f"kafka://{given.bootstrap}",
        store="rocksdb://",
        datadir=str(given.data_dir),
        processing_guarantee=given.guarantee,
        topic_partitions=PARTITIONS,
        topic_disable_leader=True,
        web_enabled=False,
        value_serializer="json",
        stream_wait_empty=False,
        broker_commit_every=10_000,
        broker_commit_interval=1.0,
        broker_max_poll_records=10_000,
        broker_check_crcs=False,
        consumer_max_fetch_size=4 * 1024 * 1024,
        producer_linger=0.1,
        producer_max_batch_size=1_000_000,
    )


def stateful(app: faust.App, given: Arguments) -> None:
    quotes = app.topic(given.input, key_type=str, partitions=PARTITIONS)
    averages = app.topic(given.output, key_type=str, partitions=PARTITIONS)
    windows = app.Table("windows", default=list, key_type=str, partitions=PARTITIONS)

    @app.agent(quotes)
    async def averaging(stream: faust.Stream) -> None:
        async for quote in stream:
            pair = quote["pair"]
            value, windows[pair] = average(quote, windows[pair])
            await averages.send(key=pair, value=value)


def stateless(app: faust.App, given: Arguments) -> None:
    snapshots = app.topic(given.input, key_type=str, partitions=PARTITIONS)
    quotes = app.topic(given.output, key_type=str, partitions=PARTITIONS)

    @app.agent(snapshots)
    async def splitting(stream: faust.Stream) -> None:
        async for snapshot in stream:
            for quote in split(snapshot):
                await quotes.send(key=quote["pair"], value=quote)


def main(given: Arguments) -> None:
    app = app_of(given)
    {"stateful": stateful, "stateless": stateless}[given.job](app, given)
    for name in ("aiokafka", "faust", "mode"):
        logging.getLogger(name).setLevel(logging.WARNING)
    faust.Worker(app, loglevel="WARNING").execute_from_commandline()


if __name__ == "__main__":
    mode.loop.use("uvloop")
    main(arguments())
