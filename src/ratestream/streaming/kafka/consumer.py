"""How Kafka is read: librdkafka's consumer as the runtime's."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import confluent_kafka as librdkafka
from confluent_kafka import (
    OFFSET_INVALID,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
)
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]  # not in its __all__

from ratestream.streaming.errors import BrokerError, FencedError
from ratestream.streaming.kafka.admin import Admin
from ratestream.streaming.kafka.calls import BoundedCalls
from ratestream.streaming.kafka.config import KafkaConfig, consumer_settings
from ratestream.streaming.kafka.connections import Connections, LibrdkafkaLog, Reachability
from ratestream.streaming.kafka.errors import (
    FENCED,
    LEADER_CHANGED,
    OUT_OF_RANGE,
    PASSING,
    UNREACHABLE,
    configuring,
    error_of,
)
from ratestream.streaming.kafka.partitions import (
    at,
    headers_of,
    name_of,
    names_of,
    ours,
    partition_of,
    raise_partition_error,
    runs,
    theirs,
)
from ratestream.streaming.types import (
    Changes,
    ConsumerConfig,
    OffsetOutOfRange,
    RebalanceListener,
    Record,
    Run,
    TopicPartition,
    Watermarks,
)

RETRY_SECONDS = 0.1

_FIRST: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call]
_LAST: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call]


class KafkaConsumer:
    """A `Consumer`. Its listener's exceptions come out of `poll` and `close`; after one the
    consumer must be closed, because what was being fetched then is gone."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: ConsumerConfig,
        admin: Admin,
        reachability: Reachability,
    ) -> None:
        self._kafka = kafka
        self._config = config
        self._admin = admin
        self._connections = Connections(kafka, reachability)
        self._calls = BoundedCalls(f"{config.client_id}-calls")
        self._listener: RebalanceListener | None = None
        self._owned: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._known_topics: set[str] = set()
        self._failures: list[Exception] = []
        # What happened inside the current poll, while records may already be in its hands.
        self._rebalanced = False
        self._moved: set[TopicPartition] = set()
        self._closed = False
        self._is_revoking = False
        # Whether this poll came too late for the group, which has shared the partitions out anew.
        self._is_late = False
        self._polled_at = time.monotonic()
        callbacks = {
            "error_cb": self._connections.on_error,
            "stats_cb": self._connections.on_statistics,
        }
        with configuring(kafka):
            self._client = librdkafka.Consumer(
                consumer_settings(kafka, config) | callbacks, logger=LibrdkafkaLog()
            )

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._listener = listener
        self._client.subscribe(
            list(topics),
            on_assign=lambda _, partitions: self._on_assign(listener, ours(partitions)),
            on_revoke=lambda _, partitions: self._on_revoke(listener, ours(partitions)),
            on_lost=lambda _, partitions: self._on_lost(listener, ours(partitions)),
        )

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._client.resume(theirs(self._paused))  # a pause outlives an assignment in librdkafka
        self._paused.clear()
        self._failures.clear()
        self._owned = set(positions)
        self._positions = dict(positions)
        with self._translating("reading given partitions"):
            if positions:
                self._look_up({each.topic for each in positions} - self._known_topics)
                self._client.assign(at(positions))
            else:
                self._client.unassign()

    def _look_up(self, topics: Iterable[str]) -> None:
        """Assigned before it knows their leaders, librdkafka may look for them a second later."""
        for topic in topics:
            self._client.list_topics(topic, timeout=self._kafka.request_timeout)
            self._known_topics.add(topic)

    def poll(self, max_records: int, timeout: float) -> list[Record]:
        found = self.poll_runs(max_records, timeout)
        return [run.record(index) for run in found for index in range(len(run))]

    def poll_runs(self, max_records: int, timeout: float) -> list[Run]:
        return [_Run(*of) for of in self._poll(max_records, timeout)]

    def poll_changes(self, max_records: int, timeout: float) -> dict[TopicPartition, Changes]:
        found: dict[TopicPartition, Changes] = {}
        for partition, run in self._poll(max_records, timeout):
            changes = found.setdefault(partition, Changes())
            newest = dict(zip(map(Message.key, run), run, strict=True))
            for raw_key, message in newest.items():
                key = raw_key or b""
                changes.values[key] = message.value()
                changes.times[key] = message.timestamp()[1]
            changes.records += len(run)
            changes.next = (run[-1].offset() or 0) + 1
        return found

    def _poll(self, max_records: int, timeout: float) -> list[tuple[TopicPartition, list[Message]]]:
        """Runs of records only; the rest is acted upon."""
        now = time.monotonic()
        self._is_late = now - self._polled_at > self._config.max_poll_interval
        self._polled_at = now
        deadline = now + timeout
        while True:
            self._raise_failure()
            remaining = max(0.0, deadline - time.monotonic())
            messages = self._fetch(max_records, remaining)
            if found := self._take_events(messages):
                return found
            if not messages and time.monotonic() >= deadline:
                return []

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._owned)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        mine = self._owned.intersection(partitions)
        self._paused |= mine
        self._client.pause(theirs(mine))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        mine = self._owned.intersection(partitions)
        self._paused -= mine
        self._client.resume(theirs(mine))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        is_started = partition in self._positions
        self._forget_position(partition)
        target = librdkafka.TopicPartition(*partition, offset)
        with self._translating(f"seeking {name_of(partition)} to {offset}"):
            if is_started:
                self._seek_or_start_again(target)
            else:  # librdkafka may still be looking for its offset, and would then go there
                self._start_again(target)
        self._positions[partition] = offset

    def _seek_or_start_again(self, target: librdkafka.TopicPartition) -> None:
        """librdkafka stops a partition that is out of range, and a stopped one cannot seek."""
        try:
            self._client.seek(target)
            return
        except KafkaException as exc:
            if error_of(exc).code() != KafkaError._STATE:
                raise
        self._start_again(target)

    def position(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def watermarks(self, partition: TopicPartition, timeout: float = 10.0) -> Watermarks:
        """The high one is the last stable offset: what a reader of committed records can reach."""
        low = self._list_offsets([partition], _FIRST, IsolationLevel.READ_COMMITTED, timeout)
        high = self._list_offsets([partition], _LAST, IsolationLevel.READ_COMMITTED, timeout)
        return Watermarks(low[partition], high[partition])

    def log_end(self, partition: TopicPartition, timeout: float = 10.0) -> int:
        asked = [partition]
        return self._list_offsets(asked, _LAST, IsolationLevel.READ_UNCOMMITTED, timeout)[partition]

    def stable_ends(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        return self._list_offsets(partitions, _LAST, IsolationLevel.READ_COMMITTED, timeout)

    def _list_offsets(
        self,
        partitions: Sequence[TopicPartition],
        spec: OffsetSpec,
        isolation: IsolationLevel,
        timeout: float,
    ) -> dict[TopicPartition, int]:
        def ask() -> dict[TopicPartition, int]:
            asked = dict.fromkeys(theirs(partitions), spec)
            answers = self._admin.client.list_offsets(
                asked, isolation_level=isolation, request_timeout=timeout
            )
            found = {
                TopicPartition(each.topic, each.partition): answer.result().offset
                for each, answer in answers.items()
            }
            if min(found.values(), default=0) < 0:  # while a partition gets another leader
                raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
            return found

        with self._admin.asking(f"for the ends of {names_of(partitions)}"):
            try:
                return ask()
            except KafkaException as exc:
                if error_of(exc).code() not in LEADER_CHANGED:
                    raise
            # The admin client keeps the leaders it knew until it is made to look again.
            for topic in {each.topic for each in partitions}:
                self._admin.client.list_topics(topic, timeout=timeout)
            return ask()

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        with self._translating("reading committed offsets"):
            answer = self._client.committed(theirs(partitions), timeout=timeout)
            raise_partition_error(answer)
        return {
            tp: each.offset
            for tp, each in zip(ours(answer), answer, strict=True)
            if each.offset >= 0
        }

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tries again for `request_timeout` while the error is a passing one; librdkafka itself
        would wait for as long as the group has no coordinator."""
        if not offsets:
            return
        self._require_owned(offsets)
        deadline = time.monotonic() + self._kafka.request_timeout
        while not self._commit_once(offsets, last=time.monotonic() > deadline):
            time.sleep(RETRY_SECONDS)

    def membership(self, partitions: Iterable[TopicPartition]) -> Any:
        """What a transaction with offsets of these shows to Kafka, which refuses it when the group
        has gone on without this consumer; to be taken for each anew. Kafka does not ask whose the
        partitions are: raises `FencedError` when they are no longer this consumer's."""
        self._require_owned(partitions)
        return self._client.consumer_group_metadata()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # Not left to librdkafka: a close in the middle of a rebalance makes it leave the group
            # before it calls back, and then nothing can be committed any more.
            if self._listener is not None and self._owned:
                self._listener.revoked(sorted(self._owned))
        finally:
            self._owned.clear()
            with suppress(TimeoutError):  # it waits behind a commit that has no answer
                self._calls.call(self._client.close, self._kafka.request_timeout)
            self._calls.end()
            self._connections.forget()

    def _require_owned(self, partitions: Iterable[TopicPartition]) -> None:
        if gone := set(partitions) - self._owned:
            raise FencedError(f"cannot commit {names_of(gone)}: no longer this consumer's")

    def _fetch(self, max_records: int, timeout: float) -> list[Message]:
        """`consume` alone would wait its whole timeout for the last of `max_records`."""
        self._rebalanced = False
        self._moved.clear()
        with self._translating("reading"):
            first = self._client.poll(timeout)
            if first is None:
                return []
            more = self._client.consume(max_records - 1, 0) if max_records > 1 else []
        messages = [first, *more]
        return self._stillours(messages) if self._rebalanced else messages

    def _stillours(self, messages: list[Message]) -> list[Message]:
        """Without what a listener revoked, moved or paused while the messages were being taken.
        A paused partition goes back to the first record that is held back from the caller."""
        held_back: dict[TopicPartition, int] = {}
        kept = []
        for message in messages:
            partition = partition_of(message)
            if partition in self._moved:
                continue
            if partition in self._paused and message.error() is None:
                held_back.setdefault(partition, message.offset() or 0)
                continue
            if partition in held_back and _is_end(message):
                continue  # not reached yet
            kept.append(message)
        for partition, offset in held_back.items():
            self.seek(partition, offset)
        return kept

    def _take_events(self, messages: list[Message]) -> list[tuple[TopicPartition, list[Message]]]:
        """What is left are runs of records; they and the ends among them move positions, also
        back, when an offset was out of range."""
        events = [message for message in messages if message.error() is not None]
        if events:
            messages = [message for message in messages if message.error() is None]
        # The only word of a control record at the end of a log, which is passed as well.
        ends = {partition_of(each): each.offset() or 0 for each in events if _is_end(each)}
        for message in events:
            if not _is_end(message):
                self._on_event(message, message.error())
        self._positions |= ends
        found = list(runs(messages))
        for partition, run in found:
            position = (run[-1].offset() or 0) + 1
            self._positions[partition] = max(position, ends.get(partition, 0))
        return found

    def _on_event(self, message: Message, error: Any) -> None:
        """librdkafka's news arrive among the records. Failures wait until the records before
        them are returned."""
        code = error.code()
        if code in OUT_OF_RANGE:
            offset = message.offset()
            out = OffsetOutOfRange(partition_of(message), -1 if offset is None else offset)
            self._failures.append(out)
        elif code == KafkaError.GROUP_AUTHORIZATION_FAILED and self._config.group is None:
            return  # librdkafka looks for the coordinator of a group that nobody is in
        elif code not in UNREACHABLE:
            self._failures.append(self._failure(message, error))

    def _failure(self, message: Message, error: KafkaError) -> BrokerError:
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return BrokerError(
                f"max_poll_interval={self._config.max_poll_interval} s passed between two polls: "
                f"group {self._config.group} gives the partitions to others"
            )
        where = name_of(partition_of(message)) if message.topic() else "as a member"
        return self._connections.error(f"reading {where} of group {self._config.group}", error)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    def _commit_once(self, offsets: Mapping[TopicPartition, int], last: bool) -> bool:
        """False when it failed but may succeed later. Raises when not, or when it is the last."""
        try:
            if self._is_revoking:  # inside a poll no other thread's call is served
                self._commit_now(offsets)
            else:
                self._calls.call(lambda: self._commit_now(offsets), self._kafka.request_timeout)
        except TimeoutError as exc:
            raise BrokerError(
                f"Kafka at {self._kafka.bootstrap_servers} did not answer a commit of group "
                f"{self._config.group} within request_timeout={self._kafka.request_timeout} s"
            ) from exc
        except KafkaException as exc:
            error = error_of(exc)
            if error.code() in PASSING and not last:
                return False
            kind = FencedError if error.code() in FENCED else BrokerError
            doing = f"committing {names_of(offsets)} of group {self._config.group}"
            raise self._connections.error(doing, error, kind) from exc
        return True

    def _commit_now(self, offsets: Mapping[TopicPartition, int]) -> None:
        raise_partition_error(self._client.commit(offsets=at(offsets), asynchronous=False))

    def _on_assign(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        if not partitions or self._closed:
            return
        self._rebalanced = True
        self._owned.update(partitions)
        starts = listener.assigned(partitions)
        self._positions |= starts
        self._paused.update(partitions)
        targets = at({tp: starts.get(tp, OFFSET_INVALID) for tp in partitions})
        if self._kafka.rebalances_incrementally:
            self._client.incremental_assign(targets)
        else:
            self._client.assign(targets)
        self._client.pause(targets)

    def _on_revoke(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        if self._is_late:  # librdkafka had it ready before it knew
            return self._on_lost(listener, partitions)
        self._is_revoking = True
        try:
            if mine := [each for each in partitions if each in self._owned]:
                listener.revoked(mine)
        finally:
            self._is_revoking = False
            self._forget(partitions)

    def _on_lost(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        mine = [each for each in partitions if each in self._owned]
        self._forget(partitions)
        if mine:
            listener.lost(mine)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        self._rebalanced = True
        for partition in partitions:
            self._forget_position(partition)
        self._owned.difference_update(partitions)
        self._paused.difference_update(partitions)
        if self._kafka.rebalances_incrementally:
            self._client.incremental_unassign(theirs(partitions))
        else:
            self._client.unassign()

    def _forget_position(self, partition: TopicPartition) -> None:
        """What was fetched or failed at the old position is not of interest any more."""
        self._moved.add(partition)
        self._positions.pop(partition, None)
        self._failures = [
            each
            for each in self._failures
            if not (isinstance(each, OffsetOutOfRange) and each.partition == partition)
        ]

    def _start_again(self, target: librdkafka.TopicPartition) -> None:
        if self._listener is None or self._kafka.rebalances_incrementally:
            self._client.incremental_unassign([target])
            self._client.incremental_assign([target])
        else:  # librdkafka takes what an eager group assigned as a whole only
            others = self._owned - {TopicPartition(target.topic, target.partition)}
            starts = {each: self._positions.get(each, OFFSET_INVALID) for each in others}
            self._client.assign([*at(starts), target])
        self._client.pause(theirs(self._paused))

    def _translating(self, doing: str) -> AbstractContextManager[None]:
        group = f" of group {self._config.group}" if self._config.group else ""
        return self._connections.translating(doing + group)


def _is_end(message: Message) -> bool:
    """Whether it says that the end of a partition's log is reached."""
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF


class _Run:
    """A `Run` of librdkafka's messages."""

    __slots__ = ("_messages", "keys", "partition", "values")

    def __init__(self, partition: TopicPartition, messages: Sequence[Message]) -> None:
        self.partition = partition
        self.keys = list(map(Message.key, messages))
        self.values = list(map(Message.value, messages))
        self._messages = messages

    def offset(self, index: int) -> int:
        return self._messages[index].offset() or 0

    def record(self, index: int) -> Record:
        message, headers = self._messages[index], self._messages[index].headers()
        return Record(
            *self.partition,
            self.offset(index),
            self.keys[index],
            self.values[index],
            message.timestamp()[1],
            headers_of(headers) if headers else (),
        )

    def __len__(self) -> int:
        return len(self._messages)
