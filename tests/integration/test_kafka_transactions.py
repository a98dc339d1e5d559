"""Transactions on Apache Kafka when something dies in the middle of one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from uuid import uuid4

import pytest

from ratestream.streaming.errors import (
    BrokerError,
    ConfigurationError,
    FencedError,
    TransactionAbortedError,
)
from ratestream.streaming.kafka import (
    KafkaBroker,
    KafkaConfig,
    KafkaConsumer,
    KafkaTransactionalProducer,
)
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from tests.support.brokers import patiently, read, send, values
from tests.support.kafka_servers import KafkaCluster, start_kafka
from tests.support.members import Member, poll_until

pytestmark = pytest.mark.kafka

# Far longer than a test lasts: what ends a transaction here is not its time.
FOR_EVER = ProducerConfig(transaction_timeout=600.0)

A_PRODUCER = """
import sys
from ratestream.streaming.errors import FencedError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import ConsumerConfig, OutgoingRecord, ProducerConfig

address, topic = sys.argv[1:]
broker = KafkaBroker(KafkaConfig(address))
consumer = broker.consumer(ConsumerConfig())
producer = broker.transactional_producer(ProducerConfig(transaction_timeout=600.0), topic)
producer.begin()
producer.send([OutgoingRecord(topic, None, b"zombie", 0)])
producer.flush()
print("open", flush=True)
sys.stdin.readline()
try:
    producer.commit({}, consumer)
    print("committed", flush=True)
except FencedError:
    print("fenced", flush=True)
