"""Where Kafka is, and what librdkafka's clients are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ratestream.streaming.errors import ConfigurationError
from ratestream.streaming.types import ConsumerConfig, ProducerConfig

Settings = dict[str, Any]

# A request waits behind the fetch in flight on its connection, and a resumed partition for the
# next fetch: a short wait at the broker makes both quick.
FETCH_WAIT_SECONDS = 0.1

# Seconds. A fetch must come back before its socket is given up.
SHORTEST_SOCKET_TIMEOUT = 2.0

# librdkafka refuses a batch that the topic finds too large as a whole, and cannot split it: small
# batches keep topics with a low max.message.bytes usable, and cost nothing that was measurable.
BATCH_BYTES = 128 * 1024

# What comes of each partition at a time. librdkafka goes on with the next one only when all of a
# fetch is taken apart: with 1 MiB a worker takes far more memory, and is no faster.
_PARTITION_FETCH_BYTES = 256 * 1024

# Kafka counts the record's own frame too; ours is a limit of key, value and headers.
FRAME_BYTES = 1024

CHOICES = {
    "partition_assignment": ("cooperative-sticky", "range"),
    "group_protocol": ("classic", "consumer"),
}


@dataclass(frozen=True)
class KafkaConfig:
    """Where Kafka is and how to reach it.

    `request_timeout` (seconds) bounds every question to the cluster. "cooperative-sticky" moves
    only the partitions that must move in a rebalance; "range" gives the same partition numbers of
    several topics to the same member, and stops all of them. With `group_protocol` "consumer"
    (KIP-848, Kafka 4) the broker assigns, always moving only what must move: "range" then only
    chooses its assignor, and the group's session timeout and heartbeat interval are the broker's
    (group.consumer.session.timeout.ms, group.consumer.heartbeat.interval.ms). `extra` are
    librdkafka's own settings, by its names, and win over everything here.
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
    group_protocol: Literal["classic", "consumer"] = "classic"
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigurationError(f"{name}={value!r}: must be one of {allowed}")

    @property
    def socket_timeout(self) -> float:
        return max(self.request_timeout, SHORTEST_SOCKET_TIMEOUT)

    @property
    def rebalances_incrementally(self) -> bool:
        return self.group_protocol == "consumer" or self.partition_assignment != "range"

    @property
    def identity(self) -> str:
        """Whom Kafka sees, in words."""
        if self.security_protocol.startswith("SASL"):
            return f"user {self.extra.get('sasl.username', self.sasl_username)!r}"
        if self.ssl_certificate_location is not None:
            return f"the certificate {self.ssl_certificate_location}"
        return "a client without a certificate or a password"

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
            "socket.timeout.ms": _milliseconds(self.socket_timeout),
            "socket.keepalive.enable": True,
            "reconnect.backoff.max.ms": 2_000,
            "log.connection.close": False,
            **{name: value for name, value in given.items() if value is not None},
        }


def consumer_settings(kafka: KafkaConfig, config: ConsumerConfig) -> Settings:
    return {
        **kafka.settings(config.client_id),
        # librdkafka insists on a group; one that is never joined nor committed to does no harm.
        "group.id": config.group or config.client_id,
        **_membership(kafka, config),
        "auto.offset.reset": config.offset_reset,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "max.poll.interval.ms": _milliseconds(config.max_poll_interval),
        "queued.max.messages.kbytes": max(1, config.buffer_bytes // 1024),
        "fetch.message.max.bytes": min(_PARTITION_FETCH_BYTES, config.buffer_bytes),
        "fetch.max.bytes": min(50 * 1024 * 1024, max(1_000_000, config.buffer_bytes)),
        "fetch.wait.max.ms": _milliseconds(FETCH_WAIT_SECONDS),
        "fetch.queue.backoff.ms": 10,
        "statistics.interval.ms": 1_000,
        **kafka.extra,
    }


def _membership(kafka: KafkaConfig, config: ConsumerConfig) -> Settings:
    instance = {} if config.instance_id is None else {"group.instance.id": config.instance_id}
    if kafka.group_protocol == "consumer":
        is_range = kafka.partition_assignment == "range"
        assignor = {"group.remote.assignor": "range"} if is_range else {}
        return {"group.protocol": "consumer", **assignor, **instance}
    return {
        "partition.assignment.strategy": kafka.partition_assignment,
        "session.timeout.ms": _milliseconds(config.session_timeout),
        "heartbeat.interval.ms": _milliseconds(config.heartbeat_interval),
        **instance,
    }


class Bound(NamedTuple):
    """A time limit, and the setting that it comes from."""

    seconds: float
    setting: str

    def __str__(self) -> str:
        return f"{self.setting}={self.seconds} s"


def delivery_bound(config: ProducerConfig, transactional_id: str | None) -> Bound:
    """For how long a record is tried. librdkafka insists that it is no longer than what the broker
    allows the transaction."""
    if transactional_id is None or config.delivery_timeout <= config.transaction_timeout:
        return Bound(config.delivery_timeout, "delivery_timeout")
    return Bound(config.transaction_timeout, "transaction_timeout")


def producer_settings(
    kafka: KafkaConfig, config: ProducerConfig, transactional_id: str | None
) -> Settings:
    bound = delivery_bound(config, transactional_id)
    return {
        **kafka.settings(config.client_id),
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "linger.ms": _milliseconds(config.linger),
        "delivery.timeout.ms": _milliseconds(bound.seconds),
        "batch.size": BATCH_BYTES,
        "message.max.bytes": config.max_message_bytes + FRAME_BYTES,
        "queue.buffering.max.messages": config.buffer_records,
        "queue.buffering.max.kbytes": max(1, config.buffer_bytes // 1024),
        **({} if transactional_id is None else _transactions(kafka, config, transactional_id)),
        **kafka.extra,
    }


def _transactions(kafka: KafkaConfig, config: ProducerConfig, transactional_id: str) -> Settings:
    # librdkafka insists that a request is given up before its transaction.
    socket_timeout = min(kafka.socket_timeout, config.transaction_timeout)
    return {
        "transactional.id": transactional_id,
        "transaction.timeout.ms": _milliseconds(config.transaction_timeout),
        "socket.timeout.ms": _milliseconds(socket_timeout),
    }


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
