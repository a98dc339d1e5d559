"""Bringing stores up to date with changelogs that Kafka's transactions, retention and time limits
have left their marks on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest
from confluent_kafka import TopicPartition as KafkaPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.restoring import Restorer
from ratestream.streaming.standby import Standby
from ratestream.streaming.store import Store
from ratestream.streaming.tables import Table
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
    TransactionalProducer,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


class Bench:
    """One changelog on Kafka, its owner's producer, and a store that is to mirror it."""

    def __init__(self, address: str, folder: Path, ttl: float | None = None) -> None:
        self.address = address
        self.folder = folder
        self.broker = KafkaBroker(KafkaConfig(address))
        self.id = uuid4().hex[:12]
        # Kafka deletes records by request only where they may be deleted at all.
        changelog = TopicSpec(f"changelog-{self.id}", 1, cleanup_policy="delete", retention_ms=-1)
        self.broker.create_topics([changelog])
        self.changelog = TopicPartition(changelog.name, 0)
        source = Topic(TopicSpec("words", 1), str, str)
        self.table: Table[str, str] = Table("t", changelog, source, (str, str), None, ttl)
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry, folder)
        self.consumer = self.broker.consumer(ConsumerConfig(group=f"group-{self.id}"))
        self.owner = self.successor()

    def successor(self) -> TransactionalProducer:
        """A producer that fences the owner there was."""
        return self.broker.transactional_producer(ProducerConfig(), f"owner-{self.id}")

    def begin(self, entries: Mapping[str, str], timestamp: int | None = None) -> None:
        self.owner.begin()
        self.owner.send(
            [
                OutgoingRecord(self.changelog.topic, key.encode(), value.encode(), 0, timestamp)
                for key, value in entries.items()
            ]
        )

    def log(self, entries: Mapping[str, str], timestamp: int | None = None) -> None:
        end = self.end() + len(entries) + 1
        self.begin(entries, timestamp)
        self.owner.commit({}, self.consumer)
        self.wait_ended(end)

    def log_aborted(self, entries: Mapping[str, str]) -> None:
        end = self.end() + len(entries) + 1
        self.begin(entries)
        self.flush()
        self.owner.abort()
        self.wait_ended(end)

    def wait_ended(self, end: int) -> None:
        """Kafka writes the mark of a transaction after it has said that it is decided."""
        while self.consumer.watermarks(self.changelog).high != end:
            time.sleep(0.01)

    def flush(self) -> None:
        """What was sent stands in the log, of an open transaction."""
        self.owner.flush()  # type: ignore[attr-defined]  # Kafka's has it

    def end(self) -> int:
        return self.consumer.log_end(self.changelog)

    def delete_before(self, offset: int) -> None:
        partition = KafkaPartition(*self.changelog, offset)
        with AdminClient({"bootstrap.servers": self.address}) as admin:
            for deleted in admin.delete_records([partition]).values():
                deleted.result()

    def open(self) -> Store:
        return self.table.open(0, self.folder, "cluster/changelog")

    def restore(self) -> dict[bytes, bytes | None]:
        """What the store holds after a restore."""
        with closing(self.restorer()) as restorer:
            store = self.open()
            restorer.add(self.table, 0, store)
            while restorer.active:
                restorer.step(0.1)
            assert (store.checkpoint or 0) >= self.end()
            found = {key: store.get(key) for key in store.all_keys()}
            self.table.close(0)
            return found

    def restorer(self) -> Restorer:
        return Restorer(self.broker, "app", self.metrics)

    @property
    def rebuilds(self) -> float | None:
        return self.registry.get_sample_value("ratestream_table_rebuilds_total", {"table": "t"})

    def close(self) -> None:
        self.table.close_all()
        self.owner.close()
        self.consumer.close()
        self.broker.close()


@pytest.fixture
def bench(kafka_address: str, tmp_path: Path) -> Iterator[Bench]:
    with closing(Bench(kafka_address, tmp_path)) as bench:
        yield bench


def test_a_changelog_that_ends_in_the_mark_of_a_commit(bench: Bench) -> None:
    bench.log({"a": "1"})
    assert bench.end() == 2
    assert bench.restore() == {b"a": b"1"}
    assert bench.restore() == {b"a": b"1"}


def test_a_changelog_that_ends_in_an_aborted_transaction(bench: Bench) -> None:
    bench.log({"a": "1"})
    bench.log_aborted({"a": "2", "b": "2"})
    assert bench.end() == 5
    assert bench.restore() == {b"a": b"1"}


