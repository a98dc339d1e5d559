"""How what agents have done becomes durable: `AtLeastOnce` and `ExactlyOnce`.

Both are given everything that one commit holds, and run on the thread that owns the consumer.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter

from ratestream.streaming.errors import (
    DeliveryError,
    FencedError,
    MessageTooLargeError,
    StreamingError,
)
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


class Committer(ABC):
    """Commits for one consumer, one commit at a time: it is begun, and then ended.

    Between the two the broker takes what was sent, and the consumer may be polled for the next
    batch. What can be done without Python's interpreter is then done beside the agents' work; what
    needs it is not, because two threads that both want it cost each other more than they gain.
    """

    soonest_seconds: float
    """After which the next commit is worth its cost, when nothing else waits to be read."""

    def __init__(self, consumer: Consumer, metrics: WorkerMetrics) -> None:
        self._consumer = consumer
        self._metrics = metrics
        self._work: Uncommitted | None = None
        self._records: list[OutgoingRecord] = []
        self._began_at = 0.0

    @property
    def has_begun(self) -> bool:
        """Whether a commit is to be ended."""
        return self._work is not None

    def begin(self, work: Uncommitted) -> None:
        """Send what it holds. Raises `BrokerError`, of which `TransactionAbortedError` says that
        nothing has happened, or `MessageTooLargeError`; it has not begun then."""
        self._began_at = time.monotonic()
        self._records = work.records()
        self._send(self._records)
        self._work = work

    @abstractmethod
    def serve(self) -> None:
        """To be called with each poll. Takes note of what the broker has acknowledged by now, which
        `end` would do as well, but beside the agents' work. Raises `BrokerError`."""

    def end(self) -> Mapping[TopicPartition, int]:
        """Returns the positions up to which everything is done; the stores are written as well.
        Raises as `begin`; nothing is left to be ended then."""
        work, records = self._take()
        done, ends = self._commit(work.positions)
        self._count(records)
        _write_stores(work.changes, ends)
        self._metrics.commit_seconds.observe(time.monotonic() - self._began_at)
        return done

    @abstractmethod
    def give_up(self, lost: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """End what was begun, if anything was, without these partitions, which are another
        instance's already. Returns the positions up to which everything is done. Raises as
        `begin`."""

    @abstractmethod
    def settle(self) -> None:
        """Tell the group of all that has been ended. Raises `BrokerError`."""

    @abstractmethod
    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """They are not this instance's any more: nothing is to be told of them."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _send(self, records: Sequence[OutgoingRecord]) -> None: ...

    @abstractmethod
    def _commit(
        self, positions: Mapping[TopicPartition, int]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        """The positions that are done, and the next offsets of what was written."""

    def _take(self) -> tuple[Uncommitted, list[OutgoingRecord]]:
        work, records = self._work, self._records
        self._work, self._records = None, []
        if work is None:
            raise StreamingError("no commit has begun")
        return work, records

    def _count(self, records: Sequence[OutgoingRecord]) -> None:
        self._metrics.count_sent(Counter(map(_TOPIC, records)))


class AtLeastOnce(Committer):
    """Records first, then stores and positions: what fails in between is done again.

    Records are sent as soon as there are some. If the group were told each time, that would cost
    its brokers as much as the records do: it hears every `interval` seconds."""

    soonest_seconds = 0.005

    def __init__(
        self,
        broker: Broker,
        config: ProducerConfig,
        consumer: Consumer,
        metrics: WorkerMetrics,
        interval: float = 0.0,
    ) -> None:
        super().__init__(consumer, metrics)
        self._producer = broker.producer(config)
        self._interval = interval
        self._settled_at = 0.0
        self._unsettled: dict[TopicPartition, int] = {}
        self._fenced_commits = 0

    def serve(self) -> None:
        self._producer.serve()
        if not self.has_begun:  # its end will settle, beside the agents' work
            self._settle_if_due()

    def give_up(self, lost: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """What was sent is on the changelog: the stores that stay must have it, too."""
        if not self.has_begun:
            return {}
        work, records = self._take()
        ends = self._producer.flush()
        self._count(records)
        _write_stores([each for each in work.changes if each.source not in lost], ends)
        kept = {each: at for each, at in work.positions.items() if each not in lost}
        self._unsettled |= kept
        return kept

    def close(self) -> None:
        self._producer.close()

    def _send(self, records: Sequence[OutgoingRecord]) -> None:
        self._producer.send(records)

    def _commit(
        self, positions: Mapping[TopicPartition, int]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        ends = self._producer.flush()
        self._unsettled |= positions
        self._settle_if_due()
        return positions, ends

    def _settle_if_due(self) -> None:
        if time.monotonic() - self._settled_at >= self._interval:
            self.settle()

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            self._unsettled.pop(partition, None)

    def settle(self) -> None:
        """A group that is rebalancing may refuse: the next time includes these again."""
        if not self._unsettled:
            return
        self._settled_at = time.monotonic()
        try:
            self._consumer.commit(self._unsettled)
        except FencedError:
            self._fenced_commits += 1
            if self._fenced_commits > _MAX_FENCED_COMMITS:
                raise
            return
        self._fenced_commits = 0
        self._unsettled = {}


class ExactlyOnce(Committer):
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
        super().__init__(consumer, metrics)
        self._producer = broker.transactional_producer(config, transactional_id)
        for result in ("committed", "failed"):  # the increase from nothing cannot be seen
            metrics.transactions.labels(result)

    def serve(self) -> None:
        self._producer.serve()

    def give_up(self, lost: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        if self.has_begun:
            self._take()
            self._metrics.transactions.labels("failed").inc()
            self._producer.abort()
        return {}

    def settle(self) -> None:
        """It has been told in the transactions."""

    def forget(self, partitions: Collection[TopicPartition]) -> None:
        """It has been told all there was."""

    def close(self) -> None:
        self._producer.close()

    def _send(self, records: Sequence[OutgoingRecord]) -> None:
        with self._counting():
            self._producer.begin()
            try:
                self._producer.send(records)
            except MessageTooLargeError:
                self._producer.abort()
                raise

    def _commit(
        self, positions: Mapping[TopicPartition, int]
    ) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
        with self._counting():
            ends = self._producer.commit(positions, self._consumer)
        self._metrics.transactions.labels("committed").inc()
        return positions, ends

    @contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except StreamingError:
            self._metrics.transactions.labels("failed").inc()
            raise


def _write_stores(changes: Sequence[TableChanges], ends: Mapping[TopicPartition, int]) -> None:
    for change in changes:
        partition = change.changelog_partition
        if partition not in ends:
            raise DeliveryError(
                f"{partition.topic}[{partition.partition}]: acknowledged without an offset"
            )
        change.table.commit(change, ends[partition])
