"""The words that all of the runtime shares: records, topics, and what a broker can do.

A broker is anything that keeps these protocols: Apache Kafka (`kafka/`) or the local one
(`local/`). Their calls block, so a worker makes them on the one thread that owns its consumer
and producer, never on the event loop. Offsets are always *next* offsets: a committed offset,
a position and a high watermark each name the first record not yet read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import msgspec
from msgspec.structs import force_setattr

Headers = tuple[tuple[str, bytes], ...]
ProcessingGuarantee = Literal["exactly_once", "at_least_once"]


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as the broker keeps it. `timestamp` is milliseconds since the epoch, UTC."""

    # A struct takes a fifth of the time of a named tuple, and is nothing to the garbage collector.

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int
    headers: Headers = ()

    @property
    def topic_partition(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)


@dataclass(slots=True)
class Changes:
    """What records of one partition leave behind: the newest value of each key (None: deleted) and
    its timestamp. `next` is the offset after the last of the `records`, of which several may have
    had the same key."""

    values: dict[bytes, bytes | None] = field(default_factory=dict)
    times: dict[bytes, int] = field(default_factory=dict)
    next: int = 0
    records: int = 0


class Run(Protocol):
    """Consecutive records of one partition, by column: most of what is read needs no `Record`, and
    is worked on without one."""

    @property
    def partition(self) -> TopicPartition: ...

    @property
    def keys(self) -> Sequence[bytes | None]: ...

    @property
    def values(self) -> Sequence[bytes | None]: ...

    def offset(self, index: int) -> int: ...

    def record(self, index: int) -> Record: ...

    def __len__(self) -> int:
        """At least 1."""
        ...


class RecordRun:
    """A `Run` of records, at least one, all of one partition."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.partition = records[0].topic_partition
        self.keys = [record.key for record in records]
        self.values = [record.value for record in records]
        self._records = records

    def offset(self, index: int) -> int:
        return self._records[index].offset

    def record(self, index: int) -> Record:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)


class OutgoingRecord(msgspec.Struct, frozen=True, gc=False):
    """A record to be sent.

    Without a `partition` the key's murmur2 hash chooses one, as Kafka's own clients do; without
    a `timestamp` (milliseconds since the epoch, UTC) it is the time of sending.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    timestamp: int | None = None
    headers: Headers = ()
    size: int = 0
    """Bytes of key, value and headers: counted here, once, because it is asked for several times
    on a record's way."""

    def __post_init__(self) -> None:
        size = len(self.key or b"") + len(self.value or b"")
        if self.headers:
            size += sum(len(name) + len(content) for name, content in self.headers)
        force_setattr(self, "size", size)


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """What a topic should be. `retention_ms` -1 keeps for ever; sizes are bytes."""

    name: str
    partitions: int = 8
    replication_factor: int = 1
    cleanup_policy: Literal["delete", "compact"] = "delete"
    retention_ms: int = 7 * 24 * 3600 * 1000
    max_message_bytes: int = 1_048_576


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """What a topic is. `topic_id` changes when it is deleted and made again; `replication_factor`
    is that of the partition with the fewest replicas."""

    name: str
    topic_id: str
    partitions: int
    replication_factor: int


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """How a topic is configured, in the units of `TopicSpec`. `cleanup_policy` may be
    "compact,delete" as well. Compaction keeps a tombstone for `delete_retention_ms`; a record is
    acknowledged by `min_insync_replicas` at least."""

    cleanup_policy: str
    retention_ms: int
    max_message_bytes: int
    delete_retention_ms: int = 24 * 3600 * 1000
    min_insync_replicas: int = 1


