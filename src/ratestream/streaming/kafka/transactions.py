"""How Kafka is written in transactions: librdkafka's transactional producer as the runtime's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import NoReturn

from confluent_kafka import KafkaError, KafkaException

from ratestream.streaming.errors import (
    AccessError,
    BrokerError,
    ConfigurationError,
    DeliveryError,
    FencedError,
    StreamingError,
    TransactionAbortedError,
)
from ratestream.streaming.kafka.calls import BoundedCalls
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.connections import Reachability
from ratestream.streaming.kafka.consumer import KafkaConsumer
from ratestream.streaming.kafka.errors import (
    FENCED_PRODUCER,
    UNSUPPORTED,
    error_of,
    kafka_exceptions,
    reason,
)
from ratestream.streaming.kafka.partitions import at
from ratestream.streaming.kafka.producer import KafkaProducer
from ratestream.streaming.types import Consumer, OutgoingRecord, ProducerConfig, TopicPartition

RETRY_SECONDS = 0.1

# What librdkafka may take longer than it was told to.
ANSWER_SECONDS = 2.0


class _State(Enum):
    """Of the producer; the values end the sentence "the transactional producer is ..."."""

    READY = "between two transactions"
    OPEN = "in a transaction"
    COMMITTING = "committing"
    ABORTING = "aborting"
    UNUSABLE = "of no more use"


_ALLOWED = {
    _State.READY: {_State.OPEN, _State.UNUSABLE},
    _State.OPEN: {_State.COMMITTING, _State.ABORTING, _State.UNUSABLE},
    _State.COMMITTING: {_State.READY, _State.ABORTING, _State.UNUSABLE},
    _State.ABORTING: {_State.READY, _State.UNUSABLE},
    _State.UNUSABLE: {_State.UNUSABLE},
}


class KafkaTransactionalProducer:
    """A `TransactionalProducer`.

    A failure before the commit is asked for is answered with an abort; whether that can be done,
    and so whether this producer can go on, is for librdkafka to say. After a commit without an
    answer only the next producer with this id can know.
    """

    def __init__(
        self,
        kafka: KafkaConfig,
        config: ProducerConfig,
        reachability: Reachability,
        transactional_id: str,
    ) -> None:
        self._kafka = kafka
        self._config = config
        self._id = transactional_id
        self._state = _State.READY
        self._records = KafkaProducer(kafka, config, reachability, transactional_id)
        self._calls = BoundedCalls(f"{transactional_id}-transactions")
        self._ends: dict[TopicPartition, int] = {}
        try:
            self._ask("taking", self._records.client.init_transactions, kafka.request_timeout)
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        self._transition_to(_State.OPEN)
        self._ends = {}
        self._ask("beginning", lambda _: self._records.client.begin_transaction(), 0.0)

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        self._require_open()
        try:
            self._records.send(records)
        except BrokerError as error:
            self._give_up(error)

    def serve(self) -> None:
        self._records.serve()

    def flush(self) -> None:
        """Wait until everything sent is acknowledged, which a commit does by itself."""
        self._require_open()
        try:
            self._flush()
        except StreamingError as error:
            self._give_up(error)

    def commit(
        self, offsets: Mapping[TopicPartition, int], consumer: Consumer
    ) -> dict[TopicPartition, int]:
        self._transition_to(_State.COMMITTING)
        try:
            self._flush()
            if offsets:
                self._send_offsets(offsets, consumer)
            self._ask(
                "committing", self._records.client.commit_transaction, self._config.delivery_timeout
            )
        except StreamingError as error:
            if self._state is _State.UNUSABLE:
                raise
            self._give_up(error)
        self._transition_to(_State.READY)
        self._records.connections.have_answered()
        return self._ends

    def abort(self) -> None:
        self._transition_to(_State.ABORTING)
        self._ask("aborting", self._records.client.abort_transaction, self._kafka.request_timeout)
        self._records.forget()
        self._transition_to(_State.READY)

    def close(self) -> None:
        if self._state is _State.OPEN:
            with suppress(BrokerError):
                self.abort()
        self._transition_to(_State.UNUSABLE)
        self._calls.end()
        self._records.close()

    def _send_offsets(self, offsets: Mapping[TopicPartition, int], consumer: Consumer) -> None:
        if not isinstance(consumer, KafkaConsumer):
            raise StreamingError(f"offsets of a {type(consumer).__name__} in Kafka's transaction")
        membership = consumer.membership(offsets.keys())
        send = partial(self._records.client.send_offsets_to_transaction, at(offsets), membership)
        self._ask("adding offsets to", send, self._config.transaction_timeout)

    def _flush(self) -> None:
        try:
            self._ends |= self._records.flush()
            return
        except DeliveryError as error:
            failure = error
        raise self._refusal() or failure from failure

    def _refusal(self) -> AccessError | None:
        """Why the records were dropped, if it is that Kafka refuses one of their topics. librdkafka
        keeps that as the state of the transaction, and tells it whoever wants to begin another."""
        try:
            with kafka_exceptions():
                self._records.client.begin_transaction()
        except KafkaException as exc:
            topics = ", ".join(sorted(self._records.failed_topics))
            failure = self._failure(f"writing to {topics} in", error_of(exc))
            return failure if isinstance(failure, AccessError) else None
        return None

    def _give_up(self, error: StreamingError) -> NoReturn:
        """Abort, because of `error`. If that cannot be done either, its own error is raised, unless
        `error` is a refusal: Kafka then knows of no transaction that could be aborted."""
        try:
            self.abort()
        except BrokerError:
            if isinstance(error, AccessError):
                raise error from None
            raise
        if isinstance(error, BrokerError) and not isinstance(error, AccessError):
            raise TransactionAbortedError(f"{error}; the transaction was aborted") from error
        raise error

    def _ask(self, doing: str, call: Callable[[float], object], seconds: float) -> None:
        """librdkafka has three answers but success: try the same again (until the time is up),
        abort the transaction (which is left to the caller), or never use this producer again. And
        it may have none: when a broker dies, adding offsets was seen to wait for ever."""
        deadline = time.monotonic() + seconds
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            try:
                with kafka_exceptions():
                    self._calls.call(partial(call, remaining), remaining + ANSWER_SECONDS)
                return
            except TimeoutError as exc:
                self._transition_to(_State.UNUSABLE)
                raise BrokerError(
                    f"Kafka at {self._kafka.bootstrap_servers}, {doing} a transaction of "
                    f"{self._id}: no answer within {seconds:g} s"
                ) from exc
            except KafkaException as exc:
                error = error_of(exc)
                if error.retriable() and time.monotonic() < deadline:
                    time.sleep(RETRY_SECONDS)
                    continue
                if not error.txn_requires_abort():
                    self._transition_to(_State.UNUSABLE)
                raise self._failure(doing, error) from exc

    def _failure(self, doing: str, error: KafkaError) -> StreamingError:
        what = f"{doing} a transaction of {self._id}"
        if error.code() in UNSUPPORTED:
            return ConfigurationError(
                f"Kafka at {self._kafka.bootstrap_servers}, {what}: {reason(error)}: exactly_once "
                "needs a broker that has what transactions are made of; set processing_guarantee "
                "to at_least_once, or use another broker"
            )
        if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            return ConfigurationError(
                f"Kafka at {self._kafka.bootstrap_servers}, {what}: the broker does not allow "
                f"transaction_timeout={self._config.transaction_timeout} s (its "
                f"transaction.max.timeout.ms): {reason(error)}"
            )
        if error.code() in FENCED_PRODUCER:
            return FencedError(
                f"Kafka at {self._kafka.bootstrap_servers}, {what}: another producer has this id, "
                f"or transaction_timeout={self._config.transaction_timeout} s were over: "
                f"{reason(error)}"
            )
        return self._records.connections.error(what, error)

    def _require_open(self) -> None:
        if self._state is not _State.OPEN:
            raise self._misuse(_State.OPEN)

    def _transition_to(self, state: _State) -> None:
        if state not in _ALLOWED[self._state]:
            raise self._misuse(state)
        self._state = state

    def _misuse(self, wanted: _State) -> StreamingError:
        return StreamingError(
            f"the transactional producer {self._id} is {self._state.value}, and cannot be "
            f"{wanted.value}"
        )
