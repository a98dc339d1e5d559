"""Topics, logs and committed offsets in one SQLite database, and what memory knows of them.

A log is made of batches, as Kafka's are. A row for each record would be simpler, but `sqlite3`
lets go of Python's global lock at every row: beside a busy thread that was measured to be a
hundred times slower. One connection and one lock serve all threads; an append or a commit is one
SQLite transaction, and memory follows only when it has committed. Offsets may have gaps.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition
from typing import Any, NamedTuple

import msgspec

from ratestream.streaming.errors import BrokerError, StateError, TopicError
from ratestream.streaming.types import (
    Headers,
    OutgoingRecord,
    TopicConfig,
    TopicDescription,
    TopicPartition,
    TopicSpec,
)

FORMAT_VERSION = 1

# A batch is found by the offset after it: the first row with `next` > n has n, or what follows n.
# The last one of a transaction also covers the offset that the commit took. `written` is when it
# was appended and `timestamp` the newest of its records' (milliseconds, UTC); `records` is
# MessagePack, an array of [offset, key, value, timestamp, headers].
_SCHEMA = (
    "CREATE TABLE cluster (id TEXT NOT NULL)",
    """CREATE TABLE topic (
        name TEXT PRIMARY KEY, id TEXT NOT NULL, cleanup_policy TEXT NOT NULL,
        retention_ms INTEGER NOT NULL, max_message_bytes INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE log (
        id INTEGER PRIMARY KEY, topic TEXT NOT NULL REFERENCES topic, partition INTEGER NOT NULL,
        low INTEGER NOT NULL DEFAULT 0, high INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0, compacted INTEGER NOT NULL DEFAULT 0,
        compacted_bytes INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, partition)
    )""",
    """CREATE TABLE batch (
        log INTEGER NOT NULL, next INTEGER NOT NULL, timestamp INTEGER NOT NULL,
        written INTEGER NOT NULL, records BLOB NOT NULL, PRIMARY KEY (log, next)
    ) WITHOUT ROWID""",
    """CREATE TABLE committed (
        consumer_group TEXT NOT NULL, log INTEGER NOT NULL, next INTEGER NOT NULL,
        PRIMARY KEY (consumer_group, log)
    ) WITHOUT ROWID""",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)

# The write-ahead log is cut back to this after a transaction that needed more.
_WAL_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LocalBrokerConfig:
    """The local broker's bounds. Sizes are bytes as stored, times seconds.

    `retention_bytes` bounds each topic with cleanup "delete" (-1: no bound). Compaction starts
    when more than half of a log and more than `compaction_min_bytes` are new since the last one,
    takes at most `compaction_max_keys` keys at a time, and keeps a tombstone for
    `delete_retention`. One call of `run_maintenance` handles about `maintenance_bytes` a log.

    What `flush` and `commit` acknowledged always survives the death of the process. With
    `survive_power_loss` it is also synced to the disk first, so that a loader's Postgres is never
    ahead of the log; without, a power cut may take the last moments, whole transactions of them.
    """

    retention_bytes: int = 512 * 1024 * 1024
    batch_bytes: int = 256 * 1024
    compaction_min_bytes: int = 1024 * 1024
    compaction_max_keys: int = 100_000
    delete_retention: float = 24 * 3600.0
    maintenance_bytes: int = 16 * 1024 * 1024
    survive_power_loss: bool = True


class Stored(NamedTuple):
    """A record in a batch."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers


class Batch(NamedTuple):
    next: int
    timestamp: int
    written: int
    records: bytes


class Extent(NamedTuple):
    """What of a log there is; up to `compacted` it was `compacted_bytes` after compaction."""

    low: int = 0
    high: int = 0
    bytes: int = 0
    compacted: int = 0
    compacted_bytes: int = 0


@dataclass(eq=False, slots=True)
class Log:
    id: int
    partition: TopicPartition
    extent: Extent


@dataclass(frozen=True, eq=False, slots=True)
class Topic:
    description: TopicDescription
    config: TopicConfig
    logs: list[Log]


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(list[Stored]).decode


