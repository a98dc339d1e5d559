"""What is on the `dead-letter` topic: read backwards, newest first, a bounded piece at a time.

A letter is known by its place, `partition:offset`. One that was replayed has a marker behind it in
its own partition: a record without a value whose header `replayed` is the letter's offset.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ratestream.operations.deployment import DEAD_LETTER
from ratestream.operations.errors import OperationError
from ratestream.streaming import Broker, BrokerError, ConsumerConfig, Record, TopicPartition
from ratestream.streaming.types import Consumer

MARKER = "replayed"

_LETTER_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,18})")
_PIECE_OFFSETS = 1_000
_POLL_RECORDS = 50
_POLL_SECONDS = 0.5
_SILENT_SECONDS = 10.0
_BUFFER_BYTES = 8 * 1024 * 1024
_SCAN_SECONDS = 30.0
_KEPT_KEY_BYTES = 200
_KEPT_HEADER_BYTES = 1_000


class LetterId(NamedTuple):
    """Where a letter stands on the dead-letter topic."""

    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> LetterId:
        """Raises `OperationError` unless it is `partition:offset`."""
        found = _LETTER_ID.fullmatch(text)
        if found is None:
            raise OperationError(
                f"{text[:40]!r} is no letter: partition:offset, as ratestream dead-letter list "
                "shows it"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A letter without its value. `timestamp` is milliseconds since the epoch, UTC."""

    id: LetterId
    timestamp: int
    key: bytes | None
    headers: Mapping[str, str]
    replayed: bool = False


class DeadLetters:
    """Reads the topic; use it as a context manager. Raises `OperationError` when there is no such
    topic or letter, `BrokerError` otherwise."""

    def __init__(self, broker: Broker) -> None:
        found = broker.describe_topics([DEAD_LETTER]).get(DEAD_LETTER)
        if found is None:
            raise OperationError(
                f"there is no topic {DEAD_LETTER} yet: run ratestream topics create, or start the "
                "services"
            )
        self.partitions = found.partitions
        self.is_complete = True
        """False once a scan has ended early because it took too long."""
        self._deadline = time.monotonic() + _SCAN_SECONDS
        self._consumer: Consumer = broker.consumer(
            ConsumerConfig(client_id="ratestream-dead-letter", buffer_bytes=_BUFFER_BYTES)
        )

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def newest(self, partition: int, *, since: int = 0, down_to: int = 0) -> Iterator[Letter]:
        """The letters of one partition, newest first, down to an offset or until a whole piece
        is older than `since` (milliseconds since the epoch)."""
        log = TopicPartition(DEAD_LETTER, partition)
        low, end = self._consumer.watermarks(log)
        low = max(low, down_to)
        replayed: set[int] = set()
        while end > low:
            if time.monotonic() > self._deadline:
                self.is_complete = False
                return
            start = max(low, end - _PIECE_OFFSETS)
            piece = []
            for record in self._read(log, start, end):
                offset = _marked(record)
                if offset is None:
                    piece.append(_without_value(record))
                else:
                    replayed.add(offset)
            for letter in reversed(piece):
                yield _with_mark(letter, replayed)
            if piece and piece[-1].timestamp < since:
                return
            end = start

    def record(self, letter: LetterId) -> Record:
        """The whole record of one letter."""
        if letter.partition < self.partitions:
            log = TopicPartition(DEAD_LETTER, letter.partition)
            low, high = self._consumer.watermarks(log)
            if low <= letter.offset < high:
                for record in islice(self._read(log, letter.offset, letter.offset + 1), 1):
                    if _marked(record) is None:
                        return record
        raise OperationError(
            f"there is no letter {letter}: it may have been deleted because of its age"
        )

    def _read(self, log: TopicPartition, start: int, end: int) -> Iterator[Record]:
        """The records between two offsets, a few at a time. Offsets may be missing."""
        self._consumer.assign({log: start})
        heard = time.monotonic()
        while (self._consumer.position(log) or start) < end:
            records = self._consumer.poll(min(_POLL_RECORDS, end - start), _POLL_SECONDS)
            if records:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENT_SECONDS:
                raise BrokerError(
                    f"{log.topic}[{log.partition}] gave nothing for {_SILENT_SECONDS:g} s"
                )
            for record in records:
                if record.offset >= end:
                    return
                yield record


def text_of(content: bytes) -> str:
    """UTF-8, with what is not written as `\\x..`."""
    return content.decode(errors="backslashreplace")


def _marked(record: Record) -> int | None:
    """The offset that a marker marks; None for a letter."""
    if record.value is not None:
        return None
    mark = dict(record.headers).get(MARKER, b"")
    return int(mark) if mark.isdigit() else None


def _without_value(record: Record) -> Letter:
    return Letter(
        LetterId(record.partition, record.offset),
        record.timestamp,
        None if record.key is None else record.key[:_KEPT_KEY_BYTES],
        {name: text_of(content[:_KEPT_HEADER_BYTES]) for name, content in record.headers},
    )


def _with_mark(letter: Letter, replayed: set[int]) -> Letter:
    if letter.id.offset not in replayed:
        return letter
    replayed.discard(letter.id.offset)
    return Letter(letter.id, letter.timestamp, letter.key, letter.headers, replayed=True)