class Watermarks(NamedTuple):
    """The first offset kept and the next offset to be written; equal when there is nothing."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class ConsumerConfig:
    """How a consumer reads. Without a `group` it only takes what `assign` gives it.

    `offset_reset` says where a partition without a committed offset starts, and what an offset
    out of range means: "error" raises `OffsetOutOfRange` from `poll`. Times are seconds, sizes
    bytes; `buffer_bytes` bounds what is fetched ahead. With an `instance_id` it is a static member
    of the group: its partitions stay its own while it is away for less than `session_timeout`.
    (The local broker, whose members end with it, has no use for that.)
    """

    group: str | None = None
    client_id: str = "ratestream"
    instance_id: str | None = None
    offset_reset: Literal["earliest", "latest", "error"] = "earliest"
    session_timeout: float = 10.0
    heartbeat_interval: float = 1.0
    max_poll_interval: float = 300.0
    buffer_bytes: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProducerConfig:
    """How a producer writes: always idempotent, always acknowledged by all in-sync replicas.

    A record not acknowledged within `delivery_timeout` seconds has failed. At most
    `buffer_bytes` and `buffer_records` wait to be sent; `send` waits when they are full. A
    transaction still open after `transaction_timeout` seconds is aborted by the broker.
    """

    client_id: str = "ratestream"
    linger: float = 0.005
    delivery_timeout: float = 60.0
    transaction_timeout: float = 10.0
    buffer_bytes: int = 64 * 1024 * 1024
    buffer_records: int = 200_000
    max_message_bytes: int = 8 * 1024 * 1024


class OffsetOutOfRange(Exception):  # noqa: N818 - a condition to act upon, not a failure
    """The position of `partition` is not, or no longer, in the log."""

    def __init__(self, partition: TopicPartition, offset: int) -> None:
        super().__init__(f"{partition.topic}[{partition.partition}] has no offset {offset}")
        self.partition = partition
        self.offset = offset


class RebalanceListener(Protocol):
    """Called inside `Consumer.poll` (and `close`), on its thread."""

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """Partitions that are newly this consumer's. They start paused, at the offsets returned
        here; those without one start where the group last committed."""
        ...

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions about to be given away: the last moment to commit for them."""
        ...

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions that are already someone else's: nothing can be committed for them."""
        ...


