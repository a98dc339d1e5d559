"""`ratestream dead-letter`: list, show, and send again."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from enum import Enum
from itertools import islice
from typing import Annotated

import msgspec

from ratestream.operations.deadletters import MARKER, DeadLetters, Letter, LetterId, text_of
from ratestream.operations.deployment import DEAD_LETTER, Deployment
from ratestream.operations.errors import OperationError
from ratestream.streaming import OutgoingRecord, ProducerConfig, Record
from ratestream.streaming.topics import RECORD_OVERHEAD_BYTES
from ratestream.streaming.types import TopicConfig

MAX_LISTED = 10_000
MAX_REPLAYED = 100
"""Letters that one operation lists, and sends again."""

SHOWN_BYTES = 64 * 1024


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which letters. `reason` is any part of it, in capitals or not; those that were replayed are
    left out unless `replayed`."""

    topic: str | None = None
    service: str | None = None
    reason: str | None = None
    since: datetime | None = None
    replayed: bool = False

    def takes(self, letter: Letter) -> bool:
        headers = letter.headers
        return (
            (self.replayed or not letter.replayed)
            and self.topic in (None, headers.get("topic"))
            and self.service in (None, headers.get("service"))
            and (self.reason or "").lower() in headers.get("reason", "").lower()
            and (self.since is None or letter.timestamp >= self.since.timestamp() * 1000)
        )


class ListedLetter(msgspec.Struct, frozen=True):
    """One line of a list; `topic` and `service` are where it was refused, and by whom."""

    id: str
    time: datetime
    topic: str
    service: str
    reason: str
    key: str | None
    replayed: bool


class LetterList(msgspec.Struct, frozen=True):
    """`is_complete` is False when older letters were not looked at because it took too long."""

    letters: list[ListedLetter]
    is_complete: bool


class ShownLetter(msgspec.Struct, frozen=True):
    """A whole letter. Of a long value only the beginning is here; `value_bytes` is all of it."""

    id: str
    time: datetime
    headers: list[tuple[str, str]]
    key: str | None
    value: str | None
    value_bytes: int


class Outcome(Enum):
    """What became of a letter that was to be replayed."""

    REPLAYED = "replayed"
    POSSIBLE = "possible"
    REFUSED = "refused"


class ReplayedLetter(msgspec.Struct, frozen=True):
    """`topic` is where it went, or would go; `reason` why it was refused."""

    id: str
    outcome: Outcome
    topic: str = ""
    reason: str = ""


class ListDeadLetters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The newest letters, newest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LISTED)] = 20
    filter: Filter = Filter()

    async def run(self, deployment: Deployment) -> LetterList:
        return await asyncio.to_thread(_list, deployment, self.limit, self.filter)


class ShowDeadLetter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One letter with its headers and value."""

    id: str

    async def run(self, deployment: Deployment) -> ShownLetter:
        return await asyncio.to_thread(_show, deployment, LetterId.parse(self.id))


class ReplayDeadLetters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Send letters again to the topics they came from, in the order given, and mark them. Those
    that were replayed before are refused unless `again`; with `dry_run` nothing is sent."""

    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_REPLAYED)]
    again: bool = False
    dry_run: bool = False

    async def run(self, deployment: Deployment) -> list[ReplayedLetter]:
        ids = [LetterId.parse(each) for each in dict.fromkeys(self.ids)]
        return await asyncio.to_thread(_replay, deployment, ids, self.again, self.dry_run)


def _list(deployment: Deployment, limit: int, wanted: Filter) -> LetterList:
    since = int(wanted.since.timestamp() * 1000) if wanted.since else 0
    with DeadLetters(deployment.broker) as letters:
        found: list[Letter] = []
        for partition in range(letters.partitions):
            taken = filter(wanted.takes, letters.newest(partition, since=since))
            found = _newest([*found, *islice(taken, limit)], limit)
        return LetterList([_listed(each) for each in found], letters.is_complete)


def _newest(letters: Sequence[Letter], limit: int) -> list[Letter]:
    return heapq.nlargest(limit, letters, key=lambda each: (each.timestamp, each.id))


