"""Quotes that wait on `processed-data` before a data_aggregator starts, and how far it has come.

Every partition gets the same share of pairs, keys and quotes, whatever the hashes of the pairs are.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec
from confluent_kafka import ConsumerGroupTopicPartitions, Producer, TopicPartition
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

ToWrite = tuple[str, int, bytes, bytes]
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


def quotes(keys: int, total: int) -> Iterator[ToWrite]:
    """So many quotes, which come to each of the keys in turn."""
    encode, started = msgspec.json.Encoder().encode, datetime.now(UTC)
    for number in range(total):
        key, at = Key(number % keys), started + timedelta(microseconds=number)
        value, origin = Decimal(number % 100_000 + 1) / 1000, Origin("src-data", 0, number)
        quote = Quote(key.pair, key.source, value, at, at, origin)
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
        groups = self._admin.list_consumer_groups(request_timeout=_SECONDS).result(_SECONDS)
        if SERVICE in {each.group_id for each in groups.valid}:
            self._admin.delete_consumer_groups([SERVICE])[SERVICE].result(_SECONDS)
        with closing(KafkaBroker(KafkaConfig(self._bootstrap))) as broker:
            broker.create_topics(specs)

    def write(self, messages: Iterable[ToWrite], total: int, progress: Progress, what: str) -> None:
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
    """From the first commit on, for so many seconds, or until one of the partitions, of so many
    quotes, is all read. Raises `BenchmarkError` when that is too soon to tell, or none comes."""
    first = _first_read(backlog)
    started, last, watched = time.monotonic(), first, 0.0
    while watched < seconds:
        time.sleep(_LOOK_SECONDS)
        found, now = backlog.read(), time.monotonic()
        if max(found.values()) >= per_partition:
            break
        last, watched = sum(found.values()), now - started
    if watched < _SHORTEST_SECONDS:
        raise BenchmarkError(f"{per_partition * PARTITIONS} quotes are too few: they were all read")
    return (last - first) / watched


def _first_read(backlog: Backlog) -> int:
    deadline = time.monotonic() + _SECONDS
    while not (read := sum(backlog.read().values())):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"no quote was read within {_SECONDS} s")
        time.sleep(_LOOK_SECONDS)
    return read