class Consumer(Protocol):
    """Reads partitions. Used by one thread at a time."""

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        """Join the group; partitions arrive through the listener, incrementally."""
        ...

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        """Read exactly these partitions from these offsets, without a group; not paused.
        Replaces what was assigned before; an empty mapping reads nothing."""
        ...

    def poll(self, max_records: int, timeout: float) -> list[Record]:
        """At most `max_records`, in offset order within a partition. Returns as soon as there is
        at least one, or empty after `timeout` seconds. Never returns a record of a paused or
        revoked partition. Raises `OffsetOutOfRange` (with `offset_reset="error"`) or `BrokerError`.
        """
        ...

    def poll_runs(self, max_records: int, timeout: float) -> list[Run]:
        """As `poll`, of the same records."""
        ...

    def poll_changes(self, max_records: int, timeout: float) -> dict[TopicPartition, Changes]:
        """As `poll`, for those who want what a log leaves behind, and no record of it."""
        ...

    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions this consumer has now."""
        ...

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Return nothing of these until `resume`; positions stay, heartbeats go on."""
        ...

    def resume(self, partitions: Sequence[TopicPartition]) -> None: ...

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """The next record read of an assigned partition is at `offset`."""
        ...

    def position(self, partition: TopicPartition) -> int | None:
        """The offset after the last record (or control record) passed; None before the first
        fetch of a partition that has no explicit start."""
        ...

    def watermarks(self, partition: TopicPartition, timeout: float = 10.0) -> Watermarks:
        """Asked of the broker, not of a cache. What is behind an open transaction does not count:
        it cannot be read yet. Raises `BrokerError`."""
        ...

    def stable_ends(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        """The high watermark of each, asked in one go. Raises `BrokerError`."""
        ...

    def log_end(self, partition: TopicPartition, timeout: float = 10.0) -> int:
        """The next offset to be written, open transactions included: a reader's position gets
        there when they have ended, whichever way. Raises `BrokerError`."""
        ...

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        """The group's committed offsets; partitions without one are absent."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Returns when the broker has it. Raises `FencedError` when a partition is no longer
        this consumer's, `BrokerError` otherwise."""
        ...

    def close(self) -> None:
        """Leave the group at once (after `revoked`), release everything. Does not commit."""
        ...


class Producer(Protocol):
    """Writes records. Used by one thread at a time."""

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        """Queue, in order; waits (bounded by the delivery timeout) while the buffer is full.
        Raises `MessageTooLargeError` before anything of the call is queued, `BrokerError` else.
        """
        ...

    def flush(self) -> dict[TopicPartition, int]:
        """Wait until everything sent is acknowledged; returns, for each partition that records
        since the last flush have named, the next offset after the last of them. Those that only
        keys have chosen may be missing. Raises `DeliveryError` when any record since the last
        flush failed, `MessageTooLargeError` when the broker refused one for its size."""
        ...

    def serve(self) -> None:
        """Take note of what is acknowledged by now, and wait for nothing: `flush` will have less
        to do. Raises `BrokerError` when this producer is of no more use."""
        ...

    def close(self) -> None:
        """Drop what is not flushed and release everything."""
        ...


class TransactionalProducer(Protocol):
    """Writes records and a group's offsets together or not at all: `begin`, `send` any number of
    times, then `commit` or `abort`. Used by one thread at a time.

    Of all producers with one transactional id the one made last is the only one that can commit.
    After any error but `TransactionAbortedError` a producer is of no more use than to be closed;
    the next one with its id finds out, when it is made, what became of the transaction.
    """

    def begin(self) -> None: ...

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        """As `Producer.send`, into the open transaction. `MessageTooLargeError` leaves it open."""
        ...

    def serve(self) -> None:
        """As `Producer.serve`."""
        ...

    def commit(
        self, offsets: Mapping[TopicPartition, int], consumer: Consumer
    ) -> dict[TopicPartition, int]:
        """Everything sent since `begin`, and `offsets` as committed by `consumer` for its group.
        Returns what `Producer.flush` does; the transaction's end may stand at such an offset.

        Raises `TransactionAbortedError` (also when the group has given a partition to another
        consumer, and when a record was not acknowledged) and `MessageTooLargeError`, as `flush`
        does: nothing has happened then. `FencedError` when another producer has the transactional
        id, or when `transaction_timeout` was over; it, as any other `BrokerError`, may be raised
        after a commit whose answer was lost.
        """
        ...

    def abort(self) -> None:
        """Nothing sent since `begin` has happened. Raises `BrokerError`."""
        ...

    def close(self) -> None:
        """Abort what is open, as far as the broker can be reached, and release everything."""
        ...


class Broker(Protocol):
    """Where topics live. Safe to share between threads; what it makes is not."""

    def consumer(self, config: ConsumerConfig) -> Consumer: ...

    def producer(self, config: ProducerConfig) -> Producer: ...

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> TransactionalProducer:
        """Fences the producer that had this id before; what that one left open is aborted, or
        complete, when this returns. Raises `BrokerError` when it cannot be had in time."""
        ...

    def require_transactions(self, probe: str, group: str, transactional_id: str) -> None:
        """Find out, by using the topic `probe`, whether transactions do here what Apache Kafka's
        do: hide what was aborted, commit offsets of `group`, fence a producer whose id another one
        has taken. Raises `ConfigurationError` that names what is missing, `BrokerError` when it
        cannot be found out now."""
        ...

    def cluster_id(self) -> str:
        """Names the cluster for ever. Raises `BrokerError` when it cannot be asked."""
        ...

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Make those that do not exist, and wait until they can be used; existing ones are left
        as they are. Raises `BrokerError`."""
        ...

    def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        """What exists of these; missing ones are absent. Raises `BrokerError`."""
        ...

    def topic_configs(self, names: Sequence[str]) -> dict[str, TopicConfig]:
        """The configuration of those that exist, which Kafka's ACLs allow by a right of its own
        (DESCRIBE_CONFIGS). Raises `BrokerError`."""
        ...

    def is_reachable(self) -> bool:
        """What is known now, without asking: False from the moment all connections are down
        until one is up again."""
        ...

    def trouble(self) -> str | None:
        """Why it is not reachable, as far as that is known; None while it is."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """How a worker runs an app. Times are seconds, sizes bytes; every buffer has its bound here.

    A commit happens every `commit_interval` or `commit_max_records`, whichever is first, and
    sooner when the input is drained. (At least once, what has been sent can be read some
    milliseconds after the record that it is of; the group hears of it every `commit_interval`.)
    `drain_timeout` bounds how long a rebalance or a stop waits for agents; then their work is
    dropped and will be read again. At most `max_instances` workers of one app can share
    `data_dir`. The broker aborts a transaction open for longer than `transaction_timeout`. With
    `standby` every instance also keeps, up to date, the tables of the partitions that it does not
    own. With `static_membership` a restart within `session_timeout` keeps its partitions. A worker
    that has committed nothing for `progress_timeout`, against a lag, ends; after half of that it is
    not ready.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data_dir: str = ".ratestream/state"
    max_instances: int = 16
    batch_max_records: int = 10_000
    commit_interval: float = 0.1
    commit_max_records: int = 50_000
    output_max_records: int = 50_000
    output_max_bytes: int = 32 * 1024 * 1024
    table_cache_entries: int = 20_000
    drain_timeout: float = 3.0
    session_timeout: float = 10.0
    heartbeat_interval: float = 1.0
    max_poll_interval: float = 300.0
    fetch_buffer_bytes: int = 2 * 1024 * 1024
    delivery_timeout: float = 60.0
    transaction_timeout: float = 10.0
    progress_timeout: float = 300.0
    standby: bool = False
    static_membership: bool = False
    retry_backoff_min: float = 0.5
    retry_backoff_max: float = 30.0
    create_topics: bool = True
    replication_factor: int = 1
