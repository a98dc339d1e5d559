"""Tables: dictionaries that survive. Writes are buffered until the commit, kept in RocksDB, and
logged to a changelog topic from which any instance can rebuild them.

A table is split like the topic it belongs to: what an agent writes while it is at a record of
partition 3 goes to the table's partition 3, its changelog's partition 3 and its own store.

A table with a time to live counts in stream time, which is the newest timestamp among the records
at which the partition was written and the record an agent is at. Replaying the same records
expires the same entries, whenever and wherever that happens. The changelog's timestamps are the
times of the writes, so that a restored entry is as old as the one that was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, ItemsView, Iterator, MutableMapping, ValuesView
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ratestream.streaming.codecs import codec_for
from ratestream.streaming.errors import ConfigurationError
from ratestream.streaming.store import Store
from ratestream.streaming.topics import AnyTopic, current_work
from ratestream.streaming.types import OutgoingRecord, TopicPartition, TopicSpec, WorkerConfig

K = TypeVar("K")
V = TypeVar("V")
_SWEPT_KEYS = 200
_MISSING: Any = object()


class _Entry(NamedTuple):
    """What a table with a time to live buffers instead of a value."""

    value: Any
    written: int


@dataclass(slots=True)
class _Partition:
    """One partition of a table that this instance owns. Values stay decoded while cached;
    `dirty` is what the next commit writes, `committing` what the one under way writes.

    With a time to live: `written` is the stream time of the last write not yet in the store, and
    a sweep that has come to the key `swept_to` (None: there is none) looks for what is over; the
    next one begins at stream time `next_sweep`."""

    store: Store
    cache: dict[Any, Any] = field(default_factory=dict)
    dirty: dict[Any, Any] = field(default_factory=dict)
    committing: dict[Any, Any] = field(default_factory=dict)
    written: int = 0
    swept_to: bytes | None = None
    next_sweep: int = 0

    @property
    def time(self) -> int:
        return max(self.written, self.store.stream_time)


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What one commit changes in one partition of one table; None deletes. `times` says when,
    milliseconds since the epoch, if the table has a time to live."""

    table: AnyTable
    partition: int
    changes: dict[bytes, bytes | None]
    times: dict[bytes, int] | None = None

    def records(self) -> list[OutgoingRecord]:
        """The changes as changelog records, in the partition that they belong to."""
        topic, partition = self.table.changelog.name, self.partition
        if self.times is None:
            return [
                OutgoingRecord(topic, key, value, partition) for key, value in self.changes.items()
            ]
        return [
            OutgoingRecord(topic, key, value, partition, self.times[key])
            for key, value in self.changes.items()
        ]

    @property
    def source(self) -> TopicPartition:
        """The partition of the records that the changes are made by."""
        return TopicPartition(self.table.source.name, self.partition)

    @property
    def changelog_partition(self) -> TopicPartition:
        return TopicPartition(self.table.changelog.name, self.partition)


