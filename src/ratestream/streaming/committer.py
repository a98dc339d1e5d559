"""How what agents have done becomes durable: `AtLeastOnce` and `ExactlyOnce`.

Both are given everything that one commit holds. They run on the thread that owns the consumer, and
never wait for a program's code.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from ratestream.streaming.errors import DeliveryError, FencedError, MessageTooLargeError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.tables import TableChanges
from ratestream.streaming.types import (
    Broker,
    Consumer,
    OutgoingRecord,
    ProducerConfig,
    TopicPartition,
)

_MAX_FENCED_COMMITS = 20
_TOPIC = attrgetter("topic")


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """What one commit makes durable: outputs, changelog and positions, then the stores."""

    outputs: list[OutgoingRecord]
    changes: list[TableChanges]
    positions: Mapping[TopicPartition, int]

    def __bool__(self) -> bool:
        return bool(self.outputs or self.changes or self.positions)

    def records(self) -> list[OutgoingRecord]:
        records = list(self.outputs)
        for change in self.changes:
            records += change.records()
        return records


class Committer(Protocol):
    """Commits for one consumer."""

    @property
    def soonest_seconds(self) -> float:
        """After which the next commit is worth its cost, when nothing else waits to be read."""
        ...

    def commit(self, work: Uncommitted) -> Mapping[TopicPartition, int]:
        """Returns the positions that the group now has; the stores are written as well. Raises
        `BrokerError`, of which `TransactionAbortedError` says that nothing has happened, or
        `MessageTooLargeError`."""
        ...

    def close(self) -> None: ...


class AtLeastOnce:
    """Records first, then positions, then stores: what fails in between is done again."""

    soonest_seconds = 0.005

    def __init__(
        self, broker: Broker, config: ProducerConfig, consumer: Consumer, metrics: WorkerMetrics
    ) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self._producer = broker.producer(config)
        self._fenced_commits = 0

    def commit(self, work: Uncommitted) -> Mapping[TopicPartition, int]:
        records = work.records()
        self._producer.send(records)
        ends = self._producer.flush()
        _count(self._metrics, records)
        done = self._commit_positions(work.positions)
        _write_stores(work.changes, ends)
        return done

    def close(self) -> None:
        self._producer.close()

    def _commit_positions(
        self, positions: Mapping[TopicPartition, int]
    ) -> Mapping[TopicPartition, int]:
        """A group that is rebalancing may refuse: the next commit then includes these again."""
        if not positions:
            return {}
        try:
            self._consumer.commit(positions)
        except FencedError:
            self._fenced_commits += 1
            if self._fenced_commits > _MAX_FENCED_COMMITS:
                raise
            return {}
        self._fenced_commits = 0
        return positions


class ExactlyOnce:
    """Records and positions in one transaction; the stores only when it has been committed, so
    that they never hold what readers of the changelog cannot see."""

    soonest_seconds = math.inf  # a transaction costs its brokers some writes of their own

    def __init__(
        self,
        broker: Broker,
        config: ProducerConfig,
        consumer: Consumer,
        metrics: WorkerMetrics,
        transactional_id: str,
    ) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self._producer = broker.transactional_producer(config, transactional_id)
        for result in ("committed", "failed"):  # the increase from nothing cannot be seen
            metrics.transactions.labels(result)

    def commit(self, work: Uncommitted) -> Mapping[TopicPartition, int]:
        records = work.records()
        result = "failed"
        try:
            ends = self._transact(records, work.positions)
            result = "committed"
        finally:
            self._metrics.transactions.labels(result).inc()
        _count(self._metrics, records)
        _write_stores(work.changes, ends)
        return work.positions

    def close(self) -> None:
        self._producer.close()

    def _transact(
        self, records: Sequence[OutgoingRecord], positions: Mapping[TopicPartition, int]
    ) -> dict[TopicPartition, int]:
        self._producer.begin()
        try:
            self._producer.send(records)
        except MessageTooLargeError:
            self._producer.abort()
            raise
        return self._producer.commit(positions, self._consumer)


def _count(metrics: WorkerMetrics, records: Sequence[OutgoingRecord]) -> None:
    metrics.count_sent(Counter(map(_TOPIC, records)))


def _write_stores(changes: Sequence[TableChanges], ends: Mapping[TopicPartition, int]) -> None:
    for change in changes:
        partition = change.changelog_partition
        if partition not in ends:
            raise DeliveryError(
                f"{partition.topic}[{partition.partition}]: acknowledged without an offset"
            )
        change.table.commit(change, ends[partition])
