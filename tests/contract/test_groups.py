"""Consumer groups: who has which partition, and what was committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from ratestream.streaming.errors import BrokerError
from ratestream.streaming.types import (
    ConsumerConfig,
    OffsetOutOfRange,
    OutgoingRecord,
    TopicPartition,
)
from tests.support.brokers import GROUP_BROKER_KINDS, patiently, read, send, values
from tests.support.members import Member, poll_until


@pytest.fixture(params=GROUP_BROKER_KINDS)
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


def quotes(topic: str, count: int) -> list[OutgoingRecord]:
    return [OutgoingRecord(topic, str(n).encode(), b"27.8325") for n in range(count)]


def test_partitions_start_paused_and_where_the_listener_says(broker, unique_topic, group_config):
    topic = unique_topic(partitions=2)
    send(broker, *values(topic, 0, "a", "b", "c"), *values(topic, 1, "d", "e"))
    member = Member(broker, group_config, topic)
    member.resumes = False
    member.starts = {TopicPartition(topic, 0): 2}
    poll_until(lambda: member.has(2), member)
    member.poll()
    assert member.records == []
    member.resumes = True
    poll_until(lambda: len(member.records) >= 3, member)
    assert sorted(record.value or b"" for record in member.records) == [b"c", b"d", b"e"]
    member.consumer.close()


@pytest.mark.parametrize("start", [1, 6])
def test_a_partition_just_assigned_starts_where_it_is_sought(
    broker, unique_topic, group_config, start
):
    """Whatever the group has committed: the broker is being asked for that at the same time."""
    topic = unique_topic(partitions=4)
    partitions = [TopicPartition(topic, n) for n in range(4)]
    send(broker, *(record for n in range(4) for record in values(topic, n, *"abcdefgh")))
    before = Member(broker, group_config, topic)
    poll_until(lambda: before.has(4), before)
    before.consumer.commit(dict.fromkeys(partitions, 3))
    before.revoked = lambda partitions: None  # type: ignore[method-assign]
    before.consumer.close()
    member = Member(broker, group_config, topic)
    member.resumes = False
    for _ in patiently():  # and no longer: by then the broker would have answered
        member.consumer.poll(1, timeout=0.001)
        if member.has(4):
            break
    for partition in partitions:
        member.consumer.seek(partition, start)
    assert [member.consumer.position(each) for each in partitions] == [start] * 4
    member.resumes = True
    expected = {(n, offset) for n in range(4) for offset in range(start, 8)}
    poll_until(lambda: len(member.records) >= len(expected), member)
    assert Counter((each.partition, each.offset) for each in member.records) == Counter(expected)
    member.consumer.close()


def test_a_new_consumer_goes_on_from_what_was_committed(broker, unique_topic, group_config):
    topic = unique_topic(partitions=2)
    one, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    send(broker, *values(topic, 0, "a", "b", "c"), *values(topic, 1, "d"))
    first = Member(broker, group_config, topic)
    poll_until(lambda: first.has(2), first)
    first.consumer.commit({one: 2})
    assert first.consumer.committed([one, other]) == {one: 2}
    first.revoked = lambda partitions: None  # type: ignore[method-assign]
    first.consumer.close()
    second = Member(broker, group_config, topic)
    poll_until(lambda: len(second.records) >= 2, second)
    assert sorted(record.value or b"" for record in second.records) == [b"c", b"d"]
    second.consumer.close()


def test_groups_do_not_share_their_offsets(broker, unique_topic, group_config):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    member = Member(broker, group_config, topic)
    poll_until(lambda: member.has(1), member)
    member.consumer.commit({partition: 5})
    other = broker.consumer(replace(group_config, group=f"{group_config.group}-other"))
    assert other.committed([partition]) == {}
    other.close()
    member.consumer.close()


def test_a_close_does_not_commit(broker, unique_topic, group_config):
    topic = unique_topic(partitions=1)
    send(broker, *values(topic, 0, "a"))
    member = Member(broker, group_config, topic)
    poll_until(lambda: len(member.records) == 1, member)
    member.revoked = lambda partitions: None  # type: ignore[method-assign]
    member.consumer.close()
    member.consumer.close()
    asking = broker.consumer(group_config)
    assert asking.committed([TopicPartition(topic, 0)]) == {}
    asking.close()


def test_a_group_starts_at_the_end_with_reset_latest(broker, unique_topic, group_config):
    topic = unique_topic(partitions=1)
    send(broker, *values(topic, 0, "before"))
    member = Member(broker, replace(group_config, offset_reset="latest"), topic)
    poll_until(lambda: member.consumer.position(TopicPartition(topic, 0)) == 1, member)
    send(broker, *values(topic, 0, "after"))
    poll_until(lambda: len(member.records) > 0, member)
    assert [record.value for record in member.records] == [b"after"]
    member.consumer.close()


def test_a_group_without_offsets_is_an_error_with_reset_error(broker, unique_topic, group_config):
    topic = unique_topic(partitions=1)
    member = Member(broker, replace(group_config, offset_reset="error"), topic)
    with pytest.raises(OffsetOutOfRange):
        poll_until(lambda: False, member)
    member.consumer.close()


def test_members_of_several_topics_get_all_of_what_they_asked_for(
    broker, unique_topic, group_config
):
    shared, own = unique_topic(partitions=4), unique_topic(partitions=2)
    first = Member(broker, group_config, shared)
    second = Member(broker, group_config, shared, own)
    poll_until(
        lambda: (
            len(first.consumer.assignment() | second.consumer.assignment()) == 6
            and first.has(3)
            and second.has(3)
        ),
        first,
        second,
    )
    assert {partition.topic for partition in first.consumer.assignment()} == {shared}
    first.consumer.close()
    second.consumer.close()


def test_members_that_come_and_go_handle_each_record_once(broker, unique_topic, group_config):
    topic = unique_topic(partitions=6)
    sent = quotes(topic, 1500)
    journal: list[tuple[str, Member, TopicPartition]] = []
    first = Member(broker, group_config, topic, journal=journal)
    send(broker, *sent[:500])
    poll_until(lambda: first.has(6) and len(first.records) >= 100, first)
    second = Member(broker, group_config, topic, journal=journal)
    poll_until(lambda: first.has(3) and second.has(3), first, second)
    send(broker, *sent[500:1000])
    third = Member(broker, group_config, topic, journal=journal)
    poll_until(lambda: first.has(2) and second.has(2) and third.has(2), first, second, third)
    third.consumer.close()
    send(broker, *sent[1000:])
    poll_until(lambda: first.has(3) and second.has(3), first, second)
    members = (first, second, third)
    poll_until(lambda: sum(len(each.records) for each in members) >= 1500, first, second)
    counted = Counter(record.key for member in members for record in member.records)
    assert counted == dict.fromkeys((record.key for record in sent), 1)
    first.consumer.close()
    second.consumer.close()
    assert what_had_two_owners(journal) == []


def what_had_two_owners(
    journal: Sequence[tuple[str, Member, TopicPartition]],
) -> list[TopicPartition]:
    owners: dict[TopicPartition, Member] = {}
    twice = []
    for event, member, partition in journal:
        if event == "assigned" and partition in owners:
            twice.append(partition)
        elif event == "assigned":
            owners[partition] = member
        elif owners.get(partition) is member:
            del owners[partition]
    return twice + list(owners)


def test_a_partition_that_stays_is_not_revoked(broker, unique_topic, group_config):
    topic = unique_topic(partitions=4)
    first = Member(broker, group_config, topic)
    poll_until(lambda: first.has(4), first)
    second = Member(broker, group_config, topic)
    poll_until(lambda: first.has(2) and second.has(2), first, second)
    second.consumer.close()
    poll_until(lambda: first.has(4), first)
    assert sum(event == "revoked" for event, *_ in first.journal) == 2
    first.consumer.close()


@pytest.mark.timeout(60)
def test_a_close_leaves_the_group_at_once(broker, unique_topic, group_config):
    topic = unique_topic(partitions=2)
    patient = replace(group_config, session_timeout=120.0, max_poll_interval=120.0)
    first, second = Member(broker, patient, topic), Member(broker, patient, topic)
    poll_until(lambda: first.has(1) and second.has(1), first, second)
    first.consumer.close()
    assert first.consumer.assignment() == frozenset()
    poll_until(lambda: second.has(2), second)
    second.consumer.close()


def test_a_silent_member_loses_its_partitions_and_cannot_commit(broker, unique_topic, group_config):
    topic = unique_topic(partitions=2)
    impatient = replace(group_config, max_poll_interval=group_config.session_timeout)
    silent = Member(broker, impatient, topic)
    poll_until(lambda: silent.has(2), silent)
    other = Member(broker, group_config, topic)
    poll_until(lambda: other.has(2), other)
    with pytest.raises(BrokerError):
        silent.consumer.commit({TopicPartition(topic, 0): 1})
    assert other.consumer.committed([TopicPartition(topic, 0)]) == {}
    poll_in_spite_of_errors(silent, until=lambda: "lost" in {e for e, *_ in silent.journal})
    assert {event for event, *_ in silent.journal} == {"assigned", "lost"}
    silent.consumer.close()
    other.consumer.close()


def poll_in_spite_of_errors(member: Member, until: Callable[[], bool]) -> None:
    for _ in patiently():
        try:
            member.poll()
        except BrokerError:
            continue
        if until():
            return
    raise AssertionError("it did not come to that")


def test_a_consumer_without_a_group_commits_nothing(broker, unique_topic):
    consumer = broker.consumer(ConsumerConfig())
    partition = TopicPartition(unique_topic(partitions=1), 0)
    consumer.assign({partition: 0})
    assert read(consumer, 0) == []
    assert consumer.committed([partition]) == {}
    consumer.close()
