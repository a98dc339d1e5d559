"""The local broker's logs against plain lists, and the sharing of partitions against its rules."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from ratestream.streaming.local import LocalBroker, LocalBrokerConfig
from ratestream.streaming.local.groups import balanced
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
)

CONFIG = LocalBrokerConfig(
    batch_bytes=100, compaction_min_bytes=0, maintenance_bytes=300, survive_power_loss=False
)
PLAIN, COMPACTED = TopicPartition("plain", 0), TopicPartition("compacted", 0)
KEYS = st.sampled_from([b"a", b"b", b"c"])
RECORDS = st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=40)), max_size=8)


class LogsAgainstLists(RuleBasedStateMachine):
    """Writes, reads, seeks, cleans and restarts in any order."""

    @initialize()
    def open(self) -> None:
        self.folder = TemporaryDirectory()
        self.written: dict[TopicPartition, list[Record]] = {PLAIN: [], COMPACTED: []}
        self.position = {PLAIN: 0, COMPACTED: 0}
        self.start()

    def start(self) -> None:
        self.broker = LocalBroker(Path(self.folder.name) / "log.sqlite", CONFIG)
        self.broker.create_topics(
            [
                TopicSpec(PLAIN.topic, 1, retention_ms=-1),
                TopicSpec(COMPACTED.topic, 1, cleanup_policy="compact"),
            ]
        )
        self.producer = self.broker.producer(ProducerConfig())
        self.consumer = self.broker.consumer(ConsumerConfig(offset_reset="error"))
        self.consumer.assign(self.position)

    @rule(partition=st.sampled_from([PLAIN, COMPACTED]), records=RECORDS)
    def write(self, partition: TopicPartition, records: list[tuple[bytes, bytes | None]]) -> None:
        outgoing = [OutgoingRecord(partition.topic, *each, timestamp=7) for each in records]
        self.producer.send(outgoing)
        log = self.written[partition]
        for key, value in records:
            log.append(Record(*partition, len(log), key, value, 7))
        assert self.producer.flush() == ({partition: len(log)} if records else {})

    @rule(count=st.integers(1, 10))
    def read(self, count: int) -> None:
        records = self.consumer.poll(count, timeout=0)
        assert len(records) <= count
        for partition, written in self.written.items():
            start, end = self.position[partition], self.consumer.position(partition)
            assert end is not None
            passed = [r for r in records if r.topic_partition == partition]
            skipped = [r for r in written[start:end] if r not in passed]
            assert passed == [r for r in written[start:end] if r in passed]
            assert partition == COMPACTED or skipped == []
            assert all(self.is_superseded(record) for record in skipped)
            self.position[partition] = end

    def is_superseded(self, record: Record) -> bool:
        later = self.written[COMPACTED][record.offset + 1 :]
        return any(other.key == record.key for other in later)

    @rule(partition=st.sampled_from([PLAIN, COMPACTED]), back=st.integers(0, 20))
    def seek(self, partition: TopicPartition, back: int) -> None:
        self.position[partition] = max(0, len(self.written[partition]) - back)
        self.consumer.seek(partition, self.position[partition])

    @rule()
    def clean(self) -> None:
        self.broker.run_maintenance()

    @rule()
    def restart(self) -> None:
        self.broker.close()
        self.start()

    @precondition(lambda self: hasattr(self, "broker"))
    @invariant()
    def watermarks_are_those_of_the_lists(self) -> None:
        for partition, written in self.written.items():
            assert self.consumer.watermarks(partition) == (0, len(written))

    def teardown(self) -> None:
        if hasattr(self, "broker"):
            self.broker.close()
            self.folder.cleanup()


TestLogsAgainstLists = LogsAgainstLists.TestCase
TestLogsAgainstLists.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

MEMBERS = st.sets(st.sampled_from("abcd"), min_size=1)
PARTITIONS = st.builds(TopicPartition, st.sampled_from(["t", "u"]), st.integers(0, 7))


@given(st.dictionaries(PARTITIONS, MEMBERS), st.dictionaries(PARTITIONS, st.sampled_from("abcde")))
def test_each_partition_goes_to_one_member_that_wants_it(subscribers, owners):
    shares = balanced(subscribers, owners)
    given_away = [(partition, member) for member in shares for partition in shares[member]]
    assert sorted(partition for partition, _ in given_away) == sorted(subscribers)
    assert all(member in subscribers[partition] for partition, member in given_away)


@given(st.sets(PARTITIONS), MEMBERS, st.dictionaries(PARTITIONS, st.sampled_from("abcde")))
def test_members_that_want_the_same_get_as_much(partitions, members, owners):
    shares = balanced(dict.fromkeys(partitions, sorted(members)), owners)
    sizes = [len(share) for share in shares.values()]
    assert not sizes or max(sizes) - min(sizes) <= 1


@given(st.dictionaries(PARTITIONS, MEMBERS), st.dictionaries(PARTITIONS, st.sampled_from("abcde")))
def test_nothing_moves_when_nothing_changed(subscribers, owners):
    shares = balanced(subscribers, owners)
    settled = {partition: member for member, share in shares.items() for partition in share}
    assert balanced(subscribers, settled) == shares


def test_a_newcomer_takes_only_its_share():
    partitions = [TopicPartition("t", number) for number in range(8)]
    owners = {partition: "ab"[number % 2] for number, partition in enumerate(partitions)}
    shares = balanced(dict.fromkeys(partitions, "abc"), owners)
    moved = [partition for partition in partitions if partition not in shares[owners[partition]]]
    assert len(moved) == len(shares["c"]) == 2
