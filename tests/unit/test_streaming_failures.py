"""What fails ends the worker with its name, or is tried again; and loses nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from ratestream.streaming import (
    AgentError,
    App,
    BrokerError,
    ConsumerConfig,
    DeliveryError,
    OutgoingRecord,
    Stream,
    StreamingError,
    WorkerConfig,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.partitioner import partition_for
from ratestream.streaming.statefolder import StateFolder
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import Producer, ProducerConfig, TopicPartition
from ratestream.streaming.worker import Worker


class FlakyBroker(LocalBroker):
    """A local broker whose producers fail once, at their second call of `send` with outputs."""

    def __init__(self) -> None:
        super().__init__(None)
        self.sends = 0

    def producer(self, config: ProducerConfig) -> Producer:  # type: ignore[override]  # wraps it
        return FlakyProducer(super().producer(config), self)


class FlakyProducer:
    def __init__(self, inner: Producer, broker: FlakyBroker) -> None:
        self._inner = inner
        self._broker = broker

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        if any(record.topic == "out" for record in records):
            self._broker.sends += 1
            if self._broker.sends == 2:
                raise BrokerError("the buffer is full")
        self._inner.send(records)

    def serve(self) -> None:
        self._inner.serve()

    def flush(self) -> dict[TopicPartition, int]:
        return self._inner.flush()

    def close(self) -> None:
        self._inner.close()


async def cancelled_inside() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def test_an_agent_that_awaits_something_cancelled_has_failed() -> None:
    app = App("leaking")
    topic = app.topic("in", value_type=str)

    @app.agent(topic)
    async def leak(stream: Stream[str]) -> None:
        async for _ in stream:
            await cancelled_inside()

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", "a")
            await tester.settle()

    with pytest.raises(AgentError, match="something that it awaited was cancelled"):
        asyncio.run(scenario())


def test_a_timer_that_awaits_something_cancelled_has_failed() -> None:
    app = App("leaking")

    @app.timer(0.01)
    async def leak() -> None:
        await cancelled_inside()

    async def scenario() -> None:
        async with AppTester(app) as tester:
            while tester.worker.state.value == "running":
                await asyncio.sleep(0.01)

    with pytest.raises(StreamingError, match="cancelled"):
        asyncio.run(scenario())


@pytest.mark.parametrize("catches", [False, True])
def test_outputs_that_could_not_be_sent_early_are_made_again(tmp_path: Path, catches: bool) -> None:
    app = App("spilling")
    topic = app.topic("in", value_type=str, partitions=1)
    out = app.topic("out", value_type=str, partitions=1)
    names = [str(number) for number in range(35)]

    @app.agent(topic)
    async def pass_on(stream: Stream[str]) -> None:
        async for value in stream:
            try:
                await out.send(key="k", value=value)
            except StreamingError:
                if not catches:
                    raise

    async def scenario() -> None:
        broker = FlakyBroker()
        config = WorkerConfig(data_dir=str(tmp_path), output_max_records=10, retry_backoff_min=0.01)
        async with AppTester(app, broker, config) as tester:
            tester.write([topic.encode("k", name) for name in names])
            await tester.settle()
            assert set(tester.received("out")) == set(names)
            assert broker.sends > 2
        broker.close()

    asyncio.run(scenario())


class SlowBroker(LocalBroker):
    """A local broker whose group members stay until `may_leave`."""

    def __init__(self) -> None:
        super().__init__(None)
        self.is_leaving, self.may_leave = threading.Event(), threading.Event()

    def consumer(self, config: ConsumerConfig) -> LocalConsumer:
        consumer = super().consumer(config)
        if config.group is not None:
            close = consumer.close

            def leave() -> None:
                self.is_leaving.set()
                self.may_leave.wait()
                close()

            consumer.close = leave  # type: ignore[method-assign]  # wraps it
        return consumer


def test_a_state_folder_is_kept_until_its_tables_are_closed(tmp_path: Path) -> None:
    """Even by a worker that is cancelled twice, as by `asyncio.run` when it ends."""
    app = App("keeping")
    topic = app.topic("in", value_type=str, partitions=1)
    seen = app.Table("seen", value_type=int, default=int, partitions_of=topic)
    broker = SlowBroker()

    @app.agent(topic)
    async def count(stream: Stream[str]) -> None:
        async for value in stream:
            seen[value] += 1

    def free_folder() -> str:
        with closing(StateFolder(tmp_path / "keeping", 2)) as folder:
            return folder.path.name

    def is_of_worker(task: asyncio.Task[object]) -> bool:
        return getattr(task.get_coro(), "__qualname__", "").startswith("Worker.")

    async def scenario() -> None:
        worker = Worker(app, broker, WorkerConfig(data_dir=str(tmp_path)))
        running = asyncio.create_task(worker.run())
        while worker.readiness():
            await asyncio.sleep(0.01)
        parts = [task for task in asyncio.all_tasks() if is_of_worker(task)]
        for part in parts:
            part.cancel()
        assert await asyncio.to_thread(broker.is_leaving.wait, 10)
        for part in parts:
            part.cancel()
        await asyncio.sleep(0.2)  # for whatever would end too soon
        assert running.done()
        assert free_folder() == "1"
        broker.may_leave.set()
        await asyncio.wait(parts)
        assert free_folder() == "0"
        broker.close()

    asyncio.run(scenario())


def test_who_sends_while_the_worker_ends_is_told_so() -> None:
    app = App("ending")
    topic = app.topic("in", value_type=str)
    told: list[Exception] = []

    @app.agent(topic)
    async def fail(stream: Stream[str]) -> None:
        async for _ in stream:
            raise RuntimeError("boom")

    @app.task
    async def say_goodbye() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                await topic.send(value="bye")
            except DeliveryError as error:
                told.append(error)

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", "a")
            await tester.settle()

    with pytest.raises(AgentError, match="boom"):
        asyncio.run(scenario())
    assert "the worker has stopped" in str(told[0])


def test_a_partition_that_comes_while_agents_are_busy_is_restored_before_it_is_read(
    tmp_path: Path,
) -> None:
    """The changelog is longer than one step of a restore."""
    key_of = {partition_for(key.encode(), 2): key for key in ("k0", "k1", "k2", "k3")}
    seen: list[tuple[str, int]] = []

    def app() -> App:
        app = App("counter")
        topic = app.topic("in", value_type=str, partitions=2)
        counts = app.Table("counts", value_type=int, default=int, partitions_of=topic)

        @app.agent(topic)
        async def count(stream: Stream[str]) -> None:
            async for key, value in stream.items():
                if value == "slow":
                    await asyncio.sleep(2.0)
                seen.append((key, counts[key]))
                counts[key] += 1

        return app

    def config(name: str) -> WorkerConfig:
        return WorkerConfig(data_dir=str(tmp_path / name), drain_timeout=20)

    async def scenario() -> None:
        broker = LocalBroker(None)
        async with AppTester(app(), broker, config("1")) as one:
            two = AppTester(app(), broker, config("2"))
            await two.__aenter__()
            while (mine := owned(one)) is None or (theirs := owned(two)) is None:
                await asyncio.sleep(0.05)
            changelog = "counter-counts-changelog"
            two.write([OutgoingRecord(changelog, b"f%d" % n, b"1", theirs) for n in range(30_000)])
            await two.send("in", "a", key=key_of[theirs])
            await one.settle()
            await one.send("in", "slow", key=key_of[mine])
            await asyncio.sleep(0.2)
            await two.__aexit__()
            await one.send("in", "a", key=key_of[theirs])
            await one.settle()
            assert [before for key, before in seen if key == key_of[theirs]] == [0, 1]
        broker.close()

    def owned(tester: AppTester) -> int | None:
        pipeline = tester.worker._pipeline
        found = [n for n in (0, 1) if pipeline is not None and pipeline.owns("in", n)]
        return found[0] if len(found) == 1 else None

    asyncio.run(scenario())


class AskingBroker(LocalBroker):
    """Asks whoever opens a table, when it looks where the changelog ends, whether it is ready."""

    worker: Worker

    def __init__(self) -> None:
        super().__init__(None)
        self.answers: list[list[str]] = []

    def consumer(self, config: ConsumerConfig) -> LocalConsumer:
        consumer = super().consumer(config)
        if config.group is None:
            log_end = consumer.log_end

            def asking_log_end(partition: TopicPartition, timeout: float = 10.0) -> int:
                self.answers.append(self.worker.readiness())
                return log_end(partition, timeout)

            consumer.log_end = asking_log_end  # type: ignore[method-assign]  # wraps it
        return consumer


def test_who_opens_tables_is_not_ready(tmp_path: Path) -> None:
    app = App("opening")
    topic = app.topic("in", value_type=str, partitions=2)
    app.Table("seen", value_type=int, default=int, partitions_of=topic)

    @app.agent(topic)
    async def read(stream: Stream[str]) -> None:
        async for _ in stream:
            pass

    async def scenario() -> None:
        broker = AskingBroker()
        broker.worker = Worker(app, broker, WorkerConfig(data_dir=str(tmp_path)))
        running = asyncio.create_task(broker.worker.run())
        while len(broker.answers) < 2 or broker.worker.readiness():
            await asyncio.sleep(0.01)
        assert all(broker.answers)
        broker.worker.stop()
        await running
        broker.close()

    asyncio.run(scenario())
