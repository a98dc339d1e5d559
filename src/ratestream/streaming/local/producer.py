"""How the local broker is written: a bounded buffer, and one transaction a flush."""

from __future__ import annotations

from collections.abc import Sequence

from ratestream.streaming.errors import BrokerError, DeliveryError, MessageTooLargeError
from ratestream.streaming.local.partitioner import partition_for
from ratestream.streaming.local.storage import Log, Storage, now_ms
from ratestream.streaming.types import OutgoingRecord, ProducerConfig, TopicPartition


class LocalProducer:
    """A `Producer`. Writes when its buffer is full, and at `flush`."""

    def __init__(self, storage: Storage, config: ProducerConfig) -> None:
        self._storage = storage
        self._config = config
        self._buffer: dict[Log, list[OutgoingRecord]] = {}
        self._buffered_records = 0
        self._buffered_bytes = 0
        self._next: dict[TopicPartition, int] = {}
        self._failure: BrokerError | None = None
        self._keyless_turn = 0

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        sizes = [self._checked_size(record) for record in records]
        logs = [self._log_for(record) for record in records]
        for record, log, size in zip(records, logs, sizes, strict=True):
            if self._is_full(size):
                self._write()
            if record.timestamp is None:
                record = record._replace(timestamp=now_ms())  # noqa: PLW2901
            self._buffer.setdefault(log, []).append(record)
            self._buffered_records += 1
            self._buffered_bytes += size

    def flush(self) -> dict[TopicPartition, int]:
        try:
            self._write()
            if self._failure:
                raise DeliveryError(f"records were not written: {self._failure}")
            return self._next
        finally:
            self._next, self._failure = {}, None

    def close(self) -> None:
        self._buffer = {}

    def _checked_size(self, record: OutgoingRecord) -> int:
        size = len(record.key or b"") + len(record.value or b"")
        for name, value in record.headers:
            size += len(name) + len(value)
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

    def _is_full(self, size: int) -> bool:
        return self._buffered_records > 0 and (
            self._buffered_records >= self._config.buffer_records
            or self._buffered_bytes + size > self._config.buffer_bytes
        )

    def _write(self) -> None:
        """Raises `DeliveryError`, and the records are gone: nothing was written of them."""
        buffer, self._buffer = self._buffer, {}
        self._buffered_records = self._buffered_bytes = 0
        self._keyless_turn += 1
        if not buffer:
            return
        try:
            self._next |= self._storage.append(buffer)
        except BrokerError as exc:
            self._failure = exc
            raise DeliveryError(f"records were not written: {exc}") from exc