class Storage:
    """The database and what memory knows of it. `changed` is the lock of all of it, and is
    notified after every append; methods take it themselves where they write."""

    def __init__(self, path: Path | None, config: LocalBrokerConfig) -> None:
        self._config = config
        self.changed = Condition()
        self.is_open = True
        self._connection = _opened(path, config)
        self.cluster_id: str = self._connection.execute("SELECT id FROM cluster").fetchone()[0]
        self.topics: dict[str, Topic] = {}
        self._logs: dict[TopicPartition, Log] = {}
        self._load_topics()

    def require_open(self) -> None:
        if not self.is_open:
            raise BrokerError("the local broker is closed")

    def topic(self, name: str) -> Topic:
        try:
            return self.topics[name]
        except KeyError:
            raise BrokerError(f"there is no topic {name}") from None

    def log(self, partition: TopicPartition) -> Log:
        try:
            return self._logs[partition]
        except KeyError:
            raise BrokerError(f"there is no partition {partition_name(partition)}") from None

    def partitions_of(self, topic: str) -> list[TopicPartition]:
        found = self.topics.get(topic)
        return [log.partition for log in found.logs] if found else []

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        with self.transaction() as connection:
            for spec in specs:
                if spec.partitions < 1:
                    raise TopicError(f"topic {spec.name}: partitions={spec.partitions}, at least 1")
                connection.execute(
                    "INSERT INTO topic VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (
                        spec.name,
                        secrets.token_urlsafe(16),
                        spec.cleanup_policy,
                        spec.retention_ms,
                        spec.max_message_bytes,
                    ),
                )
                if spec.name not in self.topics:
                    connection.executemany(
                        "INSERT INTO log (topic, partition) VALUES (?, ?) ON CONFLICT DO NOTHING",
                        [(spec.name, number) for number in range(spec.partitions)],
                    )
        self._load_topics()

    def append(self, records: Mapping[Log, Sequence[OutgoingRecord]]) -> dict[TopicPartition, int]:
        """All of them or none; the next offset of each partition."""
        with self.changed:
            with self._appending(records, markers=0):
                pass
            return {log.partition: log.extent.high for log in records}

    def commit_transaction(
        self,
        records: Mapping[Log, Sequence[OutgoingRecord]],
        group: str,
        offsets: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """All of the records and the group's offsets, or nothing; the next offset of each partition
        after its last record. The commit takes that offset, as Kafka's marker does."""
        with self.changed:
            with self._appending(records, markers=1) as connection:
                self._insert_offsets(connection, group, offsets)
            return {log.partition: log.extent.high - 1 for log in records}

    @contextmanager
    def _appending(
        self, records: Mapping[Log, Sequence[OutgoingRecord]], *, markers: int
    ) -> Iterator[sqlite3.Connection]:
        now = now_ms()
        with self.changed:
            extents: dict[Log, Extent] = {}
            rows: list[tuple[int, Batch]] = []
            for log, outgoing in records.items():
                high = log.extent.high + len(outgoing) + markers
                batches = list(self._batched(_numbered(log.extent.high, outgoing), high, now))
                rows += [(log.id, batch) for batch in batches]
                size = log.extent.bytes + sum(len(batch.records) for batch in batches)
                extents[log] = log.extent._replace(high=high, bytes=size)
            with self.update(extents) as connection:
                insert_batches(connection, rows)
                yield connection
            self.changed.notify_all()

    def batches(self, log: Log, position: int) -> Generator[Batch, None, None]:
        """From the one with `position`, or the first after it. To be closed."""
        yield from map(
            Batch._make,
            self._rows(
                "SELECT next, timestamp, written, records FROM batch"
                " WHERE log = ? AND next > ? ORDER BY next",
                (log.id, position),
            ),
        )

    def batch_sizes(self, log: Log) -> Generator[tuple[int, int, int], None, None]:
        """`next`, `timestamp` and bytes of all batches, without reading them. To be closed."""
        yield from self._rows(
            "SELECT next, timestamp, length(records) FROM batch WHERE log = ? ORDER BY next",
            (log.id,),
        )

    def committed(self, group: str) -> dict[TopicPartition, int]:
        return {
            TopicPartition(topic, partition): offset
            for topic, partition, offset in self._rows(
                "SELECT topic, partition, next FROM committed JOIN log ON log.id = log"
                " WHERE consumer_group = ?",
                (group,),
            )
        }

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        with self.transaction() as connection:
            self._insert_offsets(connection, group, offsets)

    def _insert_offsets(
        self, connection: sqlite3.Connection, group: str, offsets: Mapping[TopicPartition, int]
    ) -> None:
        rows = [(group, self.log(partition).id, next_) for partition, next_ in offsets.items()]
        connection.executemany("REPLACE INTO committed VALUES (?, ?, ?)", rows)

    @contextmanager
    def update(self, extents: Mapping[Log, Extent]) -> Iterator[sqlite3.Connection]:
        """A transaction that also gives logs their new extents, here and in the database."""
        with self.changed:
            with self.transaction() as connection:
                yield connection
                connection.executemany(
                    "UPDATE log SET low = ?, high = ?, bytes = ?, compacted = ?,"
                    " compacted_bytes = ? WHERE id = ?",
                    [(*extent, log.id) for log, extent in extents.items()],
                )
            for log, extent in extents.items():
                log.extent = extent

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self.changed, _translating():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def shrink(self, max_bytes: int) -> None:
        """Give back to the disk what is free beyond a quarter, which the next records will need."""
        with self.changed, _translating():
            size, pages, free = (
                self._connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
            if (surplus := free - pages // 4) > 0:
                count = min(surplus, max_bytes // size)
                # `execute` would stop after the first page: a step a page, and no columns.
                self._connection.executescript(f"PRAGMA incremental_vacuum({count})")

    def close(self) -> None:
        with self.changed:
            self.is_open = False
            self._connection.close()
            self.changed.notify_all()

    def _rows(self, query: str, parameters: Sequence[object] = ()) -> Iterator[Any]:
        with _translating(), closing(self._connection.execute(query, parameters)) as rows:
            yield from rows

    def _batched(self, records: Sequence[Stored], next_: int, now: int) -> Iterator[Batch]:
        encoded = encode(records)
        if len(encoded) > self._config.batch_bytes and len(records) > 1:
            middle = len(records) // 2
            yield from self._batched(records[:middle], records[middle].offset, now)
            yield from self._batched(records[middle:], next_, now)
        else:
            newest = max(record.timestamp for record in records)
            yield Batch(next_, newest, now, encoded)

    def _load_topics(self) -> None:
        found: dict[str, list[Log]] = {}
        for id_, topic, partition, *extent in self._rows(
            "SELECT id, topic, partition, low, high, bytes, compacted, compacted_bytes"
            " FROM log ORDER BY topic, partition"
        ):
            key = TopicPartition(topic, partition)
            log = self._logs.setdefault(key, Log(id_, key, Extent(*extent)))
            found.setdefault(topic, []).append(log)
        for name, topic_id, *settings in self._rows("SELECT * FROM topic"):
            description = TopicDescription(name, topic_id, len(found[name]), 1)
            topic = Topic(description, TopicConfig(*settings), found[name])
            self.topics.setdefault(name, topic)


def _opened(path: Path | None, config: LocalBrokerConfig) -> sqlite3.Connection:
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path or ":memory:", timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, config)
        except BaseException:
            connection.close()
            raise
    except (OSError, sqlite3.Error) as exc:
        if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise StateError(f"{path} is in use by another process") from exc
        raise StateError(f"{path} cannot be used: {exc}") from exc
    return connection


def _prepare(connection: sqlite3.Connection, path: Path | None, config: LocalBrokerConfig) -> None:
    # Exclusive: SQLite's own lock on the file, until it is closed or the process is gone.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT_VERSION:
        raise StateError(
            f"{path} has format version {version}; this ratestream knows {FORMAT_VERSION}: "
            "use the newer ratestream that wrote it, or another data folder"
        )
    is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if version == 0 and not is_empty:
        raise StateError(f"{path} is a SQLite database, but not one of ratestream's broker")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    synchronous = "FULL" if config.survive_power_loss else "NORMAL"
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("BEGIN EXCLUSIVE")
    if is_empty:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO cluster VALUES (?)", (secrets.token_urlsafe(16),))
    connection.execute("COMMIT")


def _numbered(offset: int, records: Sequence[OutgoingRecord]) -> list[Stored]:
    return [
        Stored(offset + index, record.key, record.value, record.timestamp or 0, record.headers)
        for index, record in enumerate(records)
    ]


def insert_batches(connection: sqlite3.Connection, rows: Sequence[tuple[int, Batch]]) -> None:
    connection.executemany(
        "INSERT INTO batch VALUES (?, ?, ?, ?, ?)", [(log_id, *batch) for log_id, batch in rows]
    )


def delete_batches(connection: sqlite3.Connection, log: Log, start: int, end: int) -> None:
    """The batches after `start` up to `end`."""
    connection.execute(
        "DELETE FROM batch WHERE log = ? AND next > ? AND next <= ?", (log.id, start, end)
    )


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise BrokerError(f"SQLite: {exc}") from exc


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def partition_name(partition: TopicPartition) -> str:
    return f"{partition.topic}[{partition.partition}]"
