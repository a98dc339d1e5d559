"""What a broker refuses: ends a worker that never knew it otherwise, is waited for by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ratestream.streaming import (
    AccessError,
    App,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    Stream,
    WorkerConfig,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.producer import LocalProducer
from ratestream.streaming.testing import AppTester
from ratestream.streaming.worker import Worker

FORBIDDEN = AuthorizationError("writing is not allowed")
PATIENCE_SECONDS = 20.0


class StrictBroker(LocalBroker):
    """A local broker that answers polls of the group with `troubles`, one each, before all else,
    and refuses records for "out" while `may_write` is False."""

    def __init__(self, *, may_write: bool = True) -> None:
        super().__init__(None)
        self.may_write = may_write
        self.troubles: list[BrokerError] = []

    def consumer(self, config: ConsumerConfig) -> LocalConsumer:
        consumer = super().consumer(config)
        if config.group is not None:
            poll = consumer.poll

            def strict_poll(max_records: int, timeout: float) -> list[Record]:
                records = poll(max_records, timeout)
                if self.troubles:
                    raise self.troubles.pop(0)
                return records

            consumer.poll = strict_poll  # type: ignore[method-assign]  # wraps it
        return consumer

    def producer(self, config: ProducerConfig) -> LocalProducer:
        producer = super().producer(config)
        send = producer.send

        def strict_send(records: Sequence[OutgoingRecord]) -> None:
            if not self.may_write and any(record.topic == "out" for record in records):
                raise FORBIDDEN
            send(records)

        producer.send = strict_send  # type: ignore[method-assign]  # wraps it
        return producer


def passing_app() -> App:
    app = App("passing")
    numbers = app.topic("in", value_type=int, partitions=1)
    out = app.topic("out", value_type=int, partitions=1)

    @app.agent(numbers)
    async def pass_on(stream: Stream[int]) -> None:
        async for number in stream:
            await out.send(key="k", value=number)

    return app


def polling_app() -> App:
    app = App("polling")
    out = app.topic("out", value_type=int, partitions=1)
    app.leader_topic = out

    @app.timer(0.02, on_leader=True)
    async def poll() -> None:
        await out.send(key="k", value=1)

    return app


WRITERS = {"an agent": passing_app, "a timer": polling_app}


def settings_in(folder: Path) -> WorkerConfig:
    return WorkerConfig(data_dir=str(folder), retry_backoff_min=0.01, retry_backoff_max=0.02)


def write(tester: AppTester) -> None:
    if "in" in tester.app.topics:
        tester.write([tester.app.topics["in"].encode("k", 1)])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("writer", WRITERS)
def test_who_may_never_write_ends(tmp_path: Path, writer: str) -> None:
    async def scenario() -> None:
        broker = StrictBroker(may_write=False)
        worker = Worker(WRITERS[writer](), broker, settings_in(tmp_path))
        tester = AppTester(WRITERS[writer](), broker)
        broker.create_topics(tester.app.topic_specs())
        write(tester)
        with pytest.raises(ConfigurationError, match="writing is not allowed"):
            await asyncio.wait_for(worker.run(), PATIENCE_SECONDS)
        broker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("writer", WRITERS)
def test_who_may_not_write_any_more_waits(tmp_path: Path, writer: str) -> None:
    async def scenario() -> None:
        broker = StrictBroker()
        async with AppTester(WRITERS[writer](), broker, settings_in(tmp_path)) as tester:
            write(tester)
            await until(lambda: tester.records("out"))
            broker.may_write = False
            write(tester)
            await until(lambda: "writing is not allowed" in str(tester.worker.readiness()))
            written = len(tester.records("out"))
            broker.may_write = True
            await until(lambda: len(tester.records("out")) > written)
            await until(lambda: tester.worker.readiness() == [])
        broker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("app", "trouble"),
    [
        (passing_app, AccessError("the password is wrong")),
        (polling_app, AuthorizationError("reading is not allowed")),
    ],
    ids=["an idle app that was let in", "a leader that has been elected"],
)
def test_who_has_worked_without_a_commit_waits(
    tmp_path: Path, app: Callable[[], App], trouble: BrokerError
) -> None:
    async def scenario() -> None:
        broker = StrictBroker()
        async with AppTester(app(), broker, settings_in(tmp_path)) as tester:
            await until(lambda: tester.worker.readiness() == [])
            broker.troubles = [trouble] * 3
            await until(lambda: not broker.troubles and tester.worker.readiness() == [])
            assert tester.app.registry.get_sample_value("ratestream_worker_retries_total") == 3
        broker.close()

    asyncio.run(scenario())


def test_a_refusal_after_an_outage_is_news(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = StrictBroker()
        async with AppTester(passing_app(), broker, settings_in(tmp_path)) as tester:
            away, refused = BrokerError("it is away"), AccessError("it refuses us")
            with capture_logs() as logs:
                broker.troubles = [away, away, refused, refused]
                await until(lambda: not broker.troubles and tester.worker.readiness() == [])
        told = [line["error"] for line in logs if line["event"] == "broker_failed"]
        assert told == ["it is away", "it refuses us"]
        broker.close()

    asyncio.run(scenario())
