"""Tables: dictionaries that survive. Writes are buffered until the commit, kept in RocksDB, and
logged to a changelog topic from which any instance can rebuild them.

A table is split like the topic it belongs to: what an agent writes while it is at a record of
partition 3 goes to the table's partition 3, its changelog's partition 3 and its own store.
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from ratestream.streaming.codecs import codec_for
from ratestream.streaming.errors import ConfigurationError, StateError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.store import Store
from ratestream.streaming.topics import AnyTopic, current_work
from ratestream.streaming.types import (
    Broker,
    ConsumerConfig,
    OffsetOutOfRange,
    OutgoingRecord,
    TopicPartition,
    TopicSpec,
)

K = TypeVar("K")
V = TypeVar("V")
_RESTORE_BATCH_RECORDS = 10_000
_TOMBSTONES_SECONDS = 12 * 3600
_MISSING: Any = object()

log = structlog.get_logger("ratestream.tables")


@dataclass(slots=True)
class _Partition:
    """One partition of a table that this instance owns. Values stay decoded while cached;
    `dirty` is what the next commit writes, `committing` what the one under way writes."""

    store: Store
    cache: dict[Any, Any] = field(default_factory=dict)
    dirty: dict[Any, Any] = field(default_factory=dict)
    committing: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What one commit changes in one partition of one table; None deletes."""

    table: AnyTable
    partition: int
    changes: dict[bytes, bytes | None]

    def records(self) -> list[OutgoingRecord]:
        """The changes as changelog records, in the partition that they belong to."""
        topic = self.table.changelog.name
        return [
            OutgoingRecord(topic, key, value, self.partition) for key, value in self.changes.items()
        ]

    @property
    def changelog_partition(self) -> TopicPartition:
        return TopicPartition(self.table.changelog.name, self.partition)


