"""Test an app without Kafka: the real worker on a local broker in memory.

async with AppTester(build(settings)) as tester:
    await tester.send("quotes", quote, key="EURUSD")
    await tester.settle()
    assert tester.received("averages") == [...]
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import msgspec

from ratestream.streaming.app import App
from ratestream.streaming.errors import StreamingError
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.types import (
    Broker,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    WorkerConfig,
)
from ratestream.streaming.worker import Worker, WorkerState

_SETTLE_SECONDS = 30.0


class AppTester:
    """Runs one app until the end of its `async with` block.

    Give it a `broker` to run several apps, or several instances of one, against the same topics.
    An app that fails raises its error from `settle`, or at the end of the block.
    """

    def __init__(
        self, app: App, broker: Broker | None = None, config: WorkerConfig | None = None
    ) -> None:
        self.app = app
        self.broker = broker or LocalBroker(None)
        self._owns_broker = broker is None
        self._config = config
        self._cleanup = ExitStack()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> AppTester:
        self.worker = Worker(self.app, self.broker, self._config or self._temporary_config())
        self._running = asyncio.create_task(self.worker.run())
        await self._until(lambda: self.worker.state is WorkerState.RUNNING)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.worker.stop()
        try:
            if self._running is not None:
                await self._running
        finally:
            if self._owns_broker:
                self.broker.close()
            self._cleanup.close()

    def _temporary_config(self) -> WorkerConfig:
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        return WorkerConfig(data_dir=self._cleanup.enter_context(folder), commit_interval=0.02)

    async def send(self, topic: str, value: Any, *, key: Any = None) -> None:
        """Send one record to a declared topic; bytes are sent as they are."""
        declared = self.app.topics[topic]
        record = msgspec.structs.replace(
            declared.encode(key, None),
            value=value if isinstance(value, bytes) else declared.value_codec.encode(value),
        )
        await asyncio.to_thread(self.write, [record])

    def write(self, records: list[OutgoingRecord]) -> None:
        producer = self.broker.producer(ProducerConfig())
        try:
            producer.send(records)
            producer.flush()
        finally:
            producer.close()

    async def settle(self) -> None:
        """Until the app has read and committed everything there is to read."""
        await self._until_async(self._is_settled)

    async def _is_settled(self) -> bool:
        topics = [agent.topic.name for agent in self.app.agents]
        return await asyncio.to_thread(self.lag, topics) == 0

    def lag(self, topics: list[str]) -> int:
        consumer = self.broker.consumer(ConsumerConfig(group=self.app.id))
        try:
            partitions = [
                TopicPartition(name, number)
                for name, topic in self.broker.describe_topics(topics).items()
                for number in range(topic.partitions)
            ]
            committed = consumer.committed(partitions)
            marks = {each: consumer.watermarks(each) for each in partitions}
            return sum(high - committed.get(each, low) for each, (low, high) in marks.items())
        finally:
            consumer.close()

    def records(self, topic: str) -> list[Record]:
        """Everything on a topic, by partition and offset."""
        consumer = self.broker.consumer(ConsumerConfig())
        try:
            size = self.broker.describe_topics([topic])[topic].partitions
            marks = {
                each: consumer.watermarks(each)
                for each in (TopicPartition(topic, number) for number in range(size))
            }
            consumer.assign({each: low for each, (low, _) in marks.items()})
            deadline = time.monotonic() + _SETTLE_SECONDS
            found: list[Record] = []
            # Not by their number: the ends of transactions have offsets, too.
            while any((consumer.position(each) or 0) < high for each, (_, high) in marks.items()):
                found.extend(consumer.poll(10_000, 0.1))
                if time.monotonic() > deadline:
                    raise StreamingError(f"{topic} was not read in {_SETTLE_SECONDS} s")
            return sorted(found, key=lambda each: (each.partition, each.offset))
        finally:
            consumer.close()

    def received(self, topic: str) -> list[Any]:
        """The decoded values on a declared topic, by partition and offset."""
        decode = self.app.topics[topic].value_codec.decode
        return [decode(record.value) for record in self.records(topic)]

    async def _until(self, condition: Any) -> None:
        async def check() -> bool:
            return bool(condition())

        await self._until_async(check)

    async def _until_async(self, condition: Any) -> None:
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                while not await condition():
                    if self._running is not None and self._running.done():
                        self._running.result()
                        raise StreamingError("the app has stopped")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            reasons = "; ".join(self.worker.readiness()) or "no reason known"
            raise StreamingError(f"not settled in {_SETTLE_SECONDS} s: {reasons}") from None


@asynccontextmanager
async def running(*apps: App, broker: Broker) -> AsyncIterator[list[AppTester]]:
    """Several apps on one broker."""
    testers = [AppTester(app, broker) for app in apps]
    for tester in testers:
        await tester.__aenter__()
    try:
        yield testers
    finally:
        for tester in reversed(testers):
            await tester.__aexit__()