def test_a_changelog_of_nothing_but_an_aborted_transaction(bench: Bench) -> None:
    bench.log_aborted({"a": "1"})
    assert bench.restore() == {}


def test_an_open_transaction_of_a_dead_owner_is_waited_for(bench: Bench) -> None:
    """It may be decided already, and only its mark be missing in this partition: whoever goes on
    without what it wrote may be wrong. The new owner's producer ends it."""
    bench.log({"a": "1"})
    bench.begin({"a": "2"})
    bench.flush()
    with closing(bench.restorer()) as restorer:
        store = bench.open()
        restorer.add(bench.table, 0, store)
        for _ in range(20):
            restorer.step(0.05)
        assert restorer.remaining() == 1
        dead, bench.owner = bench.owner, bench.successor()
        while restorer.active:
            restorer.step(0.1)
        assert store.get(b"a") == b"1"
        dead.close()


def test_what_the_dead_owner_committed_while_it_was_waited_for_is_restored(bench: Bench) -> None:
    bench.begin({"a": "1"})
    bench.flush()
    with closing(bench.restorer()) as restorer:
        store = bench.open()
        restorer.add(bench.table, 0, store)
        restorer.step(0.05)
        bench.owner.commit({}, bench.consumer)
        while restorer.active:
            restorer.step(0.1)
        assert store.get(b"a") == b"1"


def test_a_checkpoint_before_what_is_kept_is_rebuilt_and_counted(bench: Bench) -> None:
    bench.log({"a": "1"})
    bench.restore()
    bench.log({"b": "2"})
    bench.log({"c": "3"})
    bench.delete_before(bench.end() - 2)
    assert bench.restore() == {b"c": b"3"}
    assert bench.rebuilds == 1


def test_a_changelog_of_which_nothing_is_kept(bench: Bench) -> None:
    bench.log({"a": "1"})
    bench.delete_before(bench.end())
    assert bench.restore() == {}


def test_what_is_deleted_during_a_restore_starts_it_over(bench: Bench) -> None:
    bench.log({"a": "1"})
    bench.log({"b": "2"})
    with closing(bench.restorer()) as restorer:
        store = bench.open()
        restorer.add(bench.table, 0, store)
        bench.delete_before(2)
        while restorer.active:
            restorer.step(0.1)
        assert store.all_keys() == [b"b"]
        assert bench.rebuilds == 1


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_restore_that_is_dropped_starts_again_clean(bench: Bench, steps: int) -> None:
    for number in range(20):
        bench.log({f"key-{n}": str(number) for n in range(100)})
    with closing(bench.restorer()) as restorer:
        restorer.add(bench.table, 0, bench.open())
        for _ in range(steps):
            restorer.step(0.001)
        restorer.drop({TopicPartition("words", 0)})
        bench.table.close(0)
        assert not restorer.active
    bench.log({"key-0": "new"})
    assert bench.restore() == {b"key-0": b"new"} | {b"key-%d" % n: b"19" for n in range(1, 100)}
    assert not bench.rebuilds


def test_times_of_writes_come_back_from_the_changelog(kafka_address: str, tmp_path: Path) -> None:
    with closing(Bench(kafka_address, tmp_path, ttl=60)) as bench:
        bench.log({"a": "1"}, timestamp=1_700_000_000_123)
        bench.log({"b": "2"}, timestamp=1_700_000_050_000)
        bench.restore()
        store = bench.open()
        assert store.timed_keys() == [(b"a", 1_700_000_000_123), (b"b", 1_700_000_050_000)]
        assert store.stream_time == 1_700_000_050_000


def test_a_standby_has_what_is_committed_and_nothing_else(bench: Bench) -> None:
    with closing(Standby(bench.broker, "app", bench.metrics)) as standby:
        standby.follow(bench.table, 0, bench.folder, "cluster/changelog")
        bench.log({"a": "1"})
        bench.log_aborted({"a": "2", "b": "2"})
        bench.log({"c": "3"})
        standby.step(100)
        while standby.lag():
            standby.step(100)
        bench.begin({"a": "4"})
        bench.flush()
        for _ in range(100):
            standby.step(100)
        standby.release(bench.table, 0)
        store = bench.open()
        assert {key: store.get(key) for key in store.all_keys()} == {b"a": b"1", b"c": b"3"}