"""


@pytest.fixture
def broker_kind() -> str:
    return "kafka"


@contextmanager
def process_with_an_open_transaction(
    address: str, topic: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """And what it says; a line makes it commit."""
    said: list[str] = []
    command = [sys.executable, "-c", A_PRODUCER, address, topic]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield process, said
            said += process.stdout.read().splitlines()
        finally:
            process.kill()


def test_the_successor_of_a_killed_producer_frees_its_readers(kafka_address, broker, unique_topic):
    topic = unique_topic(partitions=1)
    partition = TopicPartition(topic, 0)
    with closing(broker.consumer(ConsumerConfig())) as reader:
        with process_with_an_open_transaction(kafka_address, topic) as (process, _):
            process.kill()
            process.wait()
        send(broker, *values(topic, 0, "behind"))
        reader.assign({partition: 0})
        assert reader.poll(10, timeout=0.5) == []  # as long as 10 minutes, if nothing is done
        with closing(broker.transactional_producer(FOR_EVER, topic)):
            assert [record.value for record in read(reader, 1)] == [b"behind"]
            assert reader.watermarks(partition).high == reader.log_end(partition)


def test_a_paused_producer_that_wakes_up_late_is_fenced(kafka_address, broker, unique_topic):
    topic = unique_topic(partitions=1)
    with (
        process_with_an_open_transaction(kafka_address, topic) as (process, said),
        closing(broker.consumer(ConsumerConfig())) as reader,
        closing(broker.transactional_producer(FOR_EVER, topic)) as successor,
    ):
        process.send_signal(signal.SIGSTOP)
        commit(successor, reader, topic, "successor")
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None
        process.stdin.write("commit\n")
        process.stdin.close()
        process.wait(timeout=30)
        commit(successor, reader, topic, "successor, again")
        reader.assign({TopicPartition(topic, 0): 0})
        records = read(reader, 2) + reader.poll(10, timeout=0.5)
        assert [record.value for record in records] == [b"successor", b"successor, again"]
    assert said == ["fenced"]


def commit(
    producer: KafkaTransactionalProducer, consumer: KafkaConsumer, topic: str, text: str
) -> None:
    producer.begin()
    producer.send(values(topic, 0, text))
    producer.commit({}, consumer)


@pytest.mark.timeout(240)
def test_transactions_outlive_the_death_of_brokers(kafka_address):
    """Each of 40 is committed once, as the group's offset says, with one broker of three killed in
    the middle of two of them."""
    with (
        start_kafka(brokers=3) as cluster,
        closing(KafkaBroker(KafkaConfig(cluster.bootstrap))) as broker,
    ):
        broker.create_topics([TopicSpec(name, 1, 3) for name in ("source", "output")])
        send(broker, *values("source", 0, *map(str, range(40))))
        copy_with_accidents(broker, cluster, count=40)
        with closing(broker.consumer(ConsumerConfig())) as reader:
            output = TopicPartition("output", 0)
            reader.assign({output: 0})
            records = read(reader, 40 * 50)
            while (reader.position(output) or 0) < reader.log_end(output):
                records += reader.poll(100, timeout=0.1)
        assert [record.value for record in records] == [
            b"%d" % n for n in range(40) for _ in range(50)
        ]


def copy_with_accidents(broker: KafkaBroker, cluster: KafkaCluster, count: int) -> None:
    """Fifty copies of each record of "source" to "output", in a transaction with its offset."""
    source = TopicPartition("source", 0)
    accidents = {10: 1, 25: 2}
    member = Member(broker, ConsumerConfig(group="copiers"), "source")
    poll_until(lambda: member.has(1), member)
    producer = broker.transactional_producer(ProducerConfig(), "copier")
    for _ in patiently(150.0):
        done = member.consumer.committed([source]).get(source, 0)
        if done == count:
            break
        if accidents.get(done) == 2:
            cluster.start_again()
        try:
            producer.begin()
            producer.send([OutgoingRecord("output", None, b"%d" % done, 0)] * 50)
            if done in accidents:
                cluster.kill(accidents.pop(done))
            producer.commit({source: done + 1}, member.consumer)
        except TransactionAbortedError:
            member.poll()
        except BrokerError:
            producer.close()
            producer = eventual_producer(broker)
    producer.close()
    member.commit = lambda partitions: None  # type: ignore[method-assign]
    member.consumer.close()
    assert not accidents


def eventual_producer(broker: KafkaBroker) -> KafkaTransactionalProducer:
    for _ in patiently():
        with suppress(BrokerError):
            return broker.transactional_producer(ProducerConfig(), "copier")
    raise AssertionError("no producer")


@pytest.mark.timeout(120)
def test_without_an_answer_a_commit_ends_in_time_and_its_successor_knows(kafka_address):
    """Kafka is frozen between the last acknowledgement and the commit."""
    with (
        start_kafka() as cluster,
        closing(KafkaBroker(KafkaConfig(cluster.bootstrap, request_timeout=2.0))) as broker,
        closing(broker.consumer(ConsumerConfig())) as reader,
    ):
        broker.create_topics([TopicSpec("quotes", 1)])
        producer = broker.transactional_producer(ProducerConfig(delivery_timeout=3.0), "one")
        producer.begin()
        producer.send(values("quotes", 0, "a"))
        producer.flush()
        cluster.freeze(1)
        thaw = threading.Timer(60.0, cluster.thaw, (1,))
        thaw.start()
        with pytest.raises(BrokerError) as caught:
            producer.commit({}, reader)
        assert not isinstance(caught.value, TransactionAbortedError | FencedError)
        producer.close()
        with pytest.raises(BrokerError):
            broker.transactional_producer(ProducerConfig(), "one")
        assert thaw.is_alive()  # all of that was over before
        thaw.cancel()
        cluster.thaw(1)
        for _ in patiently():
            with suppress(BrokerError):
                broker.transactional_producer(ProducerConfig(), "one").close()
                break
        quotes = TopicPartition("quotes", 0)
        assert reader.watermarks(quotes).high == reader.log_end(quotes)


class ForgetfulBroker(KafkaBroker):
    """Drops the offsets of a group that are committed in a transaction."""

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> KafkaTransactionalProducer:
        producer = super().transactional_producer(config, transactional_id)
        commit = producer.commit
        producer.commit = lambda offsets, consumer: commit({}, consumer)  # type: ignore[method-assign]
        return producer


class LenientBroker(KafkaBroker):
    """Fences nobody."""

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> KafkaTransactionalProducer:
        return super().transactional_producer(config, f"{transactional_id}-{uuid4()}")


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (ForgetfulBroker, "drops the offsets of a group that are committed in a transaction"),
        (LenientBroker, "lets a producer commit after another one has taken its transactional id"),
    ],
)
def test_a_broker_that_does_less_than_kafka_is_refused(kafka_address, unique_topic, kind, missing):
    probe = unique_topic(partitions=1)
    with (
        closing(kind(KafkaConfig(kafka_address))) as broker,
        pytest.raises(ConfigurationError, match=f"{missing}.*set processing_guarantee to"),
    ):
        broker.require_transactions(probe, f"{probe}-group", f"{probe}-1")