class Table(MutableMapping[K, V], Generic[K, V]):
    """A dictionary of the current record's partition.

    A missing key reads as `default()`, without being stored. A value changed in place must be
    assigned again to be kept. Writing is for agents that iterate record by record; timers, tasks
    and pages may read, and see every partition of this instance. `len` and iteration read the
    whole partition.
    """

    def __init__(
        self,
        name: str,
        changelog: TopicSpec,
        source: AnyTopic,
        types: tuple[type[K], type[V]],
        default: Callable[[], V] | None,
    ) -> None:
        self.name = name
        self.changelog = changelog
        self.source = source
        self.cache_entries = 100_000
        self._key_codec = codec_for(types[0])
        self._value_codec = codec_for(types[1])
        self._default = default
        self._partitions: dict[int, _Partition] = {}

    def __getitem__(self, key: K) -> V:
        value: V = self._find(key)
        if value is not _MISSING:
            return value
        if self._default is None:
            raise KeyError(key)
        return self._default()

    def __setitem__(self, key: K, value: V) -> None:
        partition = self._written_partition()
        partition.cache[key] = partition.dirty[key] = value

    def __delitem__(self, key: K) -> None:
        partition = self._written_partition()
        if self._find(key) is _MISSING:
            raise KeyError(key)
        partition.cache.pop(key, None)
        partition.dirty[key] = None

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not _MISSING

    def __iter__(self) -> Iterator[K]:
        for partition in self._read_partitions():
            pending = {**partition.committing, **partition.dirty}
            for raw_key in partition.store.all_keys():
                key = self._key_codec.decode(raw_key)
                if key not in pending:
                    yield key
            yield from (key for key, value in pending.items() if value is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> ItemsView[K, V]:
        """What there is now, as a copy: a rebalance may take partitions away meanwhile."""
        found = {key: self._find(key) for key in self}
        return {key: value for key, value in found.items() if value is not _MISSING}.items()

    def values(self) -> ValuesView[V]:
        """What there is now, as a copy."""
        return dict(self.items()).values()

    def pop(self, key: K, default: Any = _MISSING) -> Any:
        """Unlike reading, this never answers the table's own default."""
        value = self._find(key)
        if value is not _MISSING:
            del self[key]
            return value
        if default is _MISSING:
            raise KeyError(key)
        return default

    def setdefault(self, key: K, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def _find(self, key: Any) -> Any:
        for partition in self._read_partitions():
            value = self._look_up(partition, key)
            if value is not None:
                return value
        return _MISSING

    def _look_up(self, partition: _Partition, key: Any) -> Any:
        for layer in (partition.dirty, partition.committing, partition.cache):
            value = layer.get(key, _MISSING)
            if value is not _MISSING:
                return value
        raw = partition.store.get(self._key_codec.encode(key) or b"")
        if raw is None:
            return None
        value = self._value_codec.decode(raw)
        if len(partition.cache) < self.cache_entries:  # only a commit makes room again
            partition.cache[key] = value
        return value

    def _read_partitions(self) -> list[_Partition]:
        work = current_work.get()
        if work is None or work.partition is None:
            return list(self._partitions.values())
        return [self._of_record(work.partition)]

    def _written_partition(self) -> _Partition:
        work = current_work.get()
        if work is None or work.partition is None:
            raise ConfigurationError(
                f"table {self.name}: only an agent that iterates record by record may write"
            )
        return self._of_record(work.partition)

    def _of_record(self, number: int) -> _Partition:
        try:
            return self._partitions[number]
        except KeyError:
            raise ConfigurationError(
                f"table {self.name}: partition {number} of {self.source.name} is not on this "
                "instance; only agents of that topic may use the table"
            ) from None

    # What the worker does with a table.

    def open(self, partition: int, folder: Path, changelog_id: str) -> Store:
        """Open the partition's store; it may be behind its changelog. Raises `StateError`."""
        store = Store(folder / self.name / str(partition), changelog_id)
        self._partitions[partition] = _Partition(store)
        return store

    def close(self, partition: int) -> None:
        """Close the partition's store; what is not committed is forgotten."""
        opened = self._partitions.pop(partition, None)
        if opened is not None:
            opened.store.close()

    def close_all(self) -> None:
        for partition in list(self._partitions):
            self.close(partition)

    def take_changes(self) -> list[TableChanges]:
        """What has been written since the last call, encoded; it stays readable meanwhile."""
        taken = []
        for number, partition in self._partitions.items():
            if partition.dirty:
                partition.committing, partition.dirty = partition.dirty, {}
                taken.append(TableChanges(self, number, self._encoded(partition.committing)))
        return taken

    def _encoded(self, changes: Mapping[Any, Any]) -> dict[bytes, bytes | None]:
        encode_key, encode_value = self._key_codec.encode, self._value_codec.encode
        return {
            encode_key(key) or b"": None if value is None else encode_value(value)
            for key, value in changes.items()
        }

    def commit(self, changes: TableChanges, checkpoint: int) -> None:
        """Write to the store what the broker now has; `checkpoint` is the changelog's next
        offset after it."""
        partition = self._partitions[changes.partition]
        partition.store.write(changes.changes, checkpoint)
        partition.committing = {}
        _trim(partition.cache, self.cache_entries)

    def estimated_bytes(self) -> int:
        return sum(each.store.estimated_bytes() for each in self._partitions.values())


AnyTable = Table[Any, Any]


def _trim(cache: dict[Any, Any], limit: int) -> None:
    """Forget the entries that have been in the cache the longest."""
    excess = len(cache) - limit
    if excess > 0:
        for key in list(cache)[: excess + limit // 10]:
            cache.pop(key, None)


def _is_stale(store: Store) -> bool:
    """Whether deletions that this store has not seen may be gone from the changelog by now:
    brokers keep tombstones for a day unless told otherwise."""
    return store.age() > _TOMBSTONES_SECONDS


@dataclass(slots=True)
class _Restoring:
    table: AnyTable
    store: Store
    end: int


class Restorer:
    """Brings stores up to the end of their changelogs, a batch at a time, with a consumer of its
    own. It can be given more partitions, or told to drop some, between any two steps."""

    def __init__(self, broker: Broker, client_id: str, metrics: WorkerMetrics) -> None:
        config = ConsumerConfig(client_id=f"{client_id}-restore", offset_reset="error")
        self._consumer = broker.consumer(config)
        self._metrics = metrics
        self._active: dict[TopicPartition, _Restoring] = {}
        self._positions: dict[TopicPartition, int] = {}

    @property
    def active(self) -> bool:
        return bool(self._active)

    def add(self, table: AnyTable, partition: int, store: Store) -> None:
        """Restore `store` up to the end its changelog has now. Raises `StateError` when the
        store is ahead of the changelog: it then belongs to another history."""
        changelog = TopicPartition(table.changelog.name, partition)
        low, high = self._consumer.watermarks(changelog)
        start = store.checkpoint
        if start is not None and start > high:
            raise StateError(
                f"the state folder {store.path} stands at offset {start} of "
                f"{changelog.topic}[{partition}], which ends at {high}: the topic was made anew; "
                "move the folder away to rebuild the table from the changelog"
            )
        if start is not None and (start < low or (start < high and _is_stale(store))):
            log.warning("table_rebuilt", table=table.name, partition=partition, from_offset=low)
            store.wipe()
            start = None
        self._active[changelog] = _Restoring(table, store, high)
        self._positions[changelog] = low if start is None else start
        self._reassign()

    def drop(self, sources: set[TopicPartition]) -> None:
        """Stop restoring what is split like these partitions; the stores are the caller's."""
        for changelog, restoring in list(self._active.items()):
            if TopicPartition(restoring.table.source.name, changelog.partition) in sources:
                self._forget(changelog)
        self._reassign()

    def waits_for(self, source: TopicPartition) -> bool:
        """Whether a table that is split like this partition's topic is still being restored."""
        return any(
            TopicPartition(restoring.table.source.name, changelog.partition) == source
            for changelog, restoring in self._active.items()
        )

    def step(self, timeout: float) -> None:
        """Apply one batch. Raises `BrokerError`; stores then stand where they stood."""
        try:
            records = self._consumer.poll(_RESTORE_BATCH_RECORDS, timeout)
        except OffsetOutOfRange as error:
            self._start_over(error.partition)
            return
        batches: dict[TopicPartition, dict[bytes, bytes | None]] = {}
        for record in records:
            batches.setdefault(record.topic_partition, {})[record.key or b""] = record.value
            self._positions[record.topic_partition] = record.offset + 1
        for changelog, changes in batches.items():
            restoring = self._active[changelog]
            restoring.store.write(changes, self._positions[changelog])
            self._metrics.restored.labels(restoring.table.name).inc(len(changes))
        self._finish()

    def close(self) -> None:
        self._consumer.close()

    def _finish(self) -> None:
        # A changelog may end in control records or compacted ones: the consumer's position
        # passes them, the last record's offset does not.
        done = [each for each, restoring in self._active.items() if self._at(each) >= restoring.end]
        for changelog in done:
            self._active[changelog].store.write({}, self._at(changelog))
            self._forget(changelog)
        if done:
            self._reassign()

    def _at(self, changelog: TopicPartition) -> int:
        return max(self._positions[changelog], self._consumer.position(changelog) or 0)

    def _start_over(self, changelog: TopicPartition) -> None:
        """The changelog no longer has what the store would need: rebuild from its start."""
        restoring = self._active[changelog]
        low, restoring.end = self._consumer.watermarks(changelog)
        log.warning("table_rebuilt", table=restoring.table.name, from_offset=low)
        restoring.store.wipe()
        self._positions[changelog] = low
        self._reassign()

    def _forget(self, changelog: TopicPartition) -> None:
        del self._active[changelog]
        del self._positions[changelog]

    def _reassign(self) -> None:
        self._metrics.restoring.set(len(self._active))
        self._consumer.assign(self._positions)
