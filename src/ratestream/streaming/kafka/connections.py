"""The connections of librdkafka's clients: which are up, and what they say when they are not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from confluent_kafka import KafkaError, KafkaException

from ratestream.streaming.errors import AccessError, BrokerError
from ratestream.streaming.kafka.config import KafkaConfig
from ratestream.streaming.kafka.errors import (
    FORBIDDEN,
    UNANSWERED,
    error_of,
    reason,
    refusal,
    what_happened,
)

logger = logging.getLogger("ratestream.kafka")


class Reachability:
    """What the clients of one cluster know of it together; says once when that changes.

    Down when a client has lost all its connections and no other client is connected. A client
    that has nothing to do closes its connections, and says nothing here."""

    def __init__(self, servers: str) -> None:
        self._servers = servers
        self._lock = Lock()
        self._connected: dict[Connections, bool] = {}
        self.trouble: str | None = None
        self._is_refusal = False

    def report(
        self, client: Connections, connected: bool | None, why: str = "", is_refusal: bool = False
    ) -> None:
        """None takes back what the client said before."""
        with self._lock:
            self._connected.pop(client, None)
            if connected is not None:
                self._connected[client] = connected
            if any(self._connected.values()) or not self._connected:
                if self.trouble is not None:
                    logger.warning("Kafka at %s is reachable again", self._servers)
                self.trouble, self._is_refusal = None, False
            elif self.trouble is None or (is_refusal and not self._is_refusal):
                self.trouble, self._is_refusal = why, is_refusal
                logger.warning("Kafka at %s is unreachable: %s", self._servers, why)


class Connections:
    """The connections of one client, from what librdkafka tells about them; and the translation
    of the client's errors, many of which say only that there was no answer.

    With `looks` it may take a few seconds to find out what is wrong with a certificate.
    """

    def __init__(
        self, kafka: KafkaConfig, reachability: Reachability, *, looks: bool = False
    ) -> None:
        self._kafka = kafka
        self._reachability = reachability
        self._looks = looks
        self._last: KafkaError | None = None

    def on_error(self, error: KafkaError) -> None:
        """The error callback. Its errors are news, not failures: librdkafka tries again. Its
        "all brokers down" is left alone, because it comes without an outage as well."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last = error
            logger.log(logging.ERROR if error.fatal() else logging.DEBUG, "%s", reason(error))

    def on_statistics(self, statistics: str) -> None:
        """The statistics callback, once a second. They are JSON, in which `"state":"UP"` stands
        for a connected broker and nothing else."""
        if '"state":"UP"' in statistics:
            self.are_well()
            self._reachability.report(self, connected=True)
        elif self._last is not None:
            self.failed(self._last)

    def are_well(self) -> None:
        """What was told before is over."""
        self._last = None

    def failed(self, error: KafkaError) -> None:
        told = self._told(error)
        refused = refusal(self._kafka, told)
        why = f"it {refused}" if refused else f"{what_happened(told)} ({told.name()})"
        self._reachability.report(self, connected=False, why=why, is_refusal=refused is not None)

    def unknown(self) -> None:
        self._reachability.report(self, connected=None)

    @property
    def are_refused(self) -> bool:
        return self._last is not None and refusal(self._kafka, self._last) is not None

    @contextmanager
    def translating(self, doing: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as exc:
            raise self.error(doing, error_of(exc)) from exc

    def error(
        self, doing: str, error: KafkaError, kind: type[BrokerError] = BrokerError
    ) -> BrokerError:
        """An `AccessError` when Kafka refuses the client or what it asks for, else of `kind`."""
        kafka, told = self._kafka, self._told(error)
        where = f"Kafka at {kafka.bootstrap_servers}"
        if told.code() in FORBIDDEN:
            return AccessError(
                f"{where}, {doing}: {kafka.identity} is not allowed to: {told.name()}; "
                "check its ACLs"
            )
        if why := refusal(kafka, told, self._looks):
            return AccessError(f"{where} {why}")
        if told.code() == KafkaError._TIMED_OUT:
            hint = f"check bootstrap_servers and security_protocol={kafka.security_protocol}"
            return kind(f"{where}, {doing}: no answer; {hint}")
        return kind(f"{where}, {doing}: {what_happened(told)} ({told.name()})")

    def _told(self, error: KafkaError) -> KafkaError:
        return self._last if self._last and error.code() in UNANSWERED else error


class LibrdkafkaLog:
    """The logger given to librdkafka: connections that fail are `Connections`'s to tell."""

    CONNECTIONS = frozenset({"FAIL", "ERROR", "REQTMOUT", "GETPID", "COORD"})

    def log(self, level: int, _format: str, facility: str, client: str, text: str) -> None:
        if facility in self.CONNECTIONS:
            level = logging.DEBUG
        logger.log(level, "%s %s: %s", client, facility, text)
