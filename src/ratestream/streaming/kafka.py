"""Apache Kafka behind the runtime's broker protocol: the only module that imports confluent_kafka.

It owns librdkafka's settings, its callbacks, and the translation of its errors. What librdkafka
does by itself is left to it: connections, retries, heartbeats, batching, and fetching ahead.

A transactional producer is `KafkaProducer` with `transactional.id` among its settings, and its
begin, send-offsets and commit beside `flush`; consumers read committed records already.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal, TypeVar

import confluent_kafka as librdkafka
from confluent_kafka import OFFSET_INVALID, IsolationLevel, KafkaError, KafkaException, Message
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its __all__
    AdminClient,
    NewTopic,
    OffsetSpec,
)

from ratestream.streaming.errors import (
    BrokerError,
    ConfigurationError,
    DeliveryError,
    FencedError,
    MessageTooLargeError,
)
from ratestream.streaming.types import (
    ConsumerConfig,
    Headers,
    OffsetOutOfRange,
    OutgoingRecord,
    ProducerConfig,
    RebalanceListener,
    Record,
    TopicDescription,
    TopicPartition,
    TopicSpec,
    Watermarks,
)

logger = logging.getLogger("ratestream.kafka")

Settings = dict[str, Any]
T = TypeVar("T")

RETRY_SECONDS = 0.1

# A request waits behind the fetch in flight on its connection, and a resumed partition for the
# next fetch: a short wait at the broker makes both quick.
FETCH_WAIT_SECONDS = 0.1

# Seconds. A fetch must come back before its socket is given up.
SHORTEST_SOCKET_TIMEOUT = 2.0

# librdkafka refuses a batch that the topic finds too large as a whole, and cannot split it: small
# batches keep topics with a low max.message.bytes usable, and cost nothing that was measurable.
BATCH_BYTES = 128 * 1024

# Kafka counts the record's own frame too; ours is a limit of key, value and headers.
FRAME_BYTES = 1024

# Connections that fail are `_Connections`'s to tell: librdkafka makes new ones by itself.
UNREACHABLE = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE}
OUT_OF_RANGE = {
    KafkaError._AUTO_OFFSET_RESET,
    KafkaError._LOG_TRUNCATION,
    KafkaError.OFFSET_OUT_OF_RANGE,
}
FENCED = {
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.STALE_MEMBER_EPOCH,
    KafkaError.FENCED_MEMBER_EPOCH,
    KafkaError._ASSIGNMENT_LOST,
}
# A commit that meets one of these may succeed a moment later. A rebalance in progress is one: the
# partitions that stay can be committed again as soon as the group has its new generation.
PASSING = {
    KafkaError.REBALANCE_IN_PROGRESS,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
}


@dataclass(frozen=True)
class KafkaConfig:
    """Where Kafka is and how to reach it.

    `request_timeout` (seconds) bounds every question to the cluster. "cooperative-sticky" moves
    only the partitions that must move in a rebalance; "range" gives the same partition numbers of
    several topics to the same member, and stops all of them. `extra` are librdkafka's own
    settings, by its names, and win over everything here.
    """

    bootstrap_servers: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: str | None = None
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    ssl_ca_location: str | None = None
    ssl_certificate_location: str | None = None
    ssl_key_location: str | None = None
    ssl_key_password: str | None = field(default=None, repr=False)
    request_timeout: float = 10.0
    partition_assignment: Literal["cooperative-sticky", "range"] = "cooperative-sticky"
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        allowed = ("cooperative-sticky", "range")
        if self.partition_assignment not in allowed:
            raise ConfigurationError(
                f"partition_assignment={self.partition_assignment!r}: must be one of {allowed}"
            )

    def settings(self, client_id: str) -> Settings:
        """What every client of librdkafka gets, under librdkafka's names."""
        given = {
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": self.ssl_key_password,
        }
        return {
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": client_id,
            "security.protocol": self.security_protocol,
            "socket.timeout.ms": _milliseconds(max(self.request_timeout, SHORTEST_SOCKET_TIMEOUT)),
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2_000,
            "log.connection.close": False,
            **{name: value for name, value in given.items() if value is not None},
        }


