"""How the local broker is written: a bounded buffer, and one SQLite transaction a flush or commit.

A transaction is nowhere but in its producer's buffer until it commits: nobody can read what is not
committed, and a producer that dies leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum

import msgspec

from ratestream.streaming.errors import (
    BrokerError,
    DeliveryError,
    FencedError,
    MessageTooLargeError,
    TransactionAbortedError,
)
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.partitioner import partition_for
from ratestream.streaming.local.storage import Log, Storage, now_ms
from ratestream.streaming.types import Consumer, OutgoingRecord, ProducerConfig, TopicPartition


class LocalProducer:
    """A `Producer`. Writes when its buffer is full, and at `flush`."""

    def __init__(self, storage: Storage, config: ProducerConfig) -> None:
        self._storage = storage
        self._buffer = _Buffer(storage, config)
        self._next: dict[TopicPartition, int] = {}
        self._failure: BrokerError | None = None

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        for record, log, size in self._buffer.checked(records):
            if self._buffer.is_full(size):
                self._write()
            self._buffer.add(record, log, size)

    def flush(self) -> dict[TopicPartition, int]:
        try:
            self._write()
            if self._failure:
                raise DeliveryError(f"records were not written: {self._failure}")
            return self._next
        finally:
            self._next, self._failure = {}, None

    def serve(self) -> None:
        """There is nothing to be served: what is written is acknowledged."""

    def close(self) -> None:
        self._buffer.clear()

    def _write(self) -> None:
        """Raises `DeliveryError`, and the records are gone: nothing was written of them."""
        records = self._buffer.take()
        if not records:
            return
        try:
            self._next |= self._storage.append(records)
        except BrokerError as exc:
            self._failure = exc
            raise DeliveryError(f"records were not written: {exc}") from exc


class _State(Enum):
    READY = "not in a transaction"
    OPEN = "in a transaction"
    FAILED = "of no more use: it failed"
    CLOSED = "closed"


_NEXT_STATES = {
    _State.READY: {_State.OPEN, _State.FAILED, _State.CLOSED},
    _State.OPEN: {_State.READY, _State.FAILED, _State.CLOSED},
    _State.FAILED: {_State.CLOSED},
    _State.CLOSED: {_State.CLOSED},
}


class LocalTransactionalProducer:
    """A `TransactionalProducer`. The whole transaction has to fit its buffer: `send` raises
    `BrokerError` beyond it. `producers` holds the newest producer of each transactional id."""

    def __init__(
        self,
        storage: Storage,
        config: ProducerConfig,
        transactional_id: str,
        producers: dict[str, LocalTransactionalProducer],
        clock: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._config = config
        self._id = transactional_id
        self._producers = producers
        self._clock = clock
        self._buffer = _Buffer(storage, config)
        self._state = _State.READY
        self._deadline = 0.0
        with storage.changed:
            storage.require_open()
            producers[transactional_id] = self

    def begin(self) -> None:
        self._transition_to(_State.OPEN)
        self._deadline = self._clock() + self._config.transaction_timeout
        with self._ended_by_errors():
            self._require_newest()

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        self._require_transaction()
        with self._ended_by_errors():
            for record, log, size in self._buffer.checked(records):
                if self._buffer.is_full(size):
                    raise BrokerError(
                        f"a transaction of {self._id} is larger than buffer_records="
                        f"{self._config.buffer_records} or buffer_bytes={self._config.buffer_bytes}"
                    )
                self._buffer.add(record, log, size)

    def serve(self) -> None:
        """There is nothing to be served: nothing is written before the commit."""

    def commit(
        self, offsets: Mapping[TopicPartition, int], consumer: Consumer
    ) -> dict[TopicPartition, int]:
        self._require_transaction()
        # One lock over the checks and the write: nothing can come between them.
        with self._ended_by_errors(), self._storage.changed:
            self._require_newest()
            self._require_in_time()
            group = _require_group(consumer, offsets) if offsets else ""
            ends = self._storage.commit_transaction(self._buffer.take(), group, offsets)
        self._transition_to(_State.READY)
        return ends

    def abort(self) -> None:
        self._require_transaction()
        self._transition_to(_State.READY)

    def close(self) -> None:
        self._transition_to(_State.CLOSED)
        with self._storage.changed:
            if self._producers.get(self._id) is self:
                del self._producers[self._id]

    def _transition_to(self, state: _State) -> None:
        if state not in _NEXT_STATES[self._state]:
            raise BrokerError(f"the producer of {self._id} is {self._state.value}")
        self._state = state
        self._buffer.clear()

    @contextmanager
    def _ended_by_errors(self) -> Iterator[None]:
        try:
            yield
        except TransactionAbortedError:
            self._transition_to(_State.READY)
            raise
        except BrokerError:
            self._transition_to(_State.FAILED)
            raise

    def _require_transaction(self) -> None:
        if self._state is not _State.OPEN:
            raise BrokerError(f"the producer of {self._id} is {self._state.value}")

    def _require_newest(self) -> None:
        if self._producers.get(self._id) is not self:
            raise FencedError(f"another producer has the transactional id {self._id} now")

    def _require_in_time(self) -> None:
        if self._clock() > self._deadline:
            raise TransactionAbortedError(
                f"a transaction of {self._id} was open for longer than transaction_timeout="
                f"{self._config.transaction_timeout:g} s"
            )


def _require_group(consumer: Consumer, offsets: Mapping[TopicPartition, int]) -> str:
    """The group for which `consumer` may commit `offsets`."""
    if not isinstance(consumer, LocalConsumer):
        raise BrokerError("a transaction commits offsets of a consumer of the same broker only")
    try:
        return consumer.require_owned(offsets)
    except FencedError as exc:
        raise TransactionAbortedError(str(exc)) from exc


class _Buffer:
    """Records on their way to their logs, within the bounds of a `ProducerConfig`."""

    def __init__(self, storage: Storage, config: ProducerConfig) -> None:
        self._storage = storage
        self._config = config
        self._records: dict[Log, list[OutgoingRecord]] = {}
        self._count = 0
        self._bytes = 0
        self._keyless_turn = 0

    def checked(
        self, records: Sequence[OutgoingRecord]
    ) -> Iterator[tuple[OutgoingRecord, Log, int]]:
        """Each with its log and its bytes, after all of them have been checked."""
        sizes = [self._checked_size(record) for record in records]
        logs = [self._log_for(record) for record in records]
        return zip(records, logs, sizes, strict=True)

    def is_full(self, size: int) -> bool:
        """Whether a record of `size` bytes is too much; one alone never is."""
        return self._count > 0 and (
            self._count >= self._config.buffer_records
            or self._bytes + size > self._config.buffer_bytes
        )

    def add(self, record: OutgoingRecord, log: Log, size: int) -> None:
        if record.timestamp is None:
            record = msgspec.structs.replace(record, timestamp=now_ms())
        self._records.setdefault(log, []).append(record)
        self._count += 1
        self._bytes += size

    def take(self) -> dict[Log, list[OutgoingRecord]]:
        records = self._records
        self.clear()
        self._keyless_turn += 1
        return records

    def clear(self) -> None:
        self._records = {}
        self._count = self._bytes = 0

    def _checked_size(self, record: OutgoingRecord) -> int:
        size = record.size
        topic = self._storage.topic(record.topic).config
        allowed = min(topic.max_message_bytes, self._config.max_message_bytes)
        if size > allowed:
            raise MessageTooLargeError(
                f"a record for {record.topic} has {size} bytes; max_message_bytes is {allowed}"
            )
        if record.key is None and topic.cleanup_policy == "compact":
            raise BrokerError(f"a record for the compacted topic {record.topic} has no key")
        return size

    def _log_for(self, record: OutgoingRecord) -> Log:
        logs = self._storage.topic(record.topic).logs
        if record.partition is not None:
            return self._storage.log(TopicPartition(record.topic, record.partition))
        if record.key is None:
            return logs[self._keyless_turn % len(logs)]
        return logs[partition_for(record.key, len(logs))]
