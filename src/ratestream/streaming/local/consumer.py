"""How the local broker is read: cursors into logs, moved among members as their group says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from operator import attrgetter

from ratestream.streaming.errors import BrokerError, FencedError
from ratestream.streaming.local.groups import Group, Member
from ratestream.streaming.local.storage import Batch, Log, Storage, decode, partition_name
from ratestream.streaming.types import (
    Changes,
    ConsumerConfig,
    OffsetOutOfRange,
    RebalanceListener,
    Record,
    RecordRun,
    Run,
    TopicPartition,
    Watermarks,
)


class LocalConsumer:
    """A `Consumer`. Beyond `buffer_bytes` it holds at most one batch a partition."""

    def __init__(
        self,
        storage: Storage,
        group: Group | None,
        config: ConsumerConfig,
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._group = group
        self._config = config
        self._clock = clock
        self._topics: frozenset[str] = frozenset()
        self._listener: RebalanceListener | None = None
        self._member: Member | None = None
        # Read in this order; who was read goes to the end, so that none waits for ever.
        self._cursors: dict[TopicPartition, _Cursor] = {}
        self._closed = False

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        if self._group is None:
            raise BrokerError("a consumer without a group cannot subscribe: use assign")
        self._topics = frozenset(topics)
        self._listener = listener

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._cursors = {
            partition: _Cursor(self._storage, self._storage.log(partition), position)
            for partition, position in positions.items()
        }

    def poll(self, max_records: int, timeout: float) -> list[Record]:
        deadline = time.monotonic() + timeout
        while True:
            self._follow_group()
            with self._storage.changed:
                self._require_open()
                has_to_move = self._has_to_move()
                if not has_to_move and (records := self._read(max_records)):
                    return records
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return []
                if not has_to_move:
                    self._wait(remaining)

    def poll_runs(self, max_records: int, timeout: float) -> list[Run]:
        records = self.poll(max_records, timeout)
        of_partitions = groupby(records, attrgetter("topic_partition"))
        return [RecordRun(list(run)) for _, run in of_partitions]

    def poll_changes(self, max_records: int, timeout: float) -> dict[TopicPartition, Changes]:
        found: dict[TopicPartition, Changes] = {}
        for record in self.poll(max_records, timeout):
            changes, key = found.setdefault(record.topic_partition, Changes()), record.key or b""
            changes.values[key] = record.value
            changes.times[key] = record.timestamp
            changes.records += 1
            changes.next = record.offset + 1
        return found

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._cursors)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in self._cursors.keys() & set(partitions):
            self._cursors[partition].paused = True

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        for partition in self._cursors.keys() & set(partitions):
            self._cursors[partition].paused = False

    def seek(self, partition: TopicPartition, offset: int) -> None:
        if partition not in self._cursors:
            raise BrokerError(f"cannot seek {partition_name(partition)}: not assigned")
        self._cursors[partition].seek(offset)

    def position(self, partition: TopicPartition) -> int | None:
        cursor = self._cursors.get(partition)
        return cursor.position if cursor else None

    def watermarks(self, partition: TopicPartition, timeout: float = 10.0) -> Watermarks:
        with self._storage.changed:
            self._storage.require_open()
            extent = self._storage.log(partition).extent
            return Watermarks(extent.low, extent.high)

    def stable_ends(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        return {each: self.watermarks(each).high for each in partitions}

    def log_end(self, partition: TopicPartition, timeout: float = 10.0) -> int:
        return self.watermarks(partition).high

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        if self._config.group is None:
            return {}
        with self._storage.changed:
            found = self._storage.committed(self._config.group)
        return {partition: found[partition] for partition in partitions if partition in found}

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        with self._storage.changed:
            self._storage.commit(self.require_owned(offsets), offsets)

    def require_owned(self, partitions: Collection[TopicPartition]) -> str:
        """The group for which this consumer may commit all of these, for as long as the caller
        holds the storage's lock. Raises `FencedError`, or `BrokerError` without a group."""
        if self._group is None or self._config.group is None:
            raise BrokerError("a consumer without a group cannot commit")
        with self._storage.changed:
            self._group.expel_silent(self._clock())
            gone = sorted(each for each in partitions if not self._may_commit(self._group, each))
            if gone:
                names = ", ".join(map(partition_name, gone))
                raise FencedError(f"cannot commit {names}: not, or no longer, this consumer's")
        return self._config.group

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._give_all_back()
        finally:
            self._cursors = {}
            if self._group and self._member:
                with self._storage.changed:
                    self._group.leave(self._member)

    def _require_open(self) -> None:
        self._storage.require_open()
        if self._closed:
            raise BrokerError("this consumer is closed")

    def _read(self, max_records: int) -> list[Record]:
        ready = [tp for tp, cursor in self._cursors.items() if cursor.is_ready()]
        for partition in ready:
            self._cursors[partition].settle(self._start(partition), self._config.offset_reset)
        records: list[Record] = []
        max_bytes = self._config.buffer_bytes // max(1, len(ready))
        for index, partition in enumerate(ready):
            room = max_records - len(records)
            if room <= 0:
                break
            cursor = self._cursors.pop(partition)
            self._cursors[partition] = cursor
            records += cursor.read(math.ceil(room / (len(ready) - index)), max_bytes)
        return records

    def _start(self, partition: TopicPartition) -> int | None:
        """Where a partition without a position starts; None leaves it to `offset_reset`."""
        if self._cursors[partition].position is None:
            return self.committed([partition]).get(partition)
        return self._cursors[partition].position

    def _follow_group(self) -> None:
        """Join, give back and take over, as the group asks. The listener runs without the lock."""
        if self._group is None or self._listener is None or self._closed:
            return
        self._accept_loss(self._group, self._listener)
        with self._storage.changed:
            if self._member is None:
                self._member = Member(self._topics, self._config.max_poll_interval)
                self._group.join(self._member, self._clock())
            self._group.heard_from(self._member, self._clock())
            leaving = self._group.to_release(self._member)
        if leaving:
            self._give_back(self._group, self._member, self._listener, leaving)
        with self._storage.changed:
            coming = self._group.to_take(self._member)
            self._group.take(self._member, coming)
        if coming:
            self._take_over(self._listener, coming)

    def _accept_loss(self, group: Group, listener: RebalanceListener) -> None:
        with self._storage.changed:
            group.expel_silent(self._clock())
            if self._member is None or group.has(self._member):
                return
            self._member = None
            lost, self._cursors = sorted(self._cursors), {}
        if lost:
            listener.lost(lost)

    def _give_back(
        self,
        group: Group,
        member: Member,
        listener: RebalanceListener,
        partitions: list[TopicPartition],
    ) -> None:
        try:
            listener.revoked(partitions)
        finally:
            with self._storage.changed:
                for partition in partitions:
                    self._cursors.pop(partition, None)
                group.release(member, partitions)

    def _take_over(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            log = self._storage.log(partition)
            self._cursors[partition] = _Cursor(self._storage, log, None, paused=True)
        for partition, start in listener.assigned(partitions).items():
            self._cursors[partition].seek(start)

    def _give_all_back(self) -> None:
        if self._group is None or self._listener is None or self._member is None:
            return
        self._accept_loss(self._group, self._listener)
        if self._member and self._cursors:
            self._listener.revoked(sorted(self._cursors))

    def _has_to_move(self) -> bool:
        if self._group is None or self._member is None:
            return False
        group, member = self._group, self._member
        return bool(group.to_release(member) or group.to_take(member) or not group.has(member))

    def _wait(self, timeout: float) -> None:
        """Until something changes or another member is silent for too long. Who waits is not."""
        if self._group is None or self._member is None:
            self._storage.changed.wait(timeout)
            return
        self._member.deadline = math.inf
        silence = max(0.0, self._group.next_deadline() - self._clock())
        try:
            self._storage.changed.wait(min(timeout, silence + 0.001))
        finally:
            self._group.heard_from(self._member, self._clock())

    def _may_commit(self, group: Group, partition: TopicPartition) -> bool:
        if self._listener is None:
            return group.is_empty() and not self._closed
        return self._member is not None and group.owns(self._member, partition)


class _Cursor:
    """Where one consumer is in one log, and the records it has read ahead."""

    def __init__(
        self, storage: Storage, log: Log, position: int | None, paused: bool = False
    ) -> None:
        self.position = position
        self.paused = paused
        self._storage = storage
        self._log = log
        self._ahead: list[Record] = []
        self._ahead_until = 0

    def seek(self, offset: int) -> None:
        self.position = offset
        self._ahead = []

    def is_ready(self) -> bool:
        return not self.paused and self.position != self._log.extent.high

    def settle(self, start: int | None, reset: str) -> None:
        """Make `position` one that is in the log. Raises `OffsetOutOfRange`."""
        low, high = self._log.extent.low, self._log.extent.high
        if start is not None and (self._ahead or low <= start <= high):
            self.position = start
        elif reset == "error":
            raise OffsetOutOfRange(self._log.partition, -1 if start is None else start)
        else:
            self.seek(low if reset == "earliest" else high)

    def read(self, max_records: int, max_bytes: int) -> list[Record]:
        if not self._ahead:
            self._read_ahead(max_records, max_bytes)
        records, self._ahead = self._ahead[:max_records], self._ahead[max_records:]
        self.position = self._ahead[0].offset if self._ahead else self._ahead_until
        return records

    def _read_ahead(self, max_records: int, max_bytes: int) -> None:
        position, self._ahead_until = self.position or 0, self._log.extent.high
        size = 0
        with closing(self._storage.batches(self._log, position)) as batches:
            for batch in batches:
                self._ahead += self._records(batch, position)
                size += len(batch.records)
                if len(self._ahead) >= max_records or size >= max_bytes:
                    self._ahead_until = batch.next
                    break

    def _records(self, batch: Batch, position: int) -> list[Record]:
        topic, number = self._log.partition
        return [
            Record(topic, number, offset, key, value, timestamp, headers)
            for offset, key, value, timestamp, headers in decode(batch.records)
            if offset >= position
        ]
