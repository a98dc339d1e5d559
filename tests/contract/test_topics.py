"""Topics and clusters, the same on every broker."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ratestream.streaming.types import (
    ConsumerConfig,
    TopicConfig,
    TopicDescription,
    TopicPartition,
    TopicSpec,
)
from tests.support.brokers import send, values


def test_a_topic_that_exists_is_left_as_it_is(broker, unique_topic):
    topic = unique_topic(partitions=3)
    before = broker.describe_topics([topic])[topic]
    send(broker, *values(topic, 2, "27.8325"))
    broker.create_topics([TopicSpec(topic, partitions=8)])
    assert broker.describe_topics([topic])[topic] == before
    assert before.partitions == 3
    assert send(broker, *values(topic, 2, "27.8326")) == {TopicPartition(topic, 2): 2}


def test_topics_are_told_apart_by_their_ids(broker, unique_topic):
    one, other = unique_topic(), unique_topic()
    found = broker.describe_topics([one, other])
    assert found[one].topic_id != found[other].topic_id


@pytest.mark.parametrize(
    ("cleanup_policy", "retention_ms", "max_message_bytes"),
    [("delete", 3_600_000, 2_000_000), ("compact", -1, 10_000)],
)
def test_a_topic_is_described_as_it_was_made(
    broker, unique_topic, cleanup_policy, retention_ms, max_message_bytes
):
    topic = unique_topic(
        partitions=3,
        cleanup_policy=cleanup_policy,
        retention_ms=retention_ms,
        max_message_bytes=max_message_bytes,
    )
    found = broker.describe_topics([topic])[topic]
    assert found == TopicDescription(
        name=topic,
        topic_id=found.topic_id,
        partitions=3,
        replication_factor=1,
    )
    assert broker.topic_configs([topic])[topic] == TopicConfig(
        cleanup_policy=cleanup_policy,
        retention_ms=retention_ms,
        max_message_bytes=max_message_bytes,
    )


def test_topics_that_do_not_exist_are_absent_from_the_description(broker, unique_topic):
    topic = unique_topic()
    assert list(broker.describe_topics([topic, f"missing-{uuid4().hex}"])) == [topic]
    assert broker.describe_topics([]) == {}


def test_topics_that_do_not_exist_have_no_config(broker, unique_topic):
    topic = unique_topic()
    assert list(broker.topic_configs([topic, f"missing-{uuid4().hex}"])) == [topic]
    assert broker.topic_configs([]) == {}


def test_the_cluster_keeps_its_id(broker):
    assert broker.cluster_id() == broker.cluster_id() != ""


def test_a_broker_that_answered_is_reachable(broker):
    broker.cluster_id()
    assert broker.is_reachable()


@pytest.mark.parametrize("sent", [0, 3])
def test_watermarks_are_the_first_and_the_next_offset(broker, unique_topic, sent):
    topic = unique_topic(partitions=1)
    send(broker, *values(topic, 0, *["27.8325"] * sent))
    consumer = broker.consumer(ConsumerConfig())
    assert consumer.watermarks(TopicPartition(topic, 0)) == (0, sent)
    consumer.close()
