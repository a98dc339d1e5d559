"""Commits in two halves: what becomes of one that cannot be ended, and what the group is told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ratestream.streaming import ConsumerConfig, OutgoingRecord, ProducerConfig, TopicPartition
from ratestream.streaming.committer import AtLeastOnce, Committer, ExactlyOnce, Uncommitted
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.store import Store
from ratestream.streaming.tables import Table, TableChanges
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import TopicSpec
from tests.support.brokers import patiently
from tests.support.members import Member, poll_until

INPUT, OUTPUT = TopicSpec("in", partitions=1), TopicSpec("out", partitions=1)
CHANGELOG = TopicSpec("log", partitions=1, cleanup_policy="compact")
ONE = TopicPartition("in", 0)


class Bench:
    """A broker, a member that has the only partition, its table, and work for a committer."""

    def __init__(self, folder: Path) -> None:
        self.broker = LocalBroker(None)
        self.broker.create_topics([INPUT, OUTPUT, CHANGELOG])
        member = Member(self.broker, ConsumerConfig(group="group"), INPUT.name)
        poll_until(lambda: member.has(1), member)
        self.consumer = member.consumer
        self.metrics = WorkerMetrics(CollectorRegistry(), folder)
        self.table = Table("table", CHANGELOG, Topic(INPUT, str, str), (str, str), None)
        self.store: Store = self.table.open(0, folder, CHANGELOG.name)
        changes = [TableChanges(self.table, 0, {b"k": b"v"})]
        self.work = Uncommitted([OutgoingRecord("out", b"k", b"sent", 0)], changes, {ONE: 1})

    def at_least_once(self, interval: float = 0.0) -> AtLeastOnce:
        return AtLeastOnce(self.broker, ProducerConfig(), self.consumer, self.metrics, interval)

    def written(self, topic: str) -> list[bytes | None]:
        with closing(self.broker.consumer(ConsumerConfig())) as reader:
            partition = TopicPartition(topic, 0)
            reader.assign({partition: 0})
            high, found = reader.watermarks(partition).high, []
            # Not by their number: the end of a transaction has an offset, too.
            for _ in patiently():
                if (reader.position(partition) or 0) >= high:
                    break
                found += reader.poll(10, 0.1)
            return [record.value for record in found]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.table.close_all()
    bench.consumer.close()
    bench.broker.close()


def test_at_least_once_the_store_has_what_the_changelog_has(bench: Bench) -> None:
    with closing(bench.at_least_once()) as committer:
        committer.begin(bench.work)
        assert bench.store.get(b"k") is None
        give_up(committer, {ONE: 1})
        assert bench.written("log") == [b"v"]
        assert (bench.store.get(b"k"), bench.store.checkpoint) == (b"v", 1)


def test_at_least_once_the_store_of_what_is_lost_stays_knowingly_old(bench: Bench) -> None:
    """The partition's new owner may have written its changelog, too."""
    with closing(bench.at_least_once()) as committer:
        committer.begin(bench.work)
        assert committer.give_up([ONE]) == {}
        committer.settle()
        assert bench.written("log") == [b"v"]
        assert (bench.store.get(b"k"), bench.store.checkpoint) == (None, None)
    assert bench.consumer.committed([ONE]) == {}


def test_at_least_once_the_group_is_told_nothing_of_what_is_given_away(bench: Bench) -> None:
    """Its new owner may be further, when it comes back."""
    with closing(bench.at_least_once(interval=3600.0)) as committer:
        for position in (1, 2):
            commit(committer, Uncommitted([], [], {ONE: position}))
        committer.forget([ONE])
        committer.settle()
    assert bench.consumer.committed([ONE]) == {ONE: 1}


def test_exactly_once_nothing_has_happened(bench: Bench) -> None:
    given = (bench.broker, ProducerConfig(), bench.consumer, bench.metrics)
    with closing(ExactlyOnce(*given, transactional_id="group-0")) as committer:
        committer.begin(bench.work)
        give_up(committer, {})
        assert bench.written("out") == bench.written("log") == []
        assert bench.store.get(b"k") is None
        commit(committer, Uncommitted(bench.work.outputs, bench.work.changes, {}))
        assert bench.written("out") == [b"sent"]
        assert bench.store.get(b"k") == b"v"
    assert bench.consumer.committed([ONE]) == {}


def give_up(committer: Committer, kept: Mapping[TopicPartition, int]) -> None:
    """Once more does nothing."""
    assert committer.has_begun
    assert committer.give_up([]) == kept
    assert not committer.has_begun
    assert committer.give_up([]) == {}


def test_at_least_once_the_group_is_told_now_and_then_and_before_it_gives_partitions_away(
    bench: Bench,
) -> None:
    with closing(bench.at_least_once(interval=3600.0)) as committer:
        for position in range(1, 4):
            assert commit(committer, Uncommitted([], [], {ONE: position})) == {ONE: position}
            committer.serve()
            assert bench.consumer.committed([ONE]) == {ONE: 1}  # the first, at once
        committer.settle()
        assert bench.consumer.committed([ONE]) == {ONE: 3}


def test_at_least_once_the_group_hears_of_the_rest_when_nothing_more_comes(bench: Bench) -> None:
    with closing(bench.at_least_once(interval=1.0)) as committer:
        for position in (1, 2):
            commit(committer, Uncommitted([], [], {ONE: position}))
        assert bench.consumer.committed([ONE]) == {ONE: 1}
        time.sleep(1.0)
        committer.serve()
        assert bench.consumer.committed([ONE]) == {ONE: 2}


def commit(committer: Committer, work: Uncommitted) -> Mapping[TopicPartition, int]:
    committer.begin(work)
    return committer.end()
