"""Topic partitions and messages, from librdkafka's types to ours and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import confluent_kafka as librdkafka
from confluent_kafka import KafkaException, Message

from ratestream.streaming.types import Headers, TopicPartition


def ours(partitions: Iterable[librdkafka.TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(each.topic, each.partition) for each in partitions]


def theirs(partitions: Iterable[TopicPartition]) -> list[librdkafka.TopicPartition]:
    return [librdkafka.TopicPartition(*each) for each in partitions]


def at(positions: Mapping[TopicPartition, int]) -> list[librdkafka.TopicPartition]:
    return [librdkafka.TopicPartition(*each, offset) for each, offset in positions.items()]


def raise_partition_error(partitions: Sequence[librdkafka.TopicPartition] | None) -> None:
    for partition in partitions or ():
        if partition.error is not None:
            raise KafkaException(partition.error)


def runs(messages: Iterable[Message]) -> Iterator[tuple[TopicPartition, list[Message]]]:
    """Of one partition each, in the order given. `messages` have no errors."""
    for topic, of_topic in groupby(messages, Message.topic):
        for number, run in groupby(of_topic, Message.partition):
            yield TopicPartition(topic or "", number or 0), list(run)


def partition_of(message: Message) -> TopicPartition:
    return TopicPartition(message.topic() or "", message.partition() or 0)


def headers_of(found: Any) -> Headers:
    """Of a message that was read: a list of `(str, bytes | None)`."""
    return tuple((name, value or b"") for name, value in found)


def name_of(partition: TopicPartition) -> str:
    return f"{partition.topic}[{partition.partition}]"


def names_of(partitions: Iterable[TopicPartition]) -> str:
    return ", ".join(name_of(each) for each in sorted(partitions))
