"""What is sent, where it goes, and what comes back of it."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from ratestream.streaming.errors import BrokerError, MessageTooLargeError
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
)
from tests.support.brokers import read, send, values

# Of eight partitions. The hashes of the first six are in Kafka's own UtilsTest.testMurmur2.
PARTITION_OF_KEY = {
    b"21": 4,
    b"foobar": 6,
    b"a-little-bit-long-string": 0,
    b"a-little-bit-longer-string": 3,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": 5,
    b"abc": 3,
    b"USDRUB": 7,
    b"\xff\x00\x80": 2,
}


@pytest.fixture
def reader(broker):
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        yield consumer


def test_records_of_a_partition_keep_their_order(broker, unique_topic, reader):
    topic = unique_topic(partitions=2)
    texts = [str(number) for number in range(3000)]
    send(broker, *values(topic, 1, *texts))
    reader.assign({TopicPartition(topic, 1): 0})
    records = read(reader, 3000)
    assert [record.value for record in records] == [text.encode() for text in texts]
    assert [record.offset for record in records] == list(range(3000))
    assert {record.topic_partition for record in records} == {TopicPartition(topic, 1)}


def test_a_key_chooses_the_partition_that_it_has_in_kafka(broker, unique_topic, reader):
    topic = unique_topic(partitions=8)
    send(broker, *(OutgoingRecord(topic, key, b"") for key in PARTITION_OF_KEY))
    reader.assign({TopicPartition(topic, number): 0 for number in range(8)})
    records = read(reader, len(PARTITION_OF_KEY))
    assert {record.key: record.partition for record in records} == PARTITION_OF_KEY


def test_a_given_partition_wins_over_the_key(broker, unique_topic):
    topic = unique_topic(partitions=8)
    sent = send(broker, OutgoingRecord(topic, b"foobar", b"", partition=2))
    assert sent == {TopicPartition(topic, 2): 1}


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"USDRUB", b"27.8325", (("service", b"data_processor"), ("reason", b"\xff\x00"))),
        (b"USDRUB", None, ()),
        (None, b"27.8325", (("reason", b""), ("reason", b"twice"))),
        (b"", b"", ()),
    ],
)
def test_what_is_sent_is_what_is_read(broker, unique_topic, reader, key, value, headers):
    topic = unique_topic(partitions=1)
    timestamp = time.time_ns() // 1_000_000 - 3_600_000  # an hour ago, well within retention
    send(broker, OutgoingRecord(topic, key, value, 0, timestamp, headers))
    reader.assign({TopicPartition(topic, 0): 0})
    assert read(reader, 1) == [Record(topic, 0, 0, key, value, timestamp, headers)]


def test_without_a_timestamp_it_is_the_time_of_sending(broker, unique_topic, reader):
    topic = unique_topic(partitions=1)
    before = time.time_ns() // 1_000_000
    send(broker, *values(topic, 0, "27.8325"))
    after = time.time_ns() // 1_000_000
    reader.assign({TopicPartition(topic, 0): 0})
    [record] = read(reader, 1)
    assert before <= record.timestamp <= after


def test_flush_returns_the_next_offsets_of_what_was_written_since_the_last(broker, unique_topic):
    topic = unique_topic(partitions=2)
    one, other = TopicPartition(topic, 0), TopicPartition(topic, 1)
    with closing(broker.producer(ProducerConfig())) as producer:
        producer.send([*values(topic, 0, "a", "b"), *values(topic, 1, "c")])
        assert producer.flush() == {one: 2, other: 1}
        producer.send(values(topic, 1, "d"))
        assert producer.flush() == {other: 2}
        assert producer.flush() == {}


def test_what_has_been_served_is_flushed_as_well(broker, unique_topic):
    topic = unique_topic(partitions=1)
    with closing(broker.producer(ProducerConfig(linger=0.0))) as producer:
        for number in range(3):
            producer.send(values(topic, 0, str(number)))
            time.sleep(0.1)  # long enough to be acknowledged, as a rule
            producer.serve()
        assert producer.flush() == {TopicPartition(topic, 0): 3}


def test_a_full_buffer_is_written_and_loses_nothing(broker, unique_topic, reader):
    topic = unique_topic(partitions=1)
    config = ProducerConfig(buffer_records=10, buffer_bytes=4096)
    with closing(broker.producer(config)) as producer:
        producer.send(values(topic, 0, *["x" * 100] * 95))
        assert producer.flush() == {TopicPartition(topic, 0): 95}


def test_a_record_too_large_is_refused_before_anything_is_queued(broker, unique_topic):
    topic = unique_topic(partitions=1)
    with closing(broker.producer(ProducerConfig(max_message_bytes=10_000))) as producer:
        with pytest.raises(MessageTooLargeError, match=r"max_message_bytes.* 10000"):
            producer.send(values(topic, 0, "small", "x" * 10_001))
        assert producer.flush() == {}
        producer.send(values(topic, 0, "x" * 10_000))
        assert producer.flush() == {TopicPartition(topic, 0): 1}


def test_a_topic_that_does_not_exist_cannot_be_written(broker):
    config = ProducerConfig(delivery_timeout=1.0)
    with closing(broker.producer(config)) as producer, pytest.raises(BrokerError):
        producer.send(values("no-such-topic", 0, "27.8325"))
        producer.flush()