class KafkaBroker:
    """A Kafka cluster as a `Broker`. Connects when first asked, not when made.

    Raises `ConfigurationError` for a setting that librdkafka does not know or take.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._reachability = _Reachability(config.bootstrap_servers)
        self._open = ExitStack()
        # Nobody polls this client between two questions, so it must not queue logs and events:
        # what it has to say comes back as the answer.
        settings = config.settings("ratestream-admin") | {"log_level": 0} | dict(config.extra)
        with _configuring(config):
            self._admin = self._open.enter_context(AdminClient(settings))

    def consumer(self, config: ConsumerConfig) -> KafkaConsumer:
        return KafkaConsumer(self._config, config, self._admin, self._reachability)

    def producer(self, config: ProducerConfig) -> KafkaProducer:
        return KafkaProducer(self._config, config, self._reachability)

    def cluster_id(self) -> str:
        with self._asking("its cluster id"):
            return self._admin.cluster_id(timeout=self._config.request_timeout)

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        deadline = time.monotonic() + self._config.request_timeout
        there = self._ready_partitions()
        missing = [_new_topic(spec) for spec in specs if spec.name not in there]
        if missing:
            futures = self._admin.create_topics(
                missing, request_timeout=self._config.request_timeout
            )
            for name, future in futures.items():
                with self._asking(f"to create topic {name}"):
                    self._answer(future, unless=KafkaError.TOPIC_ALREADY_EXISTS)
        self._wait_until_ready([spec.name for spec in specs], deadline)

    def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        if not names:
            return {}
        with self._asking("to describe topics"):
            futures = self._admin.describe_topics(
                librdkafka.TopicCollection(list(names)),
                request_timeout=self._config.request_timeout,
            )
            answers = (
                self._answer(future, unless=KafkaError.UNKNOWN_TOPIC_OR_PART)
                for future in futures.values()
            )
            return {
                found.name: TopicDescription(found.name, str(found.topic_id), len(found.partitions))
                for found in answers
                if found is not None
            }

    def is_reachable(self) -> bool:
        return self._reachability.is_up

    def close(self) -> None:
        self._open.close()

    def _answer(self, future: Future[T], unless: int) -> T | None:
        """What the cluster answered, or None when it answered with this error."""
        try:
            return future.result()
        except KafkaException as exc:
            if _error(exc).code() != unless:
                raise
            return None

    def _ready_partitions(self) -> dict[str, bool]:
        """Each topic there is, and whether all of its partitions have a leader."""
        with self._asking("which topics it has"):
            topics = self._admin.list_topics(timeout=self._config.request_timeout).topics
        return {
            name: bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())
            for name, topic in topics.items()
        }

    def _wait_until_ready(self, names: Sequence[str], deadline: float) -> None:
        while True:
            ready = self._ready_partitions()
            waiting = [name for name in names if not ready.get(name)]
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"Kafka at {self._config.bootstrap_servers}: topics without a leader after "
                    f"request_timeout={self._config.request_timeout} s: {', '.join(waiting)}"
                )
            time.sleep(RETRY_SECONDS)

    @contextmanager
    def _asking(self, question: str) -> Iterator[None]:
        with _translating(self._config.bootstrap_servers, f"asked {question}"):
            yield


class KafkaConsumer:
    """A `Consumer`. Its listener's exceptions come out of `poll` and `close`; after one the
    consumer must be closed, because what was being fetched then is gone."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: ConsumerConfig,
        admin: AdminClient,
        reachability: _Reachability,
    ) -> None:
        self._kafka = kafka
        self._config = config
        self._admin = admin
        self._connections = _Connections(reachability)
        self._reachability = reachability
        self._listener: RebalanceListener | None = None
        self._owned: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._positions: dict[TopicPartition, int] = {}
        self._failures: list[Exception] = []
        # What happened inside the current poll, while records may already be in its hands.
        self._rebalanced = False
        self._moved: set[TopicPartition] = set()
        self._closed = False
        # Whether this poll came too late for the group, which has shared the partitions out anew.
        self._is_late = False
        self._polled_at = time.monotonic()
        with _configuring(kafka):
            self._client = librdkafka.Consumer(
                _consumer_settings(kafka, config, self._connections), logger=_LibrdkafkaLog()
            )

    def subscribe(self, topics: Sequence[str], listener: RebalanceListener) -> None:
        self._listener = listener
        self._client.subscribe(
            list(topics),
            on_assign=lambda _, partitions: self._on_assign(listener, _ours(partitions)),
            on_revoke=lambda _, partitions: self._on_revoke(listener, _ours(partitions)),
            on_lost=lambda _, partitions: self._on_lost(listener, _ours(partitions)),
        )

    def assign(self, positions: Mapping[TopicPartition, int]) -> None:
        self._client.resume(_theirs(self._paused))  # a pause outlives an assignment in librdkafka
        self._paused.clear()
        self._failures.clear()
        self._owned = set(positions)
        self._positions = dict(positions)
        with self._asking("to read given partitions"):
            if positions:
                self._client.assign(_at(positions))
            else:
                self._client.unassign()

    def poll(self, max_records: int, timeout: float) -> list[Record]:
        now = time.monotonic()
        self._is_late = now - self._polled_at > self._config.max_poll_interval
        self._polled_at = now
        deadline = now + timeout
        while True:
            self._raise_failure()
            remaining = max(0.0, deadline - time.monotonic())
            messages = self._fetch(max_records, remaining)
            if records := self._records(messages):
                return records
            if not messages and time.monotonic() >= deadline:
                return []

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._owned)

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        mine = self._owned.intersection(partitions)
        self._paused |= mine
        self._client.pause(_theirs(mine))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        mine = self._owned.intersection(partitions)
        self._paused -= mine
        self._client.resume(_theirs(mine))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._forget_position(partition)
        target = librdkafka.TopicPartition(*partition, offset)
        with self._asking(f"to seek {_name(partition)} to {offset}"):
            try:
                self._client.seek(target)
            except KafkaException as exc:
                if _error(exc).code() != KafkaError._STATE:
                    raise
                self._start_again(target)
        self._positions[partition] = offset

    def position(self, partition: TopicPartition) -> int | None:
        return self._positions.get(partition)

    def watermarks(self, partition: TopicPartition, timeout: float = 10.0) -> Watermarks:
        """The high one is the last stable offset: what a reader of committed records can reach."""
        asked = librdkafka.TopicPartition(*partition)
        specs = (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
        with self._asking(f"for the watermarks of {_name(partition)}"):
            futures = [
                self._admin.list_offsets(
                    {asked: spec},
                    isolation_level=IsolationLevel.READ_COMMITTED,
                    request_timeout=timeout,
                )[asked]
                for spec in specs
            ]
            return Watermarks(*(future.result().offset for future in futures))

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        with self._asking("for committed offsets"):
            answer = self._client.committed(_theirs(partitions), timeout=timeout)
            _raise_partition_error(answer)
        return {
            tp: each.offset
            for tp, each in zip(_ours(answer), answer, strict=True)
            if each.offset >= 0
        }

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tries again for `request_timeout` while the error is a passing one."""
        if not offsets:
            return
        if gone := offsets.keys() - self._owned:
            raise FencedError(f"cannot commit {_names(gone)}: no longer this consumer's")
        deadline = time.monotonic() + self._kafka.request_timeout
        while not self._commit_once(offsets, last=time.monotonic() > deadline):
            time.sleep(RETRY_SECONDS)

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
            self._client.close()
            self._connections.unknown()

    def _fetch(self, max_records: int, timeout: float) -> list[Message]:
        """`consume` alone would wait its whole timeout for the last of `max_records`."""
        self._rebalanced = False
        self._moved.clear()
        with self._asking("for records"):
            first = self._client.poll(timeout)
            if first is None:
                return []
            more = self._client.consume(max_records - 1, 0) if max_records > 1 else []
        messages = [first, *more]
        return self._still_ours(messages) if self._rebalanced else messages

    def _still_ours(self, messages: list[Message]) -> list[Message]:
        """Without what a listener revoked, moved or paused while the messages were being taken.
        A paused partition goes back to the first record that is held back from the caller."""
        held_back: dict[TopicPartition, int] = {}
        kept = []
        for message in messages:
            partition = _partition_of(message)
            if partition in self._moved:
                continue
            if partition in self._paused and message.error() is None:
                held_back.setdefault(partition, message.offset() or 0)
                continue
            kept.append(message)
        for partition, offset in held_back.items():
            self.seek(partition, offset)
        return kept

    def _records(self, messages: list[Message]) -> list[Record]:
        records = []
        positions = self._positions
        for message in messages:
            error = message.error()
            if error is not None:
                self._on_event(message, error)
                continue
            record = Record(
                message.topic(),  # type: ignore[arg-type]  # a message without error has one
                message.partition(),  # type: ignore[arg-type]
                message.offset(),  # type: ignore[arg-type]
                message.key(),
                message.value(),
                message.timestamp()[1],
                _headers(message),
            )
            positions[record.topic_partition] = record.offset + 1
            records.append(record)
        return records

    def _on_event(self, message: Message, error: KafkaError) -> None:
        """librdkafka's news arrive among the records. Failures wait until the records before
        them are returned."""
        code = error.code()
        if code == KafkaError._PARTITION_EOF:
            # The only word of a control record at the end of the log, which is a position too.
            self._positions[_partition_of(message)] = message.offset() or 0
        elif code in OUT_OF_RANGE:
            offset = message.offset()
            out = OffsetOutOfRange(_partition_of(message), -1 if offset is None else offset)
            self._failures.append(out)
        elif code not in UNREACHABLE:
            self._failures.append(self._failure(message, error))

    def _failure(self, message: Message, error: KafkaError) -> BrokerError:
        servers = self._kafka.bootstrap_servers
        if error.code() == KafkaError._MAX_POLL_EXCEEDED:
            return BrokerError(
                f"max_poll_interval={self._config.max_poll_interval} s passed between two polls: "
                f"group {self._config.group} gives the partitions to others"
            )
        topic = message.topic()
        where = _name(_partition_of(message)) if topic else "the group"
        return BrokerError(f"Kafka at {servers}: reading {where}: {_reason(error)}")

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

    def _commit_once(self, offsets: Mapping[TopicPartition, int], last: bool) -> bool:
        """False when it failed but may succeed later. Raises when not, or when it is the last."""
        try:
            _raise_partition_error(self._client.commit(offsets=_at(offsets), asynchronous=False))
        except KafkaException as exc:
            error = _error(exc)
            if error.code() in PASSING and not last:
                return False
            kind = FencedError if error.code() in FENCED else BrokerError
            raise kind(
                f"Kafka at {self._kafka.bootstrap_servers}: cannot commit {_names(offsets)} "
                f"of group {self._config.group}: {_reason(error)}"
            ) from exc
        return True

    def _on_assign(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        if not partitions or self._closed:
            return
        self._rebalanced = True
        self._owned.update(partitions)
        starts = listener.assigned(partitions)
        self._positions |= starts
        self._paused.update(partitions)
        targets = _at({tp: starts.get(tp, OFFSET_INVALID) for tp in partitions})
        if self._is_cooperative:
            self._client.incremental_assign(targets)
        else:
            self._client.assign(targets)
        self._client.pause(targets)

    def _on_revoke(self, listener: RebalanceListener, partitions: list[TopicPartition]) -> None:
        if self._is_late:  # librdkafka had it ready before it knew
            return self._on_lost(listener, partitions)
        try:
            if mine := [each for each in partitions if each in self._owned]:
                listener.revoked(mine)
        finally:
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
        if self._is_cooperative:
            self._client.incremental_unassign(_theirs(partitions))
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
        """librdkafka stops a partition that is out of range, and a stopped one cannot seek."""
        self._client.incremental_unassign([target])
        self._client.incremental_assign([target])
        if TopicPartition(target.topic, target.partition) in self._paused:
            self._client.pause([target])

    @property
    def _is_cooperative(self) -> bool:
        return self._kafka.partition_assignment == "cooperative-sticky"

    @contextmanager
    def _asking(self, question: str) -> Iterator[None]:
        with _translating(self._kafka.bootstrap_servers, f"asked {question}"):
            yield


class KafkaProducer:
    """A `Producer`. One `produce` a record: measured, it is as fast as `produce_batch`, which
    takes neither timestamps, headers nor a partition for each record."""

    def __init__(
        self, kafka: KafkaConfig, config: ProducerConfig, reachability: _Reachability
    ) -> None:
        self._servers = kafka.bootstrap_servers
        self._config = config
        self._connections = _Connections(reachability)
        self._next: dict[TopicPartition, int] = {}
        self._failed = 0
        self._first_failure = ""
        self._refused_a_size = False
        self._closed = False
        settings = _producer_settings(kafka, config, self._connections, self._on_delivery)
        with _configuring(kafka):
            self._client = librdkafka.Producer(settings, logger=_LibrdkafkaLog())

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        for record in records:
            self._check_size(record)
        for record in records:
            self._produce(record)
        self._client.poll(0)

    def flush(self) -> dict[TopicPartition, int]:
        # librdkafka gives a record up after the delivery timeout: the rest is for its report.
        waiting = self._client.flush(self._config.delivery_timeout + 5.0)
        offsets, failed, first = self._next, self._failed, self._first_failure
        self._next, self._failed, self._first_failure = {}, 0, ""
        if waiting or failed:
            first = first or f"no answer within delivery_timeout={self._config.delivery_timeout} s"
            # Trying again cannot make a record smaller, so that is told apart.
            kind = MessageTooLargeError if self._refused_a_size else DeliveryError
            self._refused_a_size = False
            raise kind(
                f"Kafka at {self._servers} did not acknowledge {waiting + failed} records: {first}"
            )
        if offsets:
            self._connections.unknown()
        return offsets

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client.purge()
        self._client.close()
        self._connections.unknown()

    def _check_size(self, record: OutgoingRecord) -> None:
        size = len(record.key or b"") + len(record.value or b"")
        size += sum(len(name) + len(value) for name, value in record.headers)
        if size > self._config.max_message_bytes:
            raise MessageTooLargeError(
                f"a record for {record.topic} has {size} bytes; "
                f"max_message_bytes is {self._config.max_message_bytes}"
            )

    def _produce(self, record: OutgoingRecord) -> None:
        deadline = time.monotonic() + self._config.delivery_timeout
        while True:
            try:
                self._client.produce(
                    record.topic,
                    record.value,
                    record.key,
                    -1 if record.partition is None else record.partition,
                    timestamp=record.timestamp or 0,
                    headers=list(record.headers) or None,
                )
            except BufferError:
                if time.monotonic() > deadline:
                    raise BrokerError(self._full()) from None
                self._client.poll(RETRY_SECONDS)
            except KafkaException as exc:
                raise BrokerError(
                    f"Kafka at {self._servers}: cannot send to {record.topic}: "
                    f"{_reason(_error(exc))}"
                ) from exc
            else:
                return

    def _full(self) -> str:
        config = self._config
        return (
            f"Kafka at {self._servers} acknowledges nothing: the buffer "
            f"(buffer_records={config.buffer_records}, buffer_bytes={config.buffer_bytes}) "
            f"stayed full for delivery_timeout={config.delivery_timeout} s"
        )

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called for every record, in order within a partition. A repeat that the broker has
        recognised is delivered but has no offset: the position before it is still right."""
        if error is not None:
            self._failed += 1
            reason = f"{_name(_partition_of(message))}: {_reason(error)}"
            self._first_failure = self._first_failure or reason
            self._refused_a_size |= error.code() == KafkaError.MSG_SIZE_TOO_LARGE
            if error.code() == KafkaError._MSG_TIMED_OUT:
                self._connections.failed(reason)
        elif (offset := message.offset()) is not None:
            self._next[_partition_of(message)] = offset + 1


class _Reachability:
    """What the clients of one cluster know of it together; says once when that changes.

    Down when a client has lost all its connections and no other client is connected. A client
    that has nothing to do closes its connections, and says nothing here."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._lock = Lock()
        self._connected: dict[_Connections, bool] = {}
        self.is_up = True

    def report(self, client: _Connections, connected: bool | None, reason: str = "") -> None:
        """None takes back what the client said before."""
        with self._lock:
            self._connected.pop(client, None)
            if connected is not None:
                self._connected[client] = connected
            was_up = self.is_up
            self.is_up = any(self._connected.values()) or not self._connected
            if was_up and not self.is_up:
                logger.warning("Kafka at %s is unreachable: %s", self._servers, reason)
            elif self.is_up and not was_up:
                logger.warning("Kafka at %s is reachable again", self._servers)


class _Connections:
    """The connections of one client, from what librdkafka tells about them."""

    def __init__(self, reachability: _Reachability) -> None:
        self._reachability = reachability
        self._reason: str | None = None

    def on_error(self, error: KafkaError) -> None:
        """The error callback. Its errors are news, not failures: librdkafka tries again. Its
        "all brokers down" is left alone, because it comes without an outage as well."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._reason = _reason(error)
            logger.log(logging.ERROR if error.fatal() else logging.DEBUG, "%s", self._reason)

    def on_statistics(self, statistics: str) -> None:
        """The statistics callback, once a second. They are JSON, in which `"state":"UP"` stands
        for a connected broker and nothing else."""
        if '"state":"UP"' in statistics:
            self._reason = None
            self._reachability.report(self, connected=True)
        elif self._reason is not None:
            self.failed(self._reason)

    def failed(self, reason: str) -> None:
        self._reachability.report(self, connected=False, reason=reason)

    def unknown(self) -> None:
        self._reachability.report(self, connected=None)


class _LibrdkafkaLog:
    """The logger given to librdkafka: connections that fail are `_Connections`'s to tell."""

    CONNECTIONS = frozenset({"FAIL", "ERROR", "REQTMOUT", "GETPID", "COORD"})

    def log(self, level: int, _format: str, facility: str, client: str, text: str) -> None:
        if facility in self.CONNECTIONS:
            level = logging.DEBUG
        logger.log(level, "%s %s: %s", client, facility, text)


def _consumer_settings(
    kafka: KafkaConfig, config: ConsumerConfig, connections: _Connections
) -> Settings:
    return {
        **kafka.settings(config.client_id),
        # librdkafka insists on a group; one that is never joined nor committed to does no harm.
        "group.id": config.group or config.client_id,
        "partition.assignment.strategy": kafka.partition_assignment,
        "auto.offset.reset": config.offset_reset,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "session.timeout.ms": _milliseconds(config.session_timeout),
        "heartbeat.interval.ms": _milliseconds(config.heartbeat_interval),
        "max.poll.interval.ms": _milliseconds(config.max_poll_interval),
        "queued.max.messages.kbytes": max(1, config.buffer_bytes // 1024),
        "fetch.message.max.bytes": min(1024 * 1024, config.buffer_bytes),
        "fetch.max.bytes": min(50 * 1024 * 1024, max(1_000_000, config.buffer_bytes)),
        "fetch.wait.max.ms": _milliseconds(FETCH_WAIT_SECONDS),
        "fetch.queue.backoff.ms": 10,
        "statistics.interval.ms": 1_000,
        "stats_cb": connections.on_statistics,
        "error_cb": connections.on_error,
        **kafka.extra,
    }


def _producer_settings(
    kafka: KafkaConfig,
    config: ProducerConfig,
    connections: _Connections,
    on_delivery: Callable[[KafkaError | None, Message], None],
) -> Settings:
    return {
        **kafka.settings(config.client_id),
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "linger.ms": _milliseconds(config.linger),
        "delivery.timeout.ms": _milliseconds(config.delivery_timeout),
        "batch.size": BATCH_BYTES,
        "message.max.bytes": config.max_message_bytes + FRAME_BYTES,
        "queue.buffering.max.messages": config.buffer_records,
        "queue.buffering.max.kbytes": max(1, config.buffer_bytes // 1024),
        "on_delivery": on_delivery,
        "error_cb": connections.on_error,
        **kafka.extra,
    }


def _new_topic(spec: TopicSpec) -> NewTopic:
    config = {
        "cleanup.policy": spec.cleanup_policy,
        "retention.ms": str(spec.retention_ms),
        "max.message.bytes": str(spec.max_message_bytes),
    }
    if spec.replication_factor >= 3:
        config["min.insync.replicas"] = "2"
    return NewTopic(
        spec.name,
        num_partitions=spec.partitions,
        replication_factor=spec.replication_factor,
        config=config,
    )


@contextmanager
def _configuring(kafka: KafkaConfig) -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        reason = _error(exc).str()
        raise ConfigurationError(f"Kafka at {kafka.bootstrap_servers}: {reason}") from exc


@contextmanager
def _translating(servers: str, doing: str) -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        raise BrokerError(f"Kafka at {servers}, {doing}: {_reason(_error(exc))}") from exc


def _error(exc: KafkaException) -> KafkaError:
    error = exc.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def _reason(error: KafkaError) -> str:
    return f"{error.str()} ({error.name()})"


def _raise_partition_error(partitions: Sequence[librdkafka.TopicPartition] | None) -> None:
    for partition in partitions or ():
        if partition.error is not None:
            raise KafkaException(partition.error)


def _ours(partitions: Sequence[librdkafka.TopicPartition]) -> list[TopicPartition]:
    return [TopicPartition(each.topic, each.partition) for each in partitions]


def _theirs(
    partitions: Sequence[TopicPartition] | set[TopicPartition],
) -> list[librdkafka.TopicPartition]:
    return [librdkafka.TopicPartition(*each) for each in partitions]


def _at(positions: Mapping[TopicPartition, int]) -> list[librdkafka.TopicPartition]:
    return [librdkafka.TopicPartition(*each, offset) for each, offset in positions.items()]


def _partition_of(message: Message) -> TopicPartition:
    return TopicPartition(message.topic() or "", message.partition() or 0)


def _headers(message: Message) -> Headers:
    found: Any = message.headers()  # what is read is always a list of (str, bytes | None), or None
    return tuple((name, value or b"") for name, value in found) if found else ()


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}[{partition.partition}]"


def _names(partitions: Mapping[TopicPartition, int] | set[TopicPartition]) -> str:
    return ", ".join(_name(each) for each in sorted(partitions))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
