"""ratestream: the runtime as it is set without being told anything."""

from __future__ import annotations

import asyncio
import signal
from decimal import Decimal
from typing import cast

import structlog

from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import PARTITIONS, WINDOW
from benchmarks.programs.messages import Average, Quote, Snapshot
from ratestream.rates.averages import mean, push
from ratestream.streaming import App, ProcessingGuarantee, Stream, Worker, WorkerConfig
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig


def stateful(app: App, given: Arguments) -> None:
    quotes = app.topic(given.input, value_type=Quote, partitions=PARTITIONS)
    averages = app.topic(given.output, value_type=Average, partitions=PARTITIONS)
    windows = app.Table("windows", value_type=list[Decimal], default=list, partitions_of=quotes)

    @app.agent(quotes)
    async def average(stream: Stream[Quote]) -> None:
        async for quote in stream:
            window = push(windows[quote.pair], quote.price, WINDOW)
            windows[quote.pair] = window
            await averages.send(
                key=quote.pair,
                value=Average(
                    pair=quote.pair,
                    source=quote.source,
                    mean=mean(window),
                    count=len(window),
                    observed_at=quote.observed_at,
                    received_at=quote.received_at,
                ),
            )


def stateless(app: App, given: Arguments) -> None:
    snapshots = app.topic(given.input, value_type=Snapshot, partitions=PARTITIONS)
    quotes = app.topic(given.output, value_type=Quote, partitions=PARTITIONS)

    @app.agent(snapshots)
    async def split(stream: Stream[Snapshot]) -> None:
        async for snapshot in stream:
            for pair, price in snapshot.rates.items():
                await quotes.send(
                    key=pair,
                    value=Quote(
                        pair=pair,
                        source=snapshot.source,
                        price=price,
                        observed_at=snapshot.observed_at,
                        received_at=snapshot.received_at,
                    ),
                )


def log_json() -> None:
    times = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(processors=[times, structlog.processors.JSONRenderer()])


async def main(given: Arguments) -> None:
    app = App(given.group, processing_guarantee=cast(ProcessingGuarantee, given.guarantee))
    {"stateful": stateful, "stateless": stateless}[given.job](app, given)
    broker = KafkaBroker(KafkaConfig(given.bootstrap))
    worker = Worker(app, broker, WorkerConfig(data_dir=str(given.data_dir)))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    await worker.run()


if __name__ == "__main__":
    log_json()
    asyncio.run(main(arguments()))
