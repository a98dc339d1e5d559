"""Transactions: records and offsets that happen together or not at all."""

from __future__ import annotations

import gc
import random
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from uuid import uuid4

import pytest

from ratestream.streaming.errors import (
    BrokerError,
    FencedError,
    MessageTooLargeError,
    StreamingError,
    TransactionAbortedError,
)
from ratestream.streaming.kafka import KafkaBroker
from ratestream.streaming.types import (
    Broker,
    Consumer,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TransactionalProducer,
)
from tests.support.brokers import GROUP_BROKER_KINDS, patiently, read, send, values
from tests.support.members import Member, poll_until

MakeProducer = Callable[..., TransactionalProducer]


@pytest.fixture(params=GROUP_BROKER_KINDS)
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def transactional_producer(broker: Broker) -> Iterator[MakeProducer]:
    """Makes producers, each with an id of its own unless one is given."""
    with ExitStack() as closing_all:

        def make(transactional_id: str | None = None, **settings: object) -> TransactionalProducer:
            config = ProducerConfig(**settings)  # type: ignore[arg-type]
            producer = broker.transactional_producer(
                config, transactional_id or f"id-{uuid4().hex[:12]}"
            )
            closing_all.callback(producer.close)
            return producer

        yield make


@pytest.fixture
def producer(transactional_producer: MakeProducer) -> TransactionalProducer:
    return transactional_producer()


@pytest.fixture
def reader(broker: Broker) -> Iterator[Consumer]:
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        yield consumer


def texts(consumer: Consumer, *partitions: TopicPartition) -> list[str]:
    """Everything that can be read of these now, up to the end of their logs, which the reader's
    positions must reach."""
    consumer.assign(dict.fromkeys(partitions, 0))
    ends = {partition: consumer.log_end(partition) for partition in partitions}
    records = []
    for _ in patiently():
        if all((consumer.position(each) or 0) >= end for each, end in ends.items()):
            break
        records += consumer.poll(1000, timeout=0.1)
    else:
        raise AssertionError(f"the reader does not reach {ends}")
    return [(record.value or b"").decode() for record in records]


def wait_until_written(broker: Broker, reader: Consumer, partition: TopicPartition) -> None:
    """Until the broker has what was sent in an open transaction, if it takes it at all then."""
    before = reader.watermarks(partition).high
    if isinstance(broker, KafkaBroker):
        for _ in patiently():
            if reader.log_end(partition) > before:
                return
        raise AssertionError("nothing was written")


def joined(broker: Broker, config: ConsumerConfig, topic: str, partitions: int) -> Member:
    member = Member(broker, config, topic)
    poll_until(lambda: member.has(partitions), member)
    return member


def test_a_commit_shows_records_and_offsets(broker, unique_topic, group_config, producer, reader):
    source, output = unique_topic(partitions=1), unique_topic(partitions=2)
    read_from, one, other = (
        TopicPartition(source, 0),
        TopicPartition(output, 0),
        TopicPartition(output, 1),
    )
    member = joined(broker, group_config, source, 1)
    producer.begin()
    producer.send(values(output, 0, "a", "b"))
    producer.send([*values(output, 1, "c"), *values(output, 0, "d")])
    assert producer.commit({read_from: 7}, member.consumer) == {one: 3, other: 1}
    assert texts(reader, one) == ["a", "b", "d"]
    assert texts(reader, other) == ["c"]
    assert member.consumer.committed([read_from]) == {read_from: 7}
    member.consumer.close()


def test_transactions_follow_one_another(unique_topic, producer, reader):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    for n in range(5):
        producer.begin()
        producer.send(values(topic, 0, *(f"{n}-{m}" for m in range(100))))
        end = producer.commit({}, reader)[partition]
        assert end <= reader.log_end(partition) <= end + 1
    assert texts(reader, partition) == [f"{n}-{m}" for n in range(5) for m in range(100)]


