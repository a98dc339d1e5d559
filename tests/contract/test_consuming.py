"""Reading given partitions from given positions, without a group."""

from __future__ import annotations

from contextlib import closing
from threading import Timer

import pytest

from ratestream.streaming.errors import BrokerError
from ratestream.streaming.types import ConsumerConfig, OffsetOutOfRange, TopicPartition
from tests.support.brokers import patiently, read, send, values


@pytest.fixture
def consumer(broker):
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        yield consumer


def offsets(records):
    return [record.offset for record in records]


def test_everything_is_read_up_to_the_watermark(broker, unique_topic, consumer):
    topic = unique_topic(partitions=3)
    sent = send(
        broker,
        *values(topic, 0, *["a"] * 500),
        *values(topic, 1, *["b"] * 300),
        *values(topic, 2, *["c"] * 10),
    )
    starts = {
        TopicPartition(topic, 0): 100,
        TopicPartition(topic, 1): 0,
        TopicPartition(topic, 2): 10,
    }
    consumer.assign(starts)
    records = read(consumer, 700)
    found = {tp: offsets(r for r in records if r.topic_partition == tp) for tp in starts}
    assert found == {tp: list(range(start, sent[tp])) for tp, start in starts.items()}
    assert {tp: consumer.position(tp) for tp in starts} == sent
    assert {tp: consumer.watermarks(tp).high for tp in starts} == sent
    assert consumer.assignment() == starts.keys()


def test_a_poll_returns_no_more_than_asked(broker, unique_topic, consumer):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    send(broker, *values(topic, 0, *map(str, range(10))))
    consumer.assign({partition: 0})
    polled = []
    for _ in patiently():
        records = consumer.poll(3, timeout=0.1)
        assert len(records) <= 3
        polled += offsets(records)
        assert consumer.position(partition) == len(polled)
        if len(polled) == 10:
            break
    assert polled == list(range(10))


@pytest.mark.timeout(60)
def test_a_poll_returns_when_something_arrives(broker, unique_topic, consumer):
    topic = unique_topic(partitions=1)
    consumer.assign({TopicPartition(topic, 0): 0})
    later = Timer(0.5, send, (broker, *values(topic, 0, "27.8325")))
    later.start()
    assert offsets(consumer.poll(1000, timeout=600)) == [0]
    later.join()


def test_a_poll_of_nothing_is_empty_after_its_timeout(unique_topic, consumer):
    consumer.assign({TopicPartition(unique_topic(partitions=1), 0): 0})
    assert consumer.poll(10, timeout=0.05) == []
    consumer.assign({})
    assert consumer.poll(10, timeout=0.05) == []


def test_a_paused_partition_is_silent_until_it_is_resumed(broker, unique_topic, consumer):
    topic = unique_topic(partitions=2)
    one, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    send(broker, *values(topic, 0, "a", "b"), *values(topic, 1, "c"))
    consumer.assign({one: 0, other: 0})
    consumer.pause([one])
    records = read(consumer, 1) + consumer.poll(10, timeout=0.3)
    assert [record.value for record in records] == [b"c"]
    assert consumer.position(one) == 0
    consumer.resume([one])
    assert [record.value for record in read(consumer, 2)] == [b"a", b"b"]


def test_a_seek_goes_back_and_forth(broker, unique_topic, consumer):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    send(broker, *values(topic, 0, *map(str, range(100))))
    consumer.assign({partition: 0})
    read(consumer, 10, max_records=10)
    consumer.seek(partition, 95)
    assert consumer.position(partition) == 95
    assert offsets(read(consumer, 5)) == [95, 96, 97, 98, 99]
    consumer.seek(partition, 2)
    assert offsets(read(consumer, 2, max_records=2)) == [2, 3]


def test_a_new_assignment_replaces_the_old(broker, unique_topic, consumer):
    topic = unique_topic(partitions=2)
    send(broker, *values(topic, 0, "a", "b"), *values(topic, 1, "c"))
    consumer.assign({TopicPartition(topic, 0): 0})
    read(consumer, 1, max_records=1)
    consumer.assign({TopicPartition(topic, 1): 0})
    records = read(consumer, 1) + consumer.poll(10, timeout=0.3)
    assert [record.value for record in records] == [b"c"]
    assert consumer.assignment() == {TopicPartition(topic, 1)}


@pytest.mark.parametrize(("reset", "first"), [("earliest", 0), ("latest", 3)])
def test_an_offset_out_of_range_starts_where_the_reset_says(broker, unique_topic, reset, first):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    send(broker, *values(topic, 0, "a", "b", "c"))
    with closing(broker.consumer(ConsumerConfig(offset_reset=reset))) as consumer:
        consumer.assign({partition: 1000})
        records = []
        for _ in patiently():
            records += consumer.poll(10, timeout=0.1)
            if consumer.position(partition) == 3:
                break
        assert consumer.position(partition) == 3
        send(broker, *values(topic, 0, "d"))
        records += read(consumer, 1)
    assert offsets(records) == list(range(first, 4))


def test_an_offset_out_of_range_is_an_error_if_so_configured(broker, unique_topic):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    send(broker, *values(topic, 0, "a", "b", "c"))
    with closing(broker.consumer(ConsumerConfig(offset_reset="error"))) as consumer:
        consumer.assign({partition: 1000})
        with pytest.raises(OffsetOutOfRange) as caught:
            read(consumer, 1)
        assert caught.value.partition == partition
        consumer.seek(partition, 1)
        assert offsets(read(consumer, 2)) == [1, 2]


def test_watermarks_of_a_missing_partition_are_an_error(unique_topic, consumer):
    with pytest.raises(BrokerError):
        consumer.watermarks(TopicPartition(unique_topic(partitions=1), 7), timeout=5.0)
