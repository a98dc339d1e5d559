"""A topic as a program declares it: a name, its types, and `send`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

from ratestream.streaming.codecs import codec_for
from ratestream.streaming.errors import ConfigurationError, MessageTooLargeError
from ratestream.streaming.types import Headers, OutgoingRecord, TopicSpec

K = TypeVar("K")
V = TypeVar("V")

RECORD_OVERHEAD_BYTES = 256
"""What a record may take on the wire beside its key, value and headers."""


class Outbox(Protocol):
    """Where `send` puts a record. While it `is_full` agents begin no further record."""

    @property
    def is_full(self) -> bool: ...

    def put(self, record: OutgoingRecord) -> Awaitable[None]: ...


class Work:
    """What an agent is doing: where its sends go, and the partition whose record it is at.

    `partition` is None while no single record is current, as in `take`; `timestamp` is that of the
    latest record, milliseconds since the epoch.
    """

    __slots__ = ("outbox", "partition", "timestamp")

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.partition: int | None = None
        self.timestamp = 0


current_work: ContextVar[Work | None] = ContextVar("current_work", default=None)
"""Set inside agents and nowhere else: timers, tasks and pages have none."""


class Topic(Generic[K, V]):
    """A topic of the app.

    `send` inside an agent only buffers: the record is written when the agent's progress is
    committed. From timers, tasks and pages it returns when the broker has acknowledged the
    record, and raises `DeliveryError` when it does not.
    """

    def __init__(self, spec: TopicSpec, key_type: type[K], value_type: type[V]) -> None:
        self.spec = spec
        self.name = spec.name
        self.key_codec = codec_for(key_type)
        self.value_codec = codec_for(value_type)
        self._needs_key = spec.cleanup_policy == "compact"
        self._max_bytes = spec.max_message_bytes
        self.direct: Outbox | None = None
        """Where sends from outside agents go; the worker sets it while it runs."""

    def send(
        self,
        *,
        key: K | None = None,
        value: V | None,
        timestamp: int | None = None,
        headers: Mapping[str, bytes] | Headers = (),
    ) -> Awaitable[None]:
        """Send one record. `timestamp` is milliseconds since the epoch, UTC; now if left out.
        Raises `MessageTooLargeError` when the topic would not take it."""
        record = self.encode(key, value, timestamp, headers)
        work = current_work.get()
        outbox = self.direct if work is None else work.outbox
        if outbox is None:
            raise ConfigurationError(f"{self.name}: nothing can be sent before the worker runs")
        return outbox.put(record)

    def encode(
        self,
        key: K | None,
        value: V | None,
        timestamp: int | None = None,
        headers: Mapping[str, bytes] | Headers = (),
    ) -> OutgoingRecord:
        """The record that `send` would send. Raises `MessageTooLargeError`."""
        raw_key = None if key is None else self.key_codec.encode(key)
        raw_value = None if value is None else self.value_codec.encode(value)
        raw_headers = tuple(headers.items()) if isinstance(headers, Mapping) else headers
        if raw_key is None and self._needs_key:
            raise ConfigurationError(f"{self.name} is compacted: a record needs a key")
        record = OutgoingRecord(self.name, raw_key, raw_value, None, timestamp, raw_headers)
        size = RECORD_OVERHEAD_BYTES + record.size
        if size > self._max_bytes:
            raise MessageTooLargeError(
                f"{self.name}: a record of {size} bytes, max_message_bytes allows {self._max_bytes}"
            )
        return record


AnyTopic = Topic[Any, Any]
