"""The connections of librdkafka's clients: which are up, and what they say when they are not."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from confluent_kafka import KafkaError, KafkaException

from ratestream.streaming.errors import AccessError, AuthorizationError, BrokerError
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.errors import (
    FORBIDDEN,
    UNANSWERED,
    error_of,
    kafka_exceptions,
    reason,
    refusal,
    what_happened,
)

logger = logging.getLogger("ratestream.kafka")

# A client that is polled tells of its connections once a second.
BELIEVED_SECONDS = 5.0


class Reachability:
    """What the clients of one cluster know of it together; says once when that changes.

    Down when a client has lost all its connections and no other client is connected. A client
    that has nothing to do closes its connections, and says nothing here; what one said that is no
    longer polled soon counts no more."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._lock = Lock()
        self._connected: dict[Connections, float] = {}
        """When a client last had a connection, by the monotonic clock."""
        self.trouble: str | None = None
        self._is_refusal = False

    def connected(self, client: Connections) -> None:
        with self._lock:
            self._connected[client] = time.monotonic()
            if self.trouble is not None:
                self.trouble, self._is_refusal = None, False
                logger.warning("Kafka at %s is reachable again", self._servers)

    def failed(self, client: Connections, why: str, is_refusal: bool) -> None:
        with self._lock:
            self._connected.pop(client, None)
            if (
                time.monotonic() - max(self._connected.values(), default=-math.inf)
                < BELIEVED_SECONDS
            ):
                return
            if self.trouble is None or (is_refusal and not self._is_refusal):
                self.trouble, self._is_refusal = why, is_refusal
                logger.warning("Kafka at %s is unreachable: %s", self._servers, why)

    def forget(self, client: Connections) -> None:
        """It is closed, or has nothing to do: that ends no outage."""
        with self._lock:
            self._connected.pop(client, None)


class Connections:
    """The connections of one client, from what librdkafka tells about them; and the translation
    of the client's errors, many of which say only that there was no answer."""

    def __init__(self, kafka: KafkaConfig, reachability: Reachability) -> None:
        self._kafka = kafka
        self._reachability = reachability
        self._last: KafkaError | None = None

    def on_error(self, error: KafkaError) -> None:
        """The error callback. Its errors are news, not failures: librdkafka tries again. Its
        "all brokers down" is left alone, because it comes without an outage as well. While one
        server refuses the client, another that is away is not what has to be told."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            if not self.are_refused or refusal(self._kafka, error) is not None:
                self._last = error
            logger.log(logging.ERROR if error.fatal() else logging.DEBUG, "%s", reason(error))

    def on_statistics(self, statistics: str) -> None:
        """The statistics callback, once a second. They are JSON, in which `"state":"UP"` stands
        for a connected broker and nothing else."""
        if '"state":"UP"' in statistics:
            self.are_well()
            self._reachability.connected(self)
        elif self._last is not None:
            self.failed(self._last)

    def are_well(self) -> None:
        """What was told before is over."""
        self._last = None

    def failed(self, error: KafkaError) -> None:
        told = self._told(error)
        refused = refusal(self._kafka, told)
        why = f"it {refused}" if refused else f"{what_happened(told)} ({told.name()})"
        self._reachability.failed(self, why, is_refusal=refused is not None)

    def have_answered(self) -> None:
        """For a client without statistics, which will not tell when they are lost."""
        self.are_well()
        self._reachability.connected(self)
        self._reachability.forget(self)

    def forget(self) -> None:
        self._reachability.forget(self)

    @property
    def are_refused(self) -> bool:
        return self._last is not None and refusal(self._kafka, self._last) is not None

    @contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        try:
            with kafka_exceptions():
                yield
        except KafkaException as exc:
            raise self.error(doing, error_of(exc)) from exc

    def error(
        self,
        doing: str,
        error: KafkaError,
        kind: type[BrokerError] = BrokerError,
        *,
        look: bool = False,
    ) -> BrokerError:
        """An `AccessError` when Kafka refuses the client or what it asks for, else of `kind`.
        With `look` it may take a few seconds to find out what is wrong with a certificate."""
        kafka, told = self._kafka, self._told(error)
        where = f"Kafka at {kafka.bootstrap_servers}"
        if told.code() in FORBIDDEN:
            return AuthorizationError(
                f"{where}, {doing}: {kafka.identity} is not allowed to: {told.name()}; "
                "check its ACLs"
            )
        if why := refusal(kafka, told, look):
            return AccessError(f"{where} {why}")
        if told.code() == KafkaError._TIMED_OUT:
            hint = f"check bootstrap_servers and security_protocol={kafka.security_protocol}"
            return kind(f"{where}, {doing}: no answer; {hint}")
        return kind(f"{where}, {doing}: {what_happened(told)} ({told.name()})")

    def _told(self, error: KafkaError) -> KafkaError:
        return self._last if self._last and error.code() in UNANSWERED else error


class LibrdkafkaLog:
    """The logger given to librdkafka: connections that fail are `Connections`'s to tell, and what
    fails in a transaction, or for good, is raised."""

    TOLD_OTHERWISE = frozenset(
        {
            "FAIL",
            "FATAL",
            "ERROR",
            "REQTMOUT",
            "GETPID",
            "COORD",
            "TXNERR",
            "ADDPARTS",
            "ADDOFFSETS",
        }
    )

    def log(self, level: int, _format: str, facility: str, client: str, text: str) -> None:
        if facility in self.TOLD_OTHERWISE:
            level = logging.DEBUG
        logger.log(level, "%s %s: %s", client, facility, text)
