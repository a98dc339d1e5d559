"""Quotes that wait on `processed-data` before a data_aggregator starts, and how far it has come.

Written partition by number, so that every partition has the same share of pairs, keys and quotes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.stage import PARTITIONS, producing
from ratestream.events import Origin, Quote
from ratestream.services.data_aggregator import build
from ratestream.settings import Settings
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig

SERVICE = "data_aggregator"
CHANGELOG = "data-aggregator-windows-changelog"
PAIRS = 200

_SECONDS = 30.0
_BUFFER_RECORDS = 50_000
_STEP_RECORDS = 10_000
_LINGER_MS = 50
_LOOK_SECONDS = 0.2
_SHORTEST_SECONDS = 1.0

Message = tuple[str, int, bytes, bytes]
"""Topic, partition, key, value."""


@dataclass(frozen=True)
class Key:
    """Of a window. The keys of a pair are those of its sources."""

    number: int

    @property
    def pair(self) -> str:
        return f"P{self.number % PAIRS:03}XX"

    @property
    def source(self) -> str:
        return f"s{self.number // PAIRS}"

    @property
    def partition(self) -> int:
        return self.number % PAIRS % PARTITIONS

    @property
    def in_changelog(self) -> bytes:
        return f"{self.pair}/{self.source}".encode()


def quotes(keys: int, total: int) -> Iterator[Message]:
    """So many quotes, which come to each of the keys in turn."""
    encode, now, origin = msgspec.json.Encoder().encode, datetime.now(UTC), Origin("src-data", 0, 0)
    for number in range(total):
        key = Key(number % keys)
        value = Decimal(number % 100_000 + 1) / 1000
        quote = Quote(key.pair, key.source, value, now, now, origin)
        yield "processed-data", key.partition, key.pair.encode(), encode(quote)


class Backlog:
    """The topics of one data_aggregator on a Kafka that nobody else uses."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})

    def start_over(self, *kept: str) -> None:
        """Empty topics, but for those that are `kept`, and no place in them. To be called when
        nothing uses them."""
        settings = Settings.model_validate({"topics": {"partitions": PARTITIONS}})
        specs = build(settings).topic_specs()
        names = {spec.name for spec in specs} - set(kept)
        there = names & self._admin.list_topics(timeout=_SECONDS).topics.keys()
        for future in self._admin.delete_topics(list(there)).values() if there else ():
            future.result(_SECONDS)
        for future in self._admin.delete_consumer_groups([SERVICE]).values():
            try:
                future.result(_SECONDS)
            except KafkaException as error:
                if error.args[0].name() != "GROUP_ID_NOT_FOUND":
                    raise
        with closing(KafkaBroker(KafkaConfig(self._bootstrap))) as broker:
            broker.create_topics(specs)

    def write(self, messages: Iterable[Message], total: int, progress: Progress, what: str) -> None:
        """Returns when Kafka has all of them."""
        bar = progress.add_task(what, total=total)
        with producing(self._bootstrap, linger_ms=_LINGER_MS) as producer:
            for number, (topic, partition, key, value) in enumerate(messages):
                producer.produce(topic, value, key, partition)
                if number % _STEP_RECORDS == 0:
                    _make_room(producer)
                    progress.update(bar, completed=number)
        progress.remove_task(bar)

    def read(self) -> dict[int, int]:
        """By partition, how many quotes are committed as read."""
        asked = [ConsumerGroupTopicPartitions(SERVICE)]
        (future,) = self._admin.list_consumer_group_offsets(asked).values()
        found: list[TopicPartition] = future.result(_SECONDS).topic_partitions or []
        return {each.partition: max(0, each.offset) for each in found}


def _make_room(producer: Producer) -> None:
    deadline = time.monotonic() + _SECONDS
    producer.poll(0)
    while len(producer) > _BUFFER_RECORDS:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"Kafka takes no records for {_SECONDS} s")
        producer.poll(0.1)


def quotes_per_second(backlog: Backlog, per_partition: int, seconds: float) -> float:
    """Watched for so many seconds, or until one of the partitions, of so many quotes, is all read.
    Raises `BenchmarkError` when that is too soon to tell."""
    started = now = time.monotonic()
    first, last = sum(backlog.read().values()), 0
    watched = 0.0
    while now - started < seconds:
        time.sleep(_LOOK_SECONDS)
        found, now = backlog.read(), time.monotonic()
        if max(found.values(), default=0) >= per_partition:
            break
        last, watched = sum(found.values()), now - started
    if watched < _SHORTEST_SECONDS:
        raise BenchmarkError(f"{per_partition * PARTITIONS} quotes are too few: they were all read")
    return (last - first) / watched
