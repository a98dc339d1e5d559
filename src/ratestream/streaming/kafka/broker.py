"""A Kafka cluster: what makes consumers, producers and topics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # not in its __all__
    ConfigResource,
    NewTopic,
)

from ratestream.streaming.errors import BrokerError, ConfigurationError, FencedError
from ratestream.streaming.kafka.admin import Admin
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.connections import Reachability
from ratestream.streaming.kafka.consumer import KafkaConsumer
from ratestream.streaming.kafka.errors import error_of
from ratestream.streaming.kafka.producer import KafkaProducer
from ratestream.streaming.kafka.transactions import KafkaTransactionalProducer
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    TopicConfig,
    TopicDescription,
    TopicPartition,
    TopicSpec,
)

T = TypeVar("T")

ABORTED, COMMITTED, FENCED = b"aborted", b"committed", b"fenced"

RETRY_SECONDS = 0.1

# How long a cluster id is waited for before it is asked whether Kafka has refused us.
FIRST_ANSWER_SECONDS = 1.0

# Kafka's own, for brokers that describe only what a topic was given.
TOPIC_DEFAULTS = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "max.message.bytes": "1048588",
    "delete.retention.ms": "86400000",
    "min.insync.replicas": "1",
}


class KafkaBroker:
    """A Kafka cluster as a `Broker`. Connects when first asked, not when made.

    Raises `ConfigurationError` for a setting that librdkafka does not know or take.
    """

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._reachability = Reachability(config.bootstrap_servers)
        self._admin = Admin(config, self._reachability)

    def consumer(self, config: ConsumerConfig) -> KafkaConsumer:
        return KafkaConsumer(self._config, config, self._admin, self._reachability)

    def producer(self, config: ProducerConfig) -> KafkaProducer:
        return KafkaProducer(self._config, config, self._reachability)

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> KafkaTransactionalProducer:
        return KafkaTransactionalProducer(
            self._config, config, self._reachability, transactional_id
        )

    def require_transactions(self, probe: str, group: str, transactional_id: str) -> None:
        partition = TopicPartition(probe, 0)
        with (
            closing(self._outsider(group, transactional_id)) as consumer,
            closing(self._probing(transactional_id)) as producer,
        ):
            consumer.assign({partition: consumer.log_end(partition)})
            self._require_hidden_aborts(producer, consumer, partition)
            self._require_offsets(producer, consumer, partition)
            with closing(self._probing(transactional_id)):
                self._require_fencing(producer, consumer, partition)

    def _outsider(self, group: str, client_id: str) -> KafkaConsumer:
        """One that never joins. With the new protocol it would call itself a member all the same,
        whom a group that has members does not know."""
        kafka = replace(self._config, group_protocol="classic")
        config = ConsumerConfig(group=group, client_id=client_id)
        return KafkaConsumer(kafka, config, self._admin, self._reachability)

    def _probing(self, transactional_id: str) -> KafkaTransactionalProducer:
        config = ProducerConfig(client_id=transactional_id)
        return self.transactional_producer(config, transactional_id)

    def _require_hidden_aborts(
        self,
        producer: KafkaTransactionalProducer,
        consumer: KafkaConsumer,
        partition: TopicPartition,
    ) -> None:
        mark = uuid4().bytes
        producer.begin()
        producer.send([OutgoingRecord(partition.topic, mark, ABORTED, partition.partition)])
        producer.flush()
        producer.abort()
        producer.begin()
        producer.send([OutgoingRecord(partition.topic, mark, COMMITTED, partition.partition)])
        producer.commit({}, consumer)
        if self._first_value(consumer, mark) == ABORTED:
            raise self._unfit(
                "shows the records of aborted transactions to those who read committed ones",
                "hides them",
            )

    def _require_offsets(
        self,
        producer: KafkaTransactionalProducer,
        consumer: KafkaConsumer,
        partition: TopicPartition,
    ) -> None:
        """Other instances of the group may do the same at the same time."""
        before = consumer.committed([partition]).get(partition, 0)
        producer.begin()
        producer.commit({partition: max(before, consumer.log_end(partition)) + 1}, consumer)
        if consumer.committed([partition]).get(partition, 0) == before:
            raise self._unfit(
                "drops the offsets of a group that are committed in a transaction", "keeps them"
            )

    def _require_fencing(
        self,
        fenced: KafkaTransactionalProducer,
        consumer: KafkaConsumer,
        partition: TopicPartition,
    ) -> None:
        try:
            fenced.begin()
            fenced.send([OutgoingRecord(partition.topic, None, FENCED, partition.partition)])
            fenced.commit({}, consumer)
        except FencedError:
            return
        raise self._unfit(
            "lets a producer commit after another one has taken its transactional id", "fences it"
        )

    def _unfit(self, does: str, should: str) -> ConfigurationError:
        return ConfigurationError(
            f"Kafka at {self._config.bootstrap_servers} {does}, as Apache Kafka does not: "
            f"exactly_once needs a broker that {should}; set processing_guarantee to "
            "at_least_once, or use another broker"
        )

    def _first_value(self, consumer: KafkaConsumer, key: bytes) -> bytes | None:
        deadline = time.monotonic() + self._config.request_timeout
        while time.monotonic() < deadline:
            for record in consumer.poll(1000, RETRY_SECONDS):
                if record.key == key:
                    return record.value
        raise BrokerError(
            f"Kafka at {self._config.bootstrap_servers} showed no record of a committed "
            f"transaction within request_timeout={self._config.request_timeout} s: whether it can "
            "do exactly_once cannot be found out"
        )

    def cluster_id(self) -> str:
        """A refusal by the only server there is ends the question before `request_timeout`."""
        deadline = time.monotonic() + self._config.request_timeout
        is_alone = "," not in self._config.bootstrap_servers
        with self._admin.asking("its cluster id", look=True):
            while True:
                remaining = max(0.0, deadline - time.monotonic())
                timeout = min(remaining, FIRST_ANSWER_SECONDS)
                try:
                    return self._admin.client.cluster_id(timeout=timeout)
                except KafkaException:
                    if timeout == remaining or (is_alone and self._admin.is_refused()):
                        raise

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        deadline = time.monotonic() + self._config.request_timeout
        there = self._ready_partitions()
        missing = [_new_topic(spec) for spec in specs if spec.name not in there]
        if missing:
            futures = self._admin.client.create_topics(
                missing, request_timeout=self._config.request_timeout
            )
            for name, future in futures.items():
                with self._admin.asking(f"to create topic {name}"):
                    self._answer(future, unless=KafkaError.TOPIC_ALREADY_EXISTS)
        self._wait_until_ready([spec.name for spec in specs], deadline)

    def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        if not names:
            return {}
        futures = self._admin.client.describe_topics(
            TopicCollection(list(names)), request_timeout=self._config.request_timeout
        )
        found = self._existing(futures, "to describe")
        return {name: _description(topic) for name, topic in found.items()}

    def topic_configs(self, names: Sequence[str]) -> dict[str, TopicConfig]:
        if not names:
            return {}
        futures = self._admin.client.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names],
            request_timeout=self._config.request_timeout,
        )
        by_name = {resource.name: future for resource, future in futures.items()}
        found = self._existing(by_name, "to describe the configs of")
        return {name: _config(entries) for name, entries in found.items()}

    def is_reachable(self) -> bool:
        return self._reachability.trouble is None

    def trouble(self) -> str | None:
        return self._reachability.trouble

    def close(self) -> None:
        self._admin.close()

    def _existing(self, answers: Mapping[str, Future[Any]], question: str) -> dict[str, Any]:
        """What was answered of each topic that there is."""
        found = {}
        for name, future in answers.items():
            with self._admin.asking(f"{question} topic {name}"):
                answer = self._answer(future, unless=KafkaError.UNKNOWN_TOPIC_OR_PART)
            if answer is not None:
                found[name] = answer
        return found

    def _answer(self, future: Future[T], unless: int) -> T | None:
        """What the cluster answered, or None when it answered with this error."""
        try:
            return future.result()
        except KafkaException as exc:
            if error_of(exc).code() != unless:
                raise
            return None

    def _ready_partitions(self) -> dict[str, bool]:
        """Each topic there is, and whether all of its partitions have a leader."""
        with self._admin.asking("which topics it has"):
            topics = self._admin.client.list_topics(timeout=self._config.request_timeout).topics
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


def _new_topic(spec: TopicSpec) -> NewTopic:
    config = {
        "cleanup.policy": spec.cleanup_policy,
        "retention.ms": str(spec.retention_ms),
        "max.message.bytes": str(spec.max_message_bytes),
    }
    if spec.cleanup_policy == "compact":  # a table may be away for half of it: see `Store`
        config["delete.retention.ms"] = TOPIC_DEFAULTS["delete.retention.ms"]
    if spec.replication_factor >= 3:
        config["min.insync.replicas"] = "2"
    return NewTopic(
        spec.name,
        num_partitions=spec.partitions,
        replication_factor=spec.replication_factor,
        config=config,
    )


def _description(topic: Any) -> TopicDescription:
    return TopicDescription(
        name=topic.name,
        topic_id=str(topic.topic_id),
        partitions=len(topic.partitions),
        replication_factor=min(len(partition.replicas) for partition in topic.partitions),
    )


def _config(entries: Mapping[str, Any]) -> TopicConfig:
    settings = TOPIC_DEFAULTS | {name: entry.value for name, entry in entries.items()}
    return TopicConfig(
        cleanup_policy=settings["cleanup.policy"],
        retention_ms=int(settings["retention.ms"]),
        max_message_bytes=int(settings["max.message.bytes"]),
        delete_retention_ms=int(settings["delete.retention.ms"]),
        min_insync_replicas=int(settings["min.insync.replicas"]),
    )
