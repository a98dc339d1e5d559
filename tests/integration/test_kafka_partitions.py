"""How partitions are shared when apps read several topics, and when a topic grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported in fact
    AdminClient,
    NewPartitions,
)

from ratestream.streaming import App, Stream, TopicError, Worker, WorkerConfig
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import TopicSpec
from tests.support.brokers import send, values

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@dataclass
class Cluster:
    address: str
    broker: KafkaBroker

    def grow(self, topic: str, partitions: int) -> None:
        with AdminClient({"bootstrap.servers": self.address}) as admin:
            admin.create_partitions([NewPartitions(topic, partitions)])[topic].result()


def config(address: str, assignment: str = "cooperative-sticky") -> KafkaConfig:
    """Growth is noticed with the next refresh of metadata, which is every five minutes else."""
    return KafkaConfig(
        address,
        partition_assignment=assignment,  # type: ignore[arg-type]  # one of the two
        extra={"topic.metadata.refresh.interval.ms": "500"},
    )


@pytest.fixture
def cluster(kafka_address: str) -> Iterator[Cluster]:
    with closing(KafkaBroker(config(kafka_address))) as broker:
        yield Cluster(kafka_address, broker)


@asynccontextmanager
async def working(app: App, kafka: KafkaConfig, folder: Path) -> AsyncIterator[Worker]:
    with closing(KafkaBroker(kafka)) as broker:
        settings = WorkerConfig(
            data_dir=str(folder), session_timeout=6.0, heartbeat_interval=0.3, retry_backoff_min=0.1
        )
        worker = Worker(app, broker, settings)
        task = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await task


async def until(condition: Callable[[], bool]) -> None:
    """pytest-timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.05)


def collecting_app(name: str, *topics: str) -> tuple[App, set[str]]:
    app, seen = App(name), set[str]()
    for topic in topics:

        @app.agent(app.topic(topic, value_type=int))
        async def collect(stream: Stream[int], topic: str = topic) -> None:
            async for event in stream.records():
                seen.add(f"{topic}[{event.record.partition}]")

    return app, seen


def counting_app(name: str, topic: str) -> App:
    app = App(name)
    numbers = app.topic(topic, value_type=int)
    total = app.Table("total", value_type=int, default=int, partitions_of=numbers)

    @app.agent(numbers)
    async def add(stream: Stream[int]) -> None:
        async for number in stream:
            total["all"] += number

    return app


def test_range_gives_the_same_partitions_of_both_topics_to_one_member(cluster, tmp_path):
    name = f"range-{uuid4().hex[:8]}"
    topics = (f"{name}-a", f"{name}-b")
    cluster.broker.create_topics([TopicSpec(topic, 4) for topic in topics])
    kafka = config(cluster.address, "range")

    async def scenario() -> None:
        one, seen_by_one = collecting_app(name, *topics)
        other, seen_by_other = collecting_app(name, *topics)
        async with working(one, kafka, tmp_path / "1"), working(other, kafka, tmp_path / "2"):
            both = (one, other)
            await until(lambda: all(partitions(each) == 4 for each in both))
            for topic in topics:
                for number in range(4):
                    send(cluster.broker, *values(topic, number, "1"))
            await until(lambda: len(seen_by_one | seen_by_other) == 8)
        assert seen_by_one & seen_by_other == set()
        for seen in (seen_by_one, seen_by_other):
            numbers = [{place[-3:] for place in seen if topic in place} for topic in topics]
            assert len(numbers[0]) == 2
            assert numbers[0] == numbers[1]

    asyncio.run(scenario())


def partitions(app: App) -> float:
    return app.registry.get_sample_value("ratestream_assigned_partitions") or 0.0


def test_an_app_without_tables_reads_the_partitions_that_a_topic_grows_by(cluster, tmp_path):
    name = f"growing-{uuid4().hex[:8]}"
    cluster.broker.create_topics([TopicSpec(name, 1)])

    async def scenario() -> None:
        app, seen = collecting_app(f"{name}-app", name)
        async with working(app, config(cluster.address), tmp_path):
            await until(lambda: partitions(app) == 1)
            cluster.grow(name, 2)
            await until(lambda: partitions(app) == 2)
            send(cluster.broker, *values(name, 1, "1"))
            await until(lambda: seen == {f"{name}[1]"})

    asyncio.run(scenario())


def test_an_app_with_a_table_waits_and_names_the_changelog_when_its_topic_grows(cluster, tmp_path):
    """Keys of the table now come on other partitions than their values are kept for."""
    name = f"growing-{uuid4().hex[:8]}"
    cluster.broker.create_topics([TopicSpec(name, 1)])

    async def scenario() -> None:
        app = counting_app(f"{name}-app", name)
        async with working(app, config(cluster.address), tmp_path) as worker:
            await until(lambda: partitions(app) == 1)
            cluster.grow(name, 2)
            await until(lambda: f"{name}-app-total-changelog[1]" in str(worker.readiness()))
        with pytest.raises(TopicError, match="a changelog must have as many as its source"):
            await Worker(
                counting_app(f"{name}-app", name),
                cluster.broker,
                WorkerConfig(data_dir=str(tmp_path)),
            ).run()

    asyncio.run(scenario())
