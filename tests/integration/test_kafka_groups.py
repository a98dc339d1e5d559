"""Consumer groups as the Kafka client sees them: on Tansu, which needs no Java, and on Apache Kafka
with both of its protocols."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from uuid import uuid4

import pytest

from ratestream.streaming.errors import BrokerError, ConfigurationError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig, KafkaConsumer
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from tests.support.brokers import patiently, read, send, values

A_MEMBER = """
import sys
from tests.integration.test_kafka_groups import Member
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig

address, protocol, topic = sys.argv[1:]
member = Member(KafkaBroker(KafkaConfig(address, group_protocol=protocol)), topic)
said = 0
while True:
    member.poll()
    if len(member.assigned_partitions) != said:
        said = len(member.assigned_partitions)
        print(said, flush=True)
"""


class Member:
    """A consumer with a listener that writes down what it is told."""

    def __init__(self, broker: KafkaBroker, topic: str, config: ConsumerConfig | None = None):
        self.consumer: KafkaConsumer = broker.consumer(config or group_config(topic))
        self.assigned_partitions: list[TopicPartition] = []
        self.revoked_partitions: list[TopicPartition] = []
        self.lost_partitions: list[TopicPartition] = []
        self.when_revoked: Callable[[Sequence[TopicPartition]], None] = lambda _: None
        self.consumer.subscribe([topic], self)

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.assigned_partitions += partitions
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.revoked_partitions += partitions
        self.when_revoked(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.lost_partitions += partitions

    def poll(self) -> None:
        self.consumer.poll(100, timeout=0.05)


def group_config(topic: str) -> ConsumerConfig:
    return ConsumerConfig(group=f"{topic}-group", session_timeout=2.0, heartbeat_interval=0.2)


KAFKA_KINDS = (
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("kafka-consumer-protocol", marks=pytest.mark.kafka),  # Tansu has it not
)


@pytest.fixture(params=("tansu", *KAFKA_KINDS))
def config(request: pytest.FixtureRequest) -> KafkaConfig:
    if request.param == "tansu":
        return KafkaConfig(request.getfixturevalue("tansu_address"))
    is_new = request.param == "kafka-consumer-protocol"
    address = request.getfixturevalue("kafka_address")
    return KafkaConfig(address, group_protocol="consumer" if is_new else "classic")


@pytest.fixture
def broker(config: KafkaConfig) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(config)
    yield broker
    broker.close()


@pytest.fixture
def topic(broker: KafkaBroker) -> str:
    name = f"quotes-{uuid4().hex[:8]}"
    broker.create_topics([TopicSpec(name, partitions=4)])
    return name


@contextmanager
def process_of_a_member(config: KafkaConfig, topic: str) -> Iterator[subprocess.Popen[str]]:
    given = (config.bootstrap_servers, config.group_protocol, topic)
    command = [sys.executable, "-c", A_MEMBER, *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_member_loses_its_partitions_to_another(config, broker, topic):
    with process_of_a_member(config, topic) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "4\n"
        member = Member(broker, topic)
        while len(member.consumer.assignment()) < 2:
            member.poll()
        other.kill()
        while len(member.consumer.assignment()) < 4:
            member.poll()
    assert member.lost_partitions == []
    member.consumer.close()


def test_a_member_may_commit_while_it_closes_in_the_middle_of_a_rebalance(broker, topic):
    first = Member(broker, topic)
    while len(first.assigned_partitions) < 4:
        first.poll()
    second = Member(broker, topic)
    while not first.revoked_partitions:
        first.poll()
        second.poll()
    while len(second.consumer.assignment()) < 2:  # the first has not heard of this generation
        second.poll()
    kept = first.consumer.assignment()
    first.when_revoked = lambda partitions: first.consumer.commit(dict.fromkeys(partitions, 0))
    first.consumer.close()
    assert second.consumer.committed(sorted(kept)) == dict.fromkeys(kept, 0)
    second.consumer.close()


def test_what_a_listener_raises_comes_out_of_poll(broker, topic):
    member = Member(broker, topic)
    while len(member.assigned_partitions) < 4:
        member.poll()

    def raise_it(_: Sequence[TopicPartition]) -> None:
        raise ValueError("from the listener")

    member.when_revoked = raise_it
    other = Member(broker, topic)

    def rebalance() -> None:
        while True:
            member.poll()
            other.poll()

    with pytest.raises(ValueError, match="from the listener"):
        rebalance()
    member.when_revoked = lambda _: None
    member.consumer.close()
    other.consumer.close()


def test_too_long_between_two_polls_names_the_setting(broker, topic):
    config = ConsumerConfig(
        group=f"{topic}-group", session_timeout=1.0, heartbeat_interval=0.2, max_poll_interval=1.0
    )
    member = Member(broker, topic, config)
    while len(member.assigned_partitions) < 4:
        member.poll()
    time.sleep(2.5)  # the slow work of an agent
    with pytest.raises(BrokerError, match=r"max_poll_interval=1\.0 s"):
        member.poll()
    while not member.lost_partitions:
        member.poll()
    member.consumer.close()


def test_a_position_passes_what_is_not_a_record(broker, topic):
    """A restore is finished when its position is at the end, whatever the log ends with."""
    partition = TopicPartition(topic, 1)
    send_in_a_transaction(broker, partition, b"27.8325")
    consumer = broker.consumer(ConsumerConfig())
    consumer.assign({partition: 0})
    records = []
    while consumer.position(partition) != 2:  # the record, and the end of its transaction
        records += consumer.poll(10, timeout=0.05)
    assert [record.value for record in records] == [b"27.8325"]
    assert consumer.watermarks(partition) == (0, 2)
    consumer.close()


def send_in_a_transaction(broker: KafkaBroker, partition: TopicPartition, value: bytes) -> None:
    with (
        closing(broker.consumer(ConsumerConfig())) as consumer,
        closing(broker.transactional_producer(ProducerConfig(), partition.topic)) as producer,
    ):
        producer.begin()
        producer.send([OutgoingRecord(partition.topic, None, value, partition.partition)])
        producer.commit({}, consumer)


def test_a_seek_after_an_eager_rebalance_moves_no_other_partition(config, topic):
    """Of partitions just assigned, whose committed offsets are still being looked up."""
    with closing(KafkaBroker(replace(config, partition_assignment="range"))) as broker:
        send(broker, *values(topic, 0, *"abc"), *values(topic, 1, *"def"), *values(topic, 2, "g"))
        member = Member(broker, topic)
        while len(member.assigned_partitions) < 4:
            member.poll()
        consumer = member.consumer
        consumer.resume([TopicPartition(topic, 0)])
        assert [record.value for record in read(consumer, 3)] == [b"a", b"b", b"c"]
        consumer.seek(TopicPartition(topic, 1), 2)
        consumer.resume([TopicPartition(topic, 1)])
        records = read(consumer, 1) + consumer.poll(10, timeout=0.5)
        assert [record.value for record in records] == [b"f"]
        consumer.resume([TopicPartition(topic, 2)])
        assert [record.value for record in read(consumer, 1)] == [b"g"]
        consumer.close()


@pytest.mark.parametrize("config", KAFKA_KINDS, indirect=True)
def test_a_static_member_comes_back_to_its_partitions(config, topic):
    """Within its session, and without a rebalance: the other one is told of nothing."""
    with closing(KafkaBroker(config)) as broker:
        of_group = ConsumerConfig(group=f"{topic}-group", session_timeout=6.0)
        first = Member(broker, topic, replace(of_group, instance_id="first"))
        other = Member(broker, topic, replace(of_group, instance_id="other"))
        for _ in patiently():
            first.poll()
            other.poll()
            if len(first.consumer.assignment()) == len(other.consumer.assignment()) == 2:
                break
        had = first.consumer.assignment()
        assert len(had) == 2
        told = len(other.assigned_partitions), len(other.revoked_partitions)
        first.consumer.close()
        other.consumer.poll(100, timeout=2.0)  # it would be told within a heartbeat
        again = Member(broker, topic, replace(of_group, instance_id="first"))
        for _ in patiently():
            again.poll()
            other.poll()
            if again.consumer.assignment():
                break
        assert again.consumer.assignment() == had
        assert (len(other.assigned_partitions), len(other.revoked_partitions)) == told
        assert other.lost_partitions == []
        again.consumer.close()
        other.consumer.close()


def test_tansu_is_refused_for_exactly_once(tansu_address):
    with closing(KafkaBroker(KafkaConfig(tansu_address))) as broker:
        broker.create_topics([TopicSpec("probe", partitions=1)])
        with pytest.raises(ConfigurationError, match=r"aborted transactions .* at_least_once"):
            broker.require_transactions("probe", "group", "probe-1")