def _listed(letter: Letter) -> ListedLetter:
    headers = letter.headers
    return ListedLetter(
        str(letter.id),
        _moment(letter.timestamp),
        headers.get("topic", ""),
        headers.get("service", ""),
        headers.get("reason", ""),
        None if letter.key is None else text_of(letter.key),
        letter.replayed,
    )


def _show(deployment: Deployment, letter: LetterId) -> ShownLetter:
    with DeadLetters(deployment.broker) as letters:
        record = letters.record(letter)
    value = record.value
    return ShownLetter(
        str(letter),
        _moment(record.timestamp),
        [(name, text_of(content[:SHOWN_BYTES])) for name, content in record.headers],
        None if record.key is None else text_of(record.key[:SHOWN_BYTES]),
        None if value is None else text_of(value[:SHOWN_BYTES]),
        len(value or b""),
    )


def _replay(
    deployment: Deployment, ids: Sequence[LetterId], again: bool, dry_run: bool
) -> list[ReplayedLetter]:
    """First every letter is acknowledged by its topic, then the markers are written: a crash
    between the two may repeat letters and loses none."""
    results: list[ReplayedLetter] = []
    markers: list[OutgoingRecord] = []
    broker = deployment.broker
    config = ProducerConfig(
        client_id="ratestream-replay",
        max_message_bytes=deployment.plan.topics[DEAD_LETTER].max_message_bytes,
    )
    with DeadLetters(broker) as letters, closing(broker.producer(config)) as producer:
        done = set() if again else _replayed_among(letters, ids)
        targets = _targets(deployment)
        for letter in ids:
            try:
                record = letters.record(letter)
                sent = _again(record, letter, targets, letter in done)
            except OperationError as error:
                results.append(ReplayedLetter(str(letter), Outcome.REFUSED, reason=str(error)))
                continue
            if not dry_run:
                producer.send([sent])
                markers.append(_marker(record))
            outcome = Outcome.POSSIBLE if dry_run else Outcome.REPLAYED
            results.append(ReplayedLetter(str(letter), outcome, sent.topic))
        producer.flush()
        producer.send(markers)
        producer.flush()
    return results


def _replayed_among(letters: DeadLetters, ids: Sequence[LetterId]) -> set[LetterId]:
    """Raises `OperationError` when there are too many newer letters to find out."""
    first: dict[int, int] = {}
    for partition, offset in ids:
        if partition < letters.partitions:
            first[partition] = min(offset, first.get(partition, offset))
    done = {
        letter.id
        for partition, offset in first.items()
        for letter in letters.newest(partition, down_to=offset)
        if letter.replayed
    }
    if not letters.is_complete:
        raise OperationError(
            "there are too many newer letters to find out whether these were replayed before; "
            "--again does not ask"
        )
    return done


def _targets(deployment: Deployment) -> dict[str, TopicConfig]:
    """The topics that a letter may be sent to: those that services read."""
    plan = deployment.plan
    return deployment.broker.topic_configs(
        sorted(plan.topics.keys() - plan.sources.keys() - {DEAD_LETTER})
    )


def _again(
    record: Record, letter: LetterId, targets: Mapping[str, TopicConfig], is_done: bool
) -> OutgoingRecord:
    """With the time of the replay: retention must not delete what is already old. Raises
    `OperationError` when this letter cannot be sent again."""
    received = dict(record.headers)
    name = text_of(received.get("topic", b""))
    target = targets.get(name)
    headers = (("replay-of", f"{DEAD_LETTER} {letter}".encode()),)
    size = RECORD_OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"")
    if is_done:
        raise OperationError("it was replayed before; --again does it once more")
    if target is None:
        raise OperationError(f"its header topic, {name!r}, is none of {', '.join(targets)}")
    if "offset" not in received:
        raise OperationError(
            f"it never was on {name}: this is only the beginning of something too large for it"
        )
    if size > target.max_message_bytes:
        raise OperationError(
            f"it has {size} bytes, max_message_bytes of {name} allows {target.max_message_bytes}"
        )
    return OutgoingRecord(name, record.key, record.value, headers=headers)


def _marker(record: Record) -> OutgoingRecord:
    headers = ((MARKER, str(record.offset).encode()),)
    return OutgoingRecord(record.topic, record.key, None, record.partition, headers=headers)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
