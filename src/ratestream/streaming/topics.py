"""A topic as a program declares it: a name, its types, and `send`."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

from ratestream.streaming.codecs import codec_for
from ratestream.streaming.errors import ConfigurationError, MessageTooLargeError
from ratestream.streaming.types import Headers, OutgoingRecord, Run, TopicSpec

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

    The record is the one at `index` of `run`; `run` and `partition` are None while no single
    record is current, as in `take`.
    """

    __slots__ = ("index", "outbox", "partition", "run")

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.partition: int | None = None
        self.run: Run | None = None
        self.index = 0

    @property
    def timestamp(self) -> int:
        """Of the record, milliseconds since the epoch."""
        return 0 if self.run is None else self.run.record(self.index).timestamp


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
        self._encode_key = self.key_codec.encode
        self._encode_value = self.value_codec.encode
        self._needs_key = spec.cleanup_policy == "compact"
        self._max_size = spec.max_message_bytes - RECORD_OVERHEAD_BYTES
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
        work = current_work.get()
        outbox = self.direct if work is None else work.outbox
        if outbox is None:
            raise ConfigurationError(f"{self.name}: nothing can be sent before the worker runs")
        return outbox.put(self.encode(key, value, timestamp, headers))

    def encode(
        self,
        key: K | None,
        value: V | None,
        timestamp: int | None = None,
        headers: Mapping[str, bytes] | Headers = (),
    ) -> OutgoingRecord:
        """The record that `send` would send. Raises `MessageTooLargeError`."""
        raw_key = None if key is None else self._encode_key(key)
        raw_value = None if value is None else self._encode_value(value)
        if raw_key is None and self._needs_key:
            raise ConfigurationError(f"{self.name} is compacted: a record needs a key")
        if headers and isinstance(headers, Mapping):
            headers = tuple(headers.items())
        record = OutgoingRecord(self.name, raw_key, raw_value, None, timestamp, headers)  # type: ignore[arg-type]  # a tuple by now
        if record.size > self._max_size:
            raise MessageTooLargeError(
                f"{self.name}: a record of {RECORD_OVERHEAD_BYTES + record.size} bytes, "
                f"max_message_bytes allows {self.spec.max_message_bytes}"
            )
        return record


AnyTopic = Topic[Any, Any]