def test_offsets_alone_can_be_committed(broker, unique_topic, group_config, producer):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    member = joined(broker, group_config, topic, 1)
    for offset in (3, 9):
        producer.begin()
        assert producer.commit({partition: offset}, member.consumer) == {}
        assert member.consumer.committed([partition]) == {partition: offset}
    member.consumer.close()


def test_nothing_can_be_committed(producer, reader):
    for _ in range(2):
        producer.begin()
        assert producer.commit({}, reader) == {}


def test_an_open_transaction_is_not_read(broker, unique_topic, producer, reader):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    send(broker, *values(topic, 0, "before"))
    producer.begin()
    producer.send(values(topic, 0, "a", "b"))
    wait_until_written(broker, reader, partition)
    assert reader.watermarks(partition) == (0, 1)
    assert reader.log_end(partition) >= 1
    reader.assign({partition: 0})
    assert [record.value for record in read(reader, 1)] == [b"before"]
    assert reader.poll(10, timeout=0.5) == []
    assert reader.position(partition) == 1
    producer.commit({}, reader)
    assert [record.value for record in read(reader, 2)] == [b"a", b"b"]
    assert reader.watermarks(partition).high == reader.log_end(partition)


def test_an_abort_leaves_nothing_to_read(broker, unique_topic, producer, reader):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    producer.begin()
    producer.send(values(topic, 0, "a", "b"))
    wait_until_written(broker, reader, partition)
    producer.abort()
    assert texts(reader, partition) == []
    producer.begin()
    producer.send(values(topic, 0, "c"))
    producer.commit({}, reader)
    assert texts(reader, partition) == ["c"]


def test_an_abort_may_come_before_anything_was_sent(producer, reader):
    producer.begin()
    producer.abort()
    producer.begin()
    assert producer.commit({}, reader) == {}


