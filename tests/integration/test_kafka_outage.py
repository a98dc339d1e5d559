"""A broker that goes away and comes back. Tansu speaks the protocol, so no Java is needed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

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
from tests.support.kafka_servers import free_port, tansu_process

QUOTES = TopicPartition("quotes", 0)
QUOTE = OutgoingRecord("quotes", b"USDRUB", b"27.8325", partition=0)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def broker(port: int) -> Iterator[KafkaBroker]:
    broker = KafkaBroker(KafkaConfig(f"127.0.0.1:{port}", request_timeout=5.0))
    yield broker
    broker.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """pytest-timeout is the limit."""
    while not condition():
        time.sleep(0.02)


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Returns when it stands still, which it may not at once."""
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def test_what_is_sent_while_the_broker_is_frozen_is_delivered_when_it_wakes(port, broker):
    with tansu_process(port) as tansu:
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        producer = broker.producer(ProducerConfig())
        producer.send([QUOTE])
        assert producer.flush() == {QUOTES: 1}
        freeze(tansu)
        wake = threading.Timer(0.5, tansu.send_signal, [signal.SIGCONT])
        wake.start()
        producer.send([QUOTE, QUOTE])
        assert producer.flush() == {QUOTES: 3}
        wake.join()
        producer.close()


def test_what_is_not_acknowledged_in_time_has_failed(port, broker):
    with tansu_process(port) as tansu:
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        producer = broker.producer(ProducerConfig(delivery_timeout=1.0))
        producer.send([QUOTE])
        producer.flush()
        freeze(tansu)
        producer.send([QUOTE, QUOTE])
        with pytest.raises(DeliveryError, match=r"did not acknowledge 2 records: quotes\[0\]"):
            producer.flush()
        producer.close()


def test_an_outage_ends_with_the_next_connection_and_not_with_a_client(port, broker):
    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        consumer = broker.consumer(ConsumerConfig())
        consumer.assign({QUOTES: 0})
        wait_until(lambda: consumer.poll(10, 0.05) == [] and consumer.position(QUOTES) == 0)
    wait_until(lambda: consumer.poll(10, 0.05) == [] and not broker.is_reachable())
    consumer.close()
    assert not broker.is_reachable()
    with tansu_process(port):
        consumer = broker.consumer(ConsumerConfig())
        wait_until(lambda: consumer.poll(10, 0.05) == [] and broker.is_reachable())
        consumer.close()


def test_an_outage_ends_for_who_only_produces(port, broker):
    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        producer = broker.producer(ProducerConfig(delivery_timeout=1.0))
        producer.send([QUOTE])
        producer.flush()
    producer.send([QUOTE])
    with pytest.raises(DeliveryError):
        producer.flush()
    producer.close()
    assert not broker.is_reachable()
    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        producer = broker.producer(ProducerConfig())
        producer.send([QUOTE])
        producer.flush()
        assert broker.is_reachable()
        producer.close()
        assert broker.is_reachable()


def test_an_outage_is_told_once_and_so_is_its_end(port, broker, caplog):
    caplog.set_level(logging.INFO)
    consumer = broker.consumer(ConsumerConfig())

    def reachable() -> bool:
        assert consumer.poll(10, timeout=0.05) == []
        return bool(broker.is_reachable())

    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        consumer.assign({QUOTES: 0})
        wait_until(lambda: consumer.position(QUOTES) == 0 and reachable())
    wait_until(lambda: not reachable())
    for _ in range(20):  # some more refused connections
        reachable()
    with tansu_process(port):
        wait_until(reachable)
    consumer.close()
    told = [record.getMessage() for record in caplog.records]
    assert [line.split(" is ")[1].split(":")[0] for line in told] == [
        "unreachable",
        "reachable again",
    ]
    assert all(f"127.0.0.1:{port}" in line for line in told)


def test_an_outage_is_seen_although_a_client_is_not_polled(port, broker):
    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        consumer, idle = (broker.consumer(ConsumerConfig()) for _ in range(2))
        for each in (consumer, idle):
            each.assign({QUOTES: 0})
            each.poll(10, 2.0)  # long enough for its first statistics
    wait_until(lambda: consumer.poll(10, 0.05) == [] and not broker.is_reachable())
    consumer.close()
    idle.close()


def test_a_commit_during_an_outage_ends_and_so_does_the_consumer(port):
    broker = KafkaBroker(KafkaConfig(f"127.0.0.1:{port}", request_timeout=2.0))
    with tansu_process(port):
        broker.create_topics([TopicSpec("quotes", partitions=1)])
        consumer = broker.consumer(ConsumerConfig(group="loader", session_timeout=2.0))
        consumer.subscribe(["quotes"], Owner())
        wait_until(lambda: consumer.poll(10, 0.05) == [] and bool(consumer.assignment()))
        consumer.commit({QUOTES: 1})
    with pytest.raises(BrokerError, match=r"a commit of group loader within request_timeout=2.0 s"):
        consumer.commit({QUOTES: 2})
    consumer.close()
    broker.close()


class Owner:
    """Takes what the group gives it."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None: ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...
