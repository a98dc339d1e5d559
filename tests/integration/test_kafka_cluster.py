"""What only Apache Kafka does: limits and settings of topics, and replicas that take over."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported in fact
    AdminClient,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
)

from ratestream.streaming.errors import BrokerError, MessageTooLargeError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig, KafkaConsumer
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
    Watermarks,
)
from tests.support.brokers import patiently, read, send, values
from tests.support.kafka_servers import KafkaCluster, start_kafka

pytestmark = pytest.mark.kafka

MEGABYTE = 1024 * 1024


@pytest.fixture
def broker_kind() -> str:
    return "kafka"


def random_record(topic: str, size: int) -> OutgoingRecord:
    """Random, so that no compression makes it smaller."""
    return OutgoingRecord(topic, b"key", random.Random(1).randbytes(size), partition=0)


def config_of(address: str, topic: str) -> dict[str, str | None]:
    return {name: entry.value for name, entry in described(address, topic).items()}


def own_config_of(address: str, topic: str) -> dict[str, str | None]:
    """What it was given, and not left to the broker."""
    return {
        name: entry.value
        for name, entry in described(address, topic).items()
        if ConfigSource(entry.source) is ConfigSource.DYNAMIC_TOPIC_CONFIG
    }


def described(address: str, topic: str) -> dict[str, ConfigEntry]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    with AdminClient({"bootstrap.servers": address}) as admin:
        entries: dict[str, ConfigEntry] = admin.describe_configs([resource])[resource].result()
    return entries


def test_a_topic_has_the_settings_it_was_made_with(kafka_address, unique_topic):
    topic = unique_topic(cleanup_policy="compact", retention_ms=-1, max_message_bytes=6 * MEGABYTE)
    config = config_of(kafka_address, topic)
    assert config["cleanup.policy"] == "compact"
    assert config["retention.ms"] == "-1"
    assert config["max.message.bytes"] == str(6 * MEGABYTE)


def test_a_changelog_keeps_deletions_for_a_day_whatever_its_broker_does_by_itself(
    kafka_address, unique_topic
):
    changelog, other = unique_topic(cleanup_policy="compact"), unique_topic()
    name = "delete.retention.ms"
    assert own_config_of(kafka_address, changelog)[name] == "86400000"
    assert name not in own_config_of(kafka_address, other)


def test_a_dead_letter_of_five_megabytes_passes_through(broker, unique_topic):
    topic = unique_topic(partitions=1, max_message_bytes=6 * MEGABYTE)
    record = random_record(topic, 5 * MEGABYTE)
    send(broker, record)
    consumer = broker.consumer(ConsumerConfig(buffer_bytes=MEGABYTE))
    consumer.assign({TopicPartition(topic, 0): 0})
    assert [each.value for each in read(consumer, 1)] == [record.value]
    consumer.close()


def test_a_record_that_the_topic_refuses_fails_the_flush(broker, unique_topic):
    topic = unique_topic(partitions=1, max_message_bytes=10_000)
    with pytest.raises(
        MessageTooLargeError, match=rf"1 records: {topic}\[0\]: .*MSG_SIZE_TOO_LARGE"
    ):
        send(broker, random_record(topic, 20_000))


def test_more_replicas_than_brokers_are_refused_by_name(broker):
    with pytest.raises(BrokerError, match="to create topic quotes-of-nine"):
        broker.create_topics([TopicSpec("quotes-of-nine", replication_factor=9)])


@pytest.fixture
def three_brokers(kafka_address: str) -> Iterator[KafkaCluster]:
    """Asks for `kafka_address` to run only where Apache Kafka is wanted."""
    with start_kafka(brokers=3) as cluster:
        yield cluster


@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_with_one_of_three_brokers(three_brokers):
    broker = KafkaBroker(KafkaConfig(three_brokers.bootstrap))
    broker.create_topics([TopicSpec("quotes", partitions=3, replication_factor=3)])
    assert config_of(three_brokers.bootstrap, "quotes")["min.insync.replicas"] == "2"
    producer = broker.producer(ProducerConfig())
    acknowledged = 0
    for turn in range(20):
        if turn == 10:
            three_brokers.kill(2)
        producer.send([OutgoingRecord("quotes", None, b"27.8325", n % 3) for n in range(100)])
        acknowledged = sum(producer.flush().values())
    consumer = broker.consumer(ConsumerConfig())
    consumer.assign({TopicPartition("quotes", n): 0 for n in range(3)})
    assert len(read(consumer, acknowledged)) == acknowledged == 2000
    assert broker.is_reachable()
    consumer.close()
    producer.close()
    broker.close()


def test_a_kafka_that_was_killed_can_be_asked_again(kafka_address):
    """Its partitions then have a new leader epoch, which a client that lived on does not know."""
    quotes = TopicPartition("quotes", 0)
    with start_kafka() as kafka, closing(KafkaBroker(KafkaConfig(kafka.bootstrap))) as broker:
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        send(broker, *values("quotes", 0, "1.0", "1.1"))
        with closing(broker.consumer(ConsumerConfig())) as consumer:
            assert consumer.watermarks(quotes) == Watermarks(0, 2)
            kafka.kill(1)
            kafka.start_again()
            assert eventual_watermarks(consumer, quotes) == Watermarks(0, 2)


def eventual_watermarks(consumer: KafkaConsumer, partition: TopicPartition) -> Watermarks | None:
    """As soon as it has a leader."""
    for _ in patiently():
        try:
            return consumer.watermarks(partition)
        except BrokerError:
            time.sleep(0.2)
    return None
