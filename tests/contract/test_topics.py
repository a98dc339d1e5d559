"""Topics and clusters, the same on every broker."""

from __future__ import annotations

from uuid import uuid4

import pytest

from ratestream.streaming.types import ConsumerConfig, TopicPartition, TopicSpec
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


def test_topics_that_do_not_exist_are_absent_from_the_description(broker, unique_topic):
    topic = unique_topic()
    assert list(broker.describe_topics([topic, f"missing-{uuid4().hex}"])) == [topic]
    assert broker.describe_topics([]) == {}


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
