"""What the Kafka client says when it is told wrong things. No broker is needed."""

from __future__ import annotations

import logging
import traceback
from contextlib import closing

import pytest

from ratestream.streaming.errors import AccessError, BrokerError, ConfigurationError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import (
    ConsumerConfig,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from tests.support.certificates import Authority
from tests.support.half_servers import (
    server_that_hangs_up_at_the_login,
    server_without_transactions,
    tls_server,
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


def test_a_connection_lost_at_the_login_is_an_outage_and_no_refusal():
    with server_that_hangs_up_at_the_login() as address:
        config = KafkaConfig(
            address,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="ratestream",
            sasl_password=PASSWORD,
            request_timeout=1.0,
        )
        with closing(KafkaBroker(config)) as broker, pytest.raises(BrokerError) as failure:
            broker.cluster_id()
    assert not isinstance(failure.value, AccessError)
    assert "PLAIN mechanism handshake failed" in str(failure.value)


def test_a_broker_that_knows_no_transactions_is_not_waited_for():
    with (
        server_without_transactions() as address,
        closing(KafkaBroker(KafkaConfig(address))) as broker,
        pytest.raises(ConfigurationError, match=r"Transactions not supported .* at_least_once"),
    ):
        broker.transactional_producer(ProducerConfig(), "one")


def test_a_certificate_is_looked_at_once_and_not_for_every_question(tmp_path):
    certificate = Authority(tmp_path / "theirs").issue("kafka", "127.0.0.1")
    ours = Authority(tmp_path / "ours").ca
    looked_at = "unable to get local issuer certificate"
    with tls_server(certificate) as address:
        config = KafkaConfig(address, security_protocol="SSL", ssl_ca_location=str(ours))
        with closing(KafkaBroker(config)) as broker:
            with pytest.raises(AccessError, match=looked_at):
                broker.cluster_id()
            with (
                closing(broker.consumer(ConsumerConfig())) as consumer,
                pytest.raises(AccessError, match="not trusted") as failure,
            ):
                consumer.watermarks(TopicPartition("quotes", 0), timeout=0.3)
    assert looked_at not in str(failure.value)


def test_an_unknown_setting_is_named(nobody):
    config = KafkaConfig(nobody.bootstrap_servers, extra={"linger.miles": "5"})
    with pytest.raises(ConfigurationError, match=r"linger\.miles"):
        KafkaBroker(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("security.protocol", PASSWORD),
        ("security.protocol", f'"{PASSWORD}" for configuration property "x"'),
        ("debug", f"broker,{PASSWORD}"),
        ("acks", "77777"),
    ],
)
def test_a_wrong_value_is_not_repeated_and_its_setting_is_named(nobody, name, value):
    config = KafkaConfig(nobody.bootstrap_servers, extra={name: value})
    with pytest.raises(ConfigurationError, match=f"extra: {name}$") as failure:
        KafkaBroker(config)
    told = "".join(traceback.format_exception(failure.value))
    assert PASSWORD not in told
    assert value not in told


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