class Table(MutableMapping[K, V], Generic[K, V]):
    """A dictionary of the current record's partition.

    A missing key reads as `default()`, without being stored. A value changed in place must be
    assigned again to be kept. Writing is for agents that iterate record by record; timers, tasks
    and pages may read, and see every partition of this instance. `len` and iteration read the
    whole partition.

    An entry that has not been written for `ttl` seconds of stream time is missing. It leaves store
    and changelog with one of the next commits: each looks at twice as many entries as it writes,
    and some more, in rounds that begin when a tenth of `ttl` has passed.
    """

    def __init__(
        self,
        name: str,
        changelog: TopicSpec,
        source: AnyTopic,
        types: tuple[type[K], type[V]],
        default: Callable[[], V] | None,
        ttl: float | None = None,
    ) -> None:
        if ttl is not None and not ttl > 0:
            raise ConfigurationError(f"table {name}: ttl={ttl}, allowed is more than 0 seconds")
        self.name = name
        self.changelog = changelog
        self.source = source
        self.cache_entries = WorkerConfig().table_cache_entries
        self._key_codec = codec_for(types[0])
        self._value_codec = codec_for(types[1])
        self._default = default
        self._ttl_ms = None if ttl is None else math.ceil(ttl * 1000)
        self._partitions: dict[int, _Partition] = {}

    def __getitem__(self, key: K) -> V:
        # What a running agent reads most, at a fraction of the cost of looking everywhere.
        work = current_work.get()
        if work is not None and self._ttl_ms is None:
            partition = self._partitions.get(work.partition)  # type: ignore[arg-type]  # or None
            if partition is not None and (cached := partition.cache.get(key)) is not None:
                return cached  # type: ignore[no-any-return]
        value: V = self._find(key)
        if value is not _MISSING:
            return value
        if self._default is None:
            raise KeyError(key)
        return self._default()

    def __setitem__(self, key: K, value: V) -> None:
        work = current_work.get()
        if work is not None and self._ttl_ms is None:
            partition = self._partitions.get(work.partition)  # type: ignore[arg-type]  # or None
            if partition is not None:
                partition.cache[key] = partition.dirty[key] = value
                return
        partition = self._written_partition()
        kept = value if self._ttl_ms is None else _Entry(value, partition.written)
        partition.cache[key] = partition.dirty[key] = kept

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
            for raw_key in self._stored_keys(partition):
                key = self._key_codec.decode(raw_key)
                if key not in pending:
                    yield key
            for key, kept in pending.items():
                if self._value_of(partition, kept) is not None:
                    yield key

    def _stored_keys(self, partition: _Partition) -> list[bytes]:
        if self._ttl_ms is None:
            return partition.store.all_keys()
        over = self._now(partition) - self._ttl_ms
        return [key for key, written in partition.store.timed_keys() if written > over]

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
            value = self._value_of(partition, self._look_up(partition, key))
            if value is not None:
                return value
        return _MISSING

    def _look_up(self, partition: _Partition, key: Any) -> Any:
        for layer in (partition.dirty, partition.committing, partition.cache):
            kept = layer.get(key, _MISSING)
            if kept is not _MISSING:
                return kept
        kept = self._stored(partition.store, self._key_codec.encode(key) or b"")
        if kept is not None and len(partition.cache) < self._cached_a_partition():
            partition.cache[key] = kept  # only a commit makes room again
        return kept

    def _cached_a_partition(self) -> int:
        return max(1, self.cache_entries // len(self._partitions))

    def _stored(self, store: Store, raw_key: bytes) -> Any:
        if self._ttl_ms is None:
            raw = store.get(raw_key)
            return None if raw is None else self._value_codec.decode(raw)
        timed = store.get_timed(raw_key)
        return None if timed is None else _Entry(self._value_codec.decode(timed[0]), timed[1])

    def _value_of(self, partition: _Partition, kept: Any) -> Any:
        """The value of what is buffered or stored; None when it was deleted or is over."""
        if self._ttl_ms is None or kept is None:
            return kept
        return kept.value if kept.written > self._now(partition) - self._ttl_ms else None

    def _now(self, partition: _Partition) -> int:
        work = current_work.get()
        if work is None or work.partition is None:
            return partition.time
        return max(partition.time, work.timestamp)

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
        partition = self._of_record(work.partition)
        if self._ttl_ms is not None:
            partition.written = self._now(partition)
        return partition

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
        """Open the partition's store; it may be behind its changelog. Raises `StateError`,
        `StoreError`."""
        store = self.store(partition, folder, changelog_id)
        self._partitions[partition] = _Partition(store)
        return store

    def store(self, partition: int, folder: Path, changelog_id: str) -> Store:
        """The store of a partition, which is not this instance's for that."""
        path = folder / self.name / str(partition)
        return Store(path, changelog_id, timed=self._ttl_ms is not None)

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
                _trim(partition.cache, self._cached_a_partition())
                taken.append(self._changes(number, partition))
        return taken

    def _changes(self, number: int, partition: _Partition) -> TableChanges:
        encode_key, encode_value = self._key_codec.encode, self._value_codec.encode
        changes: dict[bytes, bytes | None] = {}
        if self._ttl_ms is None:
            for key, value in partition.committing.items():
                changes[encode_key(key) or b""] = None if value is None else encode_value(value)
            return TableChanges(self, number, changes)
        times: dict[bytes, int] = {}
        for key, entry in partition.committing.items():
            raw_key = encode_key(key) or b""
            changes[raw_key] = None if entry is None else encode_value(entry.value)
            times[raw_key] = partition.time if entry is None else entry.written
        for raw_key in _sweep(partition, self._ttl_ms, _SWEPT_KEYS + 2 * len(changes)):
            if raw_key not in changes:
                changes[raw_key], times[raw_key] = None, partition.time
        return TableChanges(self, number, changes, times)

    def commit(self, changes: TableChanges, checkpoint: int) -> None:
        """Write to the store what the broker now has; `checkpoint` is the changelog's next
        offset after it. Raises `StoreError`."""
        partition = self._partitions[changes.partition]
        partition.store.write(changes.changes, checkpoint, changes.times)
        partition.committing = {}

    def rollback(self) -> None:
        """Forget what is not committed: written, being committed, or changed in place."""
        for number, partition in self._partitions.items():
            self._partitions[number] = _Partition(partition.store)

    def refresh(self, is_restored: Callable[[TopicPartition], bool]) -> None:
        """Mark idle stores as having everything, which only an owner knows, if the partition of
        `source` that they belong to is restored. To be called every few minutes, or a store
        untouched for half a day is rebuilt when it is next opened."""
        for number, partition in self._partitions.items():
            if is_restored(TopicPartition(self.source.name, number)):
                partition.store.refresh()

    def estimated_bytes(self) -> int:
        return sum(each.store.estimated_bytes() for each in self._partitions.values())

    def estimated_entries(self) -> int:
        return sum(each.store.estimated_entries() for each in self._partitions.values())


AnyTable = Table[Any, Any]


def _trim(cache: dict[Any, Any], limit: int) -> None:
    """Forget the entries that have been in the cache the longest."""
    excess = len(cache) - limit
    if excess > 0:
        for key in list(cache)[: excess + limit // 10]:
            cache.pop(key, None)


def _sweep(partition: _Partition, ttl_ms: int, limit: int) -> list[bytes]:
    """Which of the next `limit` keys of the store are over."""
    if partition.swept_to is None:
        if partition.time < partition.next_sweep:
            return []
        partition.swept_to = b""
        partition.next_sweep = partition.time + ttl_ms // 10
    keys = partition.store.timed_keys(partition.swept_to, limit)
    partition.swept_to = keys[-1][0] + b"\0" if len(keys) == limit else None
    return [key for key, written in keys if written <= partition.time - ttl_ms]
