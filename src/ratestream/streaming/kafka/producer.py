"""How Kafka is written: librdkafka's producer as the runtime's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import confluent_kafka as librdkafka
from confluent_kafka import KafkaError, KafkaException, Message

from ratestream.streaming.errors import (
    AccessError,
    BrokerError,
    DeliveryError,
    MessageTooLargeError,
    StreamingError,
)
from ratestream.streaming.kafka.config import KafkaConfig, delivery_bound, producer_settings
from ratestream.streaming.kafka.connections import Connections, LibrdkafkaLog, Reachability
from ratestream.streaming.kafka.errors import configuring, error_of, reason
from ratestream.streaming.kafka.partitions import name_of, partition_of
from ratestream.streaming.types import OutgoingRecord, ProducerConfig, TopicPartition

RETRY_SECONDS = 0.1


class KafkaProducer:
    """A `Producer`. One `produce` a record: measured, it is as fast as `produce_batch`, which
    takes neither timestamps, headers nor a partition for each record.

    With a `transactional_id` it writes only inside the transactions that
    `KafkaTransactionalProducer` makes with its client."""

    def __init__(
        self,
        kafka: KafkaConfig,
        config: ProducerConfig,
        reachability: Reachability,
        transactional_id: str | None = None,
    ) -> None:
        self._servers = kafka.bootstrap_servers
        self._config = config
        self._bound = delivery_bound(config, transactional_id)
        self.connections = Connections(kafka, reachability)
        self._next: dict[TopicPartition, int] = {}
        self._has_sent = False
        self._failed = 0
        self._failure: tuple[TopicPartition, KafkaError] | None = None
        self.failed_topics: set[str] = set()
        """Those of the records that failed, until `forget`."""
        self._closed = False
        callbacks = {"error_cb": self.connections.on_error}
        with configuring(kafka):
            self.client = librdkafka.Producer(
                producer_settings(kafka, config, transactional_id) | callbacks,
                logger=LibrdkafkaLog(),
            )

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        limit = self._config.max_message_bytes
        for record in records:
            if record.size > limit:
                raise MessageTooLargeError(
                    f"a record for {record.topic} has {record.size} bytes; "
                    f"max_message_bytes is {limit}"
                )
        with self.connections.translating("sending"):
            self._has_sent |= bool(records)
            self._produce(records)

    def flush(self) -> dict[TopicPartition, int]:
        # librdkafka gives a record up after the delivery timeout: the rest is for its report.
        with self.connections.translating("sending"):
            waiting = self.client.flush(self._bound.seconds + 5.0)
        offsets, self._next = self._next, {}
        has_sent, self._has_sent = self._has_sent, False
        if waiting or self._failed:
            raise self._delivery_error(waiting)
        if has_sent:
            self.connections.have_answered()
        return offsets

    def serve(self) -> None:
        with self.connections.translating("sending"):
            self.client.poll(0)

    def forget(self) -> None:
        """What became of the records since the last flush."""
        self._has_sent = False
        self._next, self._failed, self._failure = {}, 0, None
        self.failed_topics = set()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(BrokerError), self.connections.translating("closing"):
            self.client.purge()
        # Its own close would first wait, without a bound, to abort a transaction.
        del self.client
        self.connections.forget()

    def _produce(self, records: Sequence[OutgoingRecord]) -> None:
        deadline = time.monotonic() + self._bound.seconds
        queued = self._queue(records)
        while queued < len(records):
            if time.monotonic() > deadline:
                raise BrokerError(self._full())
            self.client.poll(RETRY_SECONDS)
            queued += self._queue(records[queued:])

    def _queue(self, records: Sequence[OutgoingRecord]) -> int:
        """How many of them, from the first on, librdkafka's buffer had room for."""
        produce, queued = self.client.produce, 0
        reports = self._on_delivery, self._on_delivery_to_named
        try:
            for record in records:
                partition = record.partition
                produce(  # by position, which is read faster
                    record.topic,
                    record.value,
                    record.key,
                    -1 if partition is None else partition,
                    reports[partition is not None],
                    None,
                    record.timestamp or 0,
                    list(record.headers) if record.headers else None,
                )
                queued += 1
            return queued
        except BufferError:
            return queued
        except KafkaException as exc:
            failure = exc
        self.client.poll(0)  # raises the cause of a fatal error, which `failure` does not know
        doing = f"sending to topic {records[queued].topic}"
        raise self.connections.error(doing, error_of(failure)) from failure

    def _full(self) -> str:
        config = self._config
        return (
            f"Kafka at {self._servers} acknowledges nothing: the buffer "
            f"(buffer_records={config.buffer_records}, buffer_bytes={config.buffer_bytes}) "
            f"stayed full for {self._bound}"
        )

    def _delivery_error(self, waiting: int) -> StreamingError:
        """Of the records since the last flush, which are then forgotten."""
        count, failure = waiting + self._failed, self._failure
        self._next, self._failed, self._failure = {}, 0, None
        what = f"Kafka at {self._servers} did not acknowledge {count} records"
        if failure is None:
            return DeliveryError(f"{what}: no answer within {self._bound}")
        partition, error = failure
        cause = self.connections.error(f"sending to topic {partition.topic}", error)
        if isinstance(cause, AccessError):
            return cause
        is_too_large = error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        kind = MessageTooLargeError if is_too_large else DeliveryError
        return kind(f"{what}: {name_of(partition)}: {reason(error)}")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Called for every record: what it looks at is paid for each time."""
        if error is not None:
            self._on_failure(error, message)

    def _on_delivery_to_named(self, error: KafkaError | None, message: Message) -> None:
        """In order within a partition. A repeat that the broker has recognised is delivered but has
        no offset: the position before it is still right."""
        if error is not None:
            self._on_failure(error, message)
        elif (offset := message.offset()) is not None:
            self._next[partition_of(message)] = offset + 1

    def _on_failure(self, error: KafkaError, message: Message) -> None:
        self._failed += 1
        self.failed_topics.add(partition_of(message).topic)
        # Trying again cannot make a record smaller, so that is told before all else.
        if self._failure is None or error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self._failure = (partition_of(message), error)
        if error.code() == KafkaError._MSG_TIMED_OUT:
            self.connections.failed(error)