def test_of_two_producers_with_one_id_the_first_cannot_commit(
    broker, unique_topic, group_config, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    member = joined(broker, group_config, topic, 1)
    first = transactional_producer("the-id-of-two")
    first.begin()
    first.send(values(topic, 0, "zombie"))
    wait_until_written(broker, reader, partition)
    second = transactional_producer("the-id-of-two")
    assert texts(reader, partition) == []
    with pytest.raises(FencedError):
        first.commit({partition: 1}, member.consumer)
    with pytest.raises(StreamingError):
        first.begin()
    assert member.consumer.committed([partition]) == {}
    second.begin()
    second.send(values(topic, 0, "successor"))
    second.commit({partition: 1}, member.consumer)
    assert texts(reader, partition) == ["successor"]
    assert member.consumer.committed([partition]) == {partition: 1}
    member.consumer.close()


def test_a_fenced_producer_does_not_disturb_its_successor(
    unique_topic, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    first = transactional_producer("the-id-of-both")
    second = transactional_producer("the-id-of-both")
    second.begin()
    second.send(values(topic, 0, "successor"))
    with pytest.raises(FencedError):  # which of them notices is the broker's affair
        first.begin()
        first.send(values(topic, 0, "zombie"))
        first.commit({}, reader)
    first.close()
    second.commit({}, reader)
    assert texts(reader, TopicPartition(topic, 0)) == ["successor"]


def test_a_fenced_producer_is_gone_when_it_is_closed(broker, unique_topic, reader):
    """With its threads and connections: the worker behind it goes on in the same process."""
    topic = unique_topic(partitions=1)
    first = broker.transactional_producer(ProducerConfig(), topic)
    first.begin()
    first.send(values(topic, 0, "1", "2", "3"))
    broker.transactional_producer(ProducerConfig(), topic).close()
    with suppress(FencedError):  # when it is told is the broker's affair
        first.send(values(topic, 0, "4", "5"))
        first.commit({}, reader)
    first.close()
    remains = weakref.ref(first)
    del first

    def is_gone() -> bool:
        gc.collect()
        return remains() is None

    poll_until(is_gone)  # the thread of its last call may have to end yet


def test_a_partition_that_was_revoked_cannot_be_committed(
    broker, unique_topic, group_config, producer, reader
):
    source, output = unique_topic(partitions=2), unique_topic(partitions=1)
    first = joined(broker, group_config, source, 2)
    first.revoked = lambda partitions: None  # type: ignore[method-assign]
    had = first.consumer.assignment()
    second = Member(broker, group_config, source)
    poll_until(lambda: first.has(1) and second.has(1), first, second)
    [gone] = had - first.consumer.assignment()
    [kept] = first.consumer.assignment()
    assert_refused(producer, output, {gone: 1, kept: 1}, first.consumer)
    assert_refused(producer, output, {gone: 1}, first.consumer)
    assert first.consumer.committed([gone, kept]) == {}
    producer.begin()
    producer.send(values(output, 0, "kept"))
    producer.commit({kept: 1}, first.consumer)
    assert texts(reader, TopicPartition(output, 0)) == ["kept"]
    assert first.consumer.committed([gone, kept]) == {kept: 1}
    first.consumer.close()
    second.consumer.close()


def test_a_member_that_the_group_has_forgotten_cannot_commit(
    broker, unique_topic, group_config, producer, reader
):
    source, output = unique_topic(partitions=2), unique_topic(partitions=1)
    impatient = replace(group_config, max_poll_interval=group_config.session_timeout)
    zombie = joined(broker, impatient, source, 2)
    other = joined(broker, group_config, source, 2)
    partition = TopicPartition(source, 0)
    assert zombie.consumer.assignment() == other.consumer.assignment()  # it does not know yet
    for _ in range(2):
        assert_refused(producer, output, {partition: 1}, zombie.consumer)
    assert other.consumer.committed([partition]) == {}
    assert texts(reader, TopicPartition(output, 0)) == []
    producer.begin()
    producer.commit({partition: 5}, other.consumer)
    assert other.consumer.committed([partition]) == {partition: 5}
    zombie.consumer.close()
    other.consumer.close()


def assert_refused(
    producer: TransactionalProducer,
    output: str,
    offsets: dict[TopicPartition, int],
    consumer: Consumer,
) -> None:
    producer.begin()
    producer.send(values(output, 0, "zombie"))
    with pytest.raises(TransactionAbortedError):
        producer.commit(offsets, consumer)


def test_what_is_read_is_committed_while_partitions_are_given_away(
    broker, unique_topic, group_config, transactional_producer, reader
):
    source, output = unique_topic(partitions=2), unique_topic(partitions=1)
    send(broker, *values(source, 0, "a", "b"), *values(source, 1, "c", "d"))
    first = Copier(broker, group_config, source, output, transactional_producer())
    poll_until(lambda: len(first.records) == 4, first)
    second = Copier(broker, group_config, source, output, transactional_producer())
    poll_until(lambda: first.has(1) and second.has(1), first, second)
    first.consumer.close()
    poll_until(lambda: second.has(2), second)
    partitions = [TopicPartition(source, n) for n in range(2)]
    assert second.consumer.committed(partitions) == dict.fromkeys(partitions, 2)
    second.poll()
    second.consumer.close()
    assert sorted(texts(reader, TopicPartition(output, 0))) == ["a", "b", "c", "d"]


class Copier(Member):
    """Copies what it has read, in one transaction with its positions, when it must give away."""

    def __init__(
        self,
        broker: Broker,
        config: ConsumerConfig,
        source: str,
        output: str,
        producer: TransactionalProducer,
    ) -> None:
        self.output = output
        self.producer = producer
        self.copied = 0
        super().__init__(broker, config, source)

    def commit(self, partitions: Sequence[TopicPartition]) -> None:
        mine = self.consumer.assignment()
        positions = {each: self.consumer.position(each) for each in mine}
        self.producer.begin()
        self.producer.send(
            [OutgoingRecord(self.output, None, r.value, 0) for r in self.records[self.copied :]]
        )
        self.producer.commit(
            {each: at for each, at in positions.items() if at is not None}, self.consumer
        )
        self.copied = len(self.records)


def test_a_record_too_large_leaves_the_transaction_open(
    unique_topic, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    producer = transactional_producer(max_message_bytes=10_000)
    producer.begin()
    producer.send(values(topic, 0, "small"))
    with pytest.raises(MessageTooLargeError):
        producer.send(values(topic, 0, "tiny", "x" * 10_001))
    producer.commit({}, reader)
    assert texts(reader, TopicPartition(topic, 0)) == ["small"]


def test_a_record_that_its_topic_refuses_aborts_the_transaction(unique_topic, producer, reader):
    topic = unique_topic(partitions=2, max_message_bytes=10_000)
    incompressible = OutgoingRecord(topic, None, random.Random(1).randbytes(20_000), 1)
    producer.begin()
    producer.send(values(topic, 0, "small"))
    with pytest.raises(MessageTooLargeError):  # some brokers know it when it is sent
        producer.send([incompressible])
        producer.commit({}, reader)
        raise AssertionError("it was taken")
    producer.close()
    assert texts(reader, TopicPartition(topic, 0), TopicPartition(topic, 1)) == []


@pytest.mark.parametrize(
    "calls",
    [("begin", "begin"), ("send",), ("commit",), ("abort",), ("begin", "abort", "send")],
    ids="-".join,
)
def test_calls_out_of_order_are_an_error(unique_topic, producer, reader, calls):
    topic = unique_topic(partitions=1)
    arguments: dict[str, tuple[object, ...]] = {
        "send": (values(topic, 0, "a"),),
        "commit": ({}, reader),
    }
    *before, last = calls
    for name in before:
        getattr(producer, name)(*arguments.get(name, ()))
    with pytest.raises(StreamingError):
        getattr(producer, last)(*arguments.get(last, ()))


def test_a_topic_that_does_not_exist_aborts_the_transaction(
    unique_topic, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    producer = transactional_producer(delivery_timeout=1.0)
    producer.begin()
    with pytest.raises(BrokerError):  # some brokers know it when it is sent
        producer.send([*values(topic, 0, "a"), *values("no-such-topic", 0, "b")])
        producer.commit({}, reader)
    producer.close()
    assert texts(reader, TopicPartition(topic, 0)) == []


def test_a_closed_producer_leaves_nothing_behind(
    broker, unique_topic, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    producer = transactional_producer(transaction_timeout=600.0)
    producer.begin()
    producer.send(values(topic, 0, "a"))
    wait_until_written(broker, reader, partition)
    producer.close()
    producer.close()
    assert texts(reader, partition) == []
    send(broker, *values(topic, 0, "after"))
    assert texts(reader, partition) == ["after"]


def test_a_transaction_open_for_too_long_is_aborted(
    broker, unique_topic, transactional_producer, reader
):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    producer = transactional_producer(transaction_timeout=1.0)
    producer.begin()
    producer.send(values(topic, 0, "late"))
    wait_until_written(broker, reader, partition)
    time.sleep(1.5)
    for _ in patiently():  # Kafka looks for such transactions every 10 s
        if reader.watermarks(partition).high == reader.log_end(partition):
            break
        time.sleep(0.2)
    with pytest.raises((TransactionAbortedError, FencedError)):
        producer.commit({}, reader)
    assert texts(reader, partition) == []


def test_this_broker_may_be_used_for_exactly_once(broker, unique_topic, group_config):
    """By a group that has members, too."""
    source, probe = unique_topic(partitions=1), unique_topic(partitions=1)
    broker.require_transactions(probe, group_config.group, f"{probe}-one")
    member = joined(broker, group_config, source, 1)
    for name in ("one", "other", "one"):
        broker.require_transactions(probe, group_config.group, f"{probe}-{name}")
    member.poll()
    assert member.has(1)
    member.consumer.close()
