"""What the Kafka client says when it is told wrong things. No broker is needed."""

from __future__ import annotations

import logging

import pytest

from ratestream.streaming.errors import BrokerError, ConfigurationError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import (
    ConsumerConfig,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from tests.support.kafka_servers import free_port

PASSWORD = "correct horse battery staple"


@pytest.fixture
def nobody() -> KafkaConfig:
    """An address where nothing listens."""
    return KafkaConfig(f"127.0.0.1:{free_port()}", request_timeout=0.3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda broker: broker.cluster_id(),
        lambda broker: broker.create_topics([TopicSpec("quotes")]),
        lambda broker: broker.describe_topics(["quotes"]),
        lambda broker: broker.consumer(ConsumerConfig()).watermarks(
            TopicPartition("quotes", 0), timeout=0.3
        ),
    ],
    ids=["cluster_id", "create_topics", "describe_topics", "watermarks"],
)
def test_an_address_that_does_not_answer_is_named(nobody, ask):
    broker = KafkaBroker(nobody)
    with pytest.raises(BrokerError, match=nobody.bootstrap_servers):
        ask(broker)
    broker.close()


def test_the_password_is_in_no_repr_and_no_log_line(nobody, caplog):
    caplog.set_level(logging.DEBUG)
    config = KafkaConfig(
        nobody.bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="ratestream",
        sasl_password=PASSWORD,
        ssl_key_password=PASSWORD,
        request_timeout=0.3,
        extra={"sasl.password": PASSWORD},
    )
    broker = KafkaBroker(config)
    consumer = broker.consumer(ConsumerConfig(group="loader"))
    while "Connection refused" not in caplog.text:
        consumer.poll(1, timeout=0.05)
    with pytest.raises(BrokerError) as failure:
        broker.cluster_id()
    consumer.close()
    broker.close()
    assert PASSWORD not in repr(config) + repr(failure.value) + caplog.text


def test_an_unknown_setting_is_named(nobody):
    config = KafkaConfig(nobody.bootstrap_servers, extra={"linger.miles": "5"})
    with pytest.raises(ConfigurationError, match=r"linger\.miles"):
        KafkaBroker(config)


def test_an_unknown_partition_assignment_is_named():
    with pytest.raises(ConfigurationError, match="partition_assignment='sticky'"):
        KafkaConfig("127.0.0.1:9092", partition_assignment="sticky")  # type: ignore[arg-type]


def test_a_session_longer_than_the_poll_interval_is_refused(nobody):
    broker = KafkaBroker(nobody)
    config = ConsumerConfig(group="loader", session_timeout=20, max_poll_interval=10)
    with pytest.raises(ConfigurationError, match=r"max\.poll\.interval\.ms"):
        broker.consumer(config)
    broker.close()


def test_closing_a_producer_drops_what_was_not_delivered(nobody):
    broker = KafkaBroker(nobody)
    producer = broker.producer(ProducerConfig(delivery_timeout=3600))
    producer.close()
    producer.close()
    broker.close()
