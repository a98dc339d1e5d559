"""What a worker tells Prometheus, from its first moment on."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from ratestream.streaming import (
    App,
    BrokerError,
    DeliveryError,
    ProducerConfig,
    Stream,
    TopicPartition,
    WorkerConfig,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.producer import LocalProducer
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.testing import AppTester
from ratestream.streaming.worker import Worker, WorkerState


class SilentBroker(LocalBroker):
    """A broker that has not answered yet, and does not know that it never will."""

    def cluster_id(self) -> str:
        raise BrokerError("no answer")


def passing_app() -> App:
    """Passes numbers on; what is none becomes a dead letter. `shout` does so from a task."""
    app = App("passing")
    source = app.topic("in", value_type=int)
    out = app.topic("out", value_type=int)
    app.dead_letter = app.topic("dead-letter", key_type=bytes, value_type=bytes)
    seen = app.Table("seen", value_type=int, default=int, partitions_of=source)

    @app.agent(source)
    async def pass_on(stream: Stream[int]) -> None:
        async for key, value in stream.items():
            seen[key] += 1
            await out.send(key=key, value=value)

    return app


def value(app: App, name: str, labels: Mapping[str, str] | None = None) -> float | None:
    return app.registry.get_sample_value(name, dict(labels or {}))


def test_counters_are_there_before_their_first_event() -> None:
    app = passing_app()
    broker = LocalBroker(None)
    Worker(app, broker, WorkerConfig())
    broker.close()
    assert value(app, "ratestream_dead_letters_total") == 0
    assert value(app, "ratestream_records_in_total", {"topic": "in"}) == 0
    assert value(app, "ratestream_records_out_total", {"topic": "out"}) == 0
    assert value(app, "ratestream_records_out_total", {"topic": "in"}) is None
    assert value(app, "ratestream_records_out_total", {"topic": "passing-seen-changelog"}) == 0
    assert value(app, "ratestream_restored_records_total", {"table": "seen"}) == 0
    assert value(app, "ratestream_rebalances_total", {"kind": "lost"}) == 0
    assert value(app, "ratestream_last_commit_timestamp_seconds") == 0


def test_every_dead_letter_is_counted_whoever_sends_it() -> None:
    app = passing_app()

    @app.task
    async def complain() -> None:
        await app.topics["dead-letter"].send(key=b"k", value=b"from a task")

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", b"not a number")
            await tester.send("in", 7)
            await tester.settle()
            while len(tester.records("dead-letter")) < 2:
                await asyncio.sleep(0.01)
            assert value(app, "ratestream_dead_letters_total") == 2
            assert value(app, "ratestream_records_out_total", {"topic": "out"}) == 1

    asyncio.run(scenario())


def test_dead_letters_that_are_sent_early_are_counted(tmp_path: Path) -> None:
    app = passing_app()

    async def scenario() -> None:
        config = WorkerConfig(data_dir=str(tmp_path), output_max_records=3)
        async with AppTester(app, config=config) as tester:
            good = app.topics["in"].encode("k", 7)
            bad = msgspec.structs.replace(good, value=b"not a number")
            tester.write([bad, good, good, bad, good, good, bad, good, good])
            await tester.settle()
            assert value(app, "ratestream_dead_letters_total") == 3

    asyncio.run(scenario())


class ForgetfulBroker(LocalBroker):
    """A broker that once does not acknowledge what was sent."""

    forgot = False

    def producer(self, config: ProducerConfig) -> LocalProducer:
        producer = super().producer(config)
        flush = producer.flush

        def forget_once() -> dict[TopicPartition, int]:
            offsets = flush()
            if not self.forgot and any(topic == "out" for topic, _ in offsets):
                self.forgot = True
                raise DeliveryError("no answer")
            return offsets

        producer.flush = forget_once  # type: ignore[method-assign]  # wraps it
        return producer


def test_what_is_sent_counts_when_it_is_acknowledged(tmp_path: Path) -> None:
    app = passing_app()

    async def scenario() -> None:
        broker = ForgetfulBroker(None)
        config = WorkerConfig(data_dir=str(tmp_path), output_max_records=3, retry_backoff_min=0.01)
        async with AppTester(app, broker, config) as tester:
            tester.write([app.topics["in"].encode("k", 7)] * 10)
            await tester.settle()
            assert broker.forgot
            assert value(app, "ratestream_records_out_total", {"topic": "out"}) == 10
            changelog = "passing-seen-changelog"
            acknowledged = len(tester.records(changelog)) - 1  # the one that was forgotten
            assert value(app, "ratestream_records_out_total", {"topic": changelog}) == acknowledged
        broker.close()

    asyncio.run(scenario())


def test_every_start_has_its_time() -> None:
    broker = LocalBroker(None)
    starts = []
    for _ in range(2):
        app = passing_app()
        Worker(app, broker, WorkerConfig())
        starts.append(value(app, "ratestream_start_timestamp_seconds"))
    broker.close()
    assert starts[0] != starts[1]


def test_the_disk_is_that_of_the_data_folder_even_before_there_is_one(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    WorkerMetrics(registry, tmp_path / "not" / "yet")
    size = registry.get_sample_value("ratestream_disk_size_bytes")
    free = registry.get_sample_value("ratestream_disk_free_bytes")
    assert size == shutil.disk_usage(tmp_path).total
    assert free is not None
    assert 0 < free <= size


def test_a_broker_that_has_never_answered_is_not_up(tmp_path: Path) -> None:
    app = passing_app()

    async def scenario() -> None:
        broker = SilentBroker(None)
        config = WorkerConfig(data_dir=str(tmp_path), retry_backoff_min=0.01)
        worker = Worker(app, broker, config)
        running = asyncio.create_task(worker.run())
        while worker.state is not WorkerState.WAITING:
            await asyncio.sleep(0)
        assert broker.is_reachable()
        assert value(app, "ratestream_broker_up") == 0
        assert value(app, "ratestream_ready") == 0
        worker.stop()
        await running
        broker.close()

    asyncio.run(scenario())


def test_a_worker_that_runs_has_its_broker_and_is_ready() -> None:
    app = passing_app()

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", 7)
            await tester.settle()
            assert value(app, "ratestream_broker_up") == 1
            assert value(app, "ratestream_ready") == 1
            assert value(app, "ratestream_last_commit_timestamp_seconds") != 0
            app.add_readiness_check("postgres", lambda: "away")
            assert value(app, "ratestream_ready") == 0

    asyncio.run(scenario())


def test_an_app_without_topics_does_not_miss_a_broker() -> None:
    app = App("alone")
    broker = LocalBroker(None)
    Worker(app, broker, WorkerConfig())
    broker.close()
    assert value(app, "ratestream_broker_up") == 1
