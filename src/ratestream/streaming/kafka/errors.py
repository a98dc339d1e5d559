"""What librdkafka's errors mean: an outage, a refusal, or something to act upon."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException

from ratestream.streaming.errors import ConfigurationError
from ratestream.streaming.kafka.config import KafkaConfig

HANDSHAKE_SECONDS = 3.0

# Connections that fail are `Connections`'s to tell: librdkafka makes new ones by itself.
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
FENCED_PRODUCER = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}
# What trying again cannot help, unless with another broker.
UNSUPPORTED = {
    KafkaError._NOT_IMPLEMENTED,
    KafkaError._UNSUPPORTED_FEATURE,
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
    KafkaError.UNSUPPORTED_VERSION,
}
LEADER_CHANGED = {
    KafkaError._NOENT,  # librdkafka's, when it knew of no leader the last time it looked
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
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
# librdkafka's word for having no answer; why there is none, its connections have told before.
UNANSWERED = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._FATAL,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._WAIT_COORD,
}
FORBIDDEN = {
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
}

# "sasl_ssl://host:9092/bootstrap: what happened (after 3ms in state AUTH_REQ)"
_CONNECTION_ERROR = re.compile(
    r"(?:(?:\w+://)?(?P<address>[^/ ]*)/\S+: )?(?P<what>.*?)(?: \(after .*)?", re.DOTALL
)

_INVALID_SIZE = "Invalid response size"

# 'Invalid value "…" for configuration property "name"', '… value … is outside allowed range'
_VALUE = re.compile(r"value .+(?= for configuration property| is outside allowed range)", re.DOTALL)


@contextmanager
def configuring(kafka: KafkaConfig) -> Iterator[None]:
    try:
        yield
    except KafkaException as exc:
        reason = _VALUE.sub("value ****", error_of(exc).str().strip())
        names = ", ".join(kafka.extra)
        hint = f"; see the settings in extra: {names}" if names else ""
        raise ConfigurationError(f"Kafka at {kafka.bootstrap_servers}: {reason}{hint}") from None


@contextmanager
def kafka_exceptions() -> Iterator[None]:
    """A fatal error of librdkafka's comes out of whatever call serves its callbacks; of one that
    had a result already, Python makes a `SystemError`.

    Before Python 3.12, confluent_kafka never lets go of such a `SystemError`, nor of an exception
    that is being handled while it raises one. Their frames hold the client with its threads and
    connections, and the worker around it: so the first lose theirs, and no call that may raise is
    made in an `except`."""
    try:
        yield
    except SystemError as exc:
        cause = exc.__cause__
        for kept in (exc, cause):
            if kept is not None:
                kept.__traceback__ = None
        if isinstance(cause, KafkaException):
            raise KafkaException(*cause.args) from None
        # The error itself was lost on its way: seen of a flush when the producer was fenced.
        raise KafkaException(KafkaError(KafkaError._FATAL, str(exc), fatal=True)) from exc


def error_of(exc: KafkaException) -> KafkaError:
    error = exc.args[0]
    return error if isinstance(error, KafkaError) else KafkaError(KafkaError._FAIL, str(error))


def reason(error: KafkaError) -> str:
    return f"{error.str()} ({error.name()})"


def what_happened(error: KafkaError) -> str:
    """A connection's error, without where and after how many milliseconds."""
    what = _parsed(error)["what"]
    if _INVALID_SIZE in what:  # and then advises to take larger answers
        return (
            "what answers does not speak as Kafka does; check bootstrap_servers and "
            "security_protocol"
        )
    return what


def refusal(kafka: KafkaConfig, error: KafkaError, look: bool = False) -> str | None:
    """Why this client is not let in, and which settings to check; None when `error` is anything
    else. With `look` a certificate that is not trusted is looked at, in a connection of its own.
    """
    what, code = what_happened(error), error.code()
    if "Local: " in what:  # the connection broke on the way
        return None
    if code == KafkaError._AUTHENTICATION:
        return (
            f"refuses {kafka.identity}: {what}; "
            "check security_protocol, sasl_mechanism, sasl_username and sasl_password"
        )
    if "certificate verify failed" in what:
        why = (look and _distrust(kafka, _parsed(error)["address"])) or what
        return (
            f"has a certificate that is not trusted: {why}; check ssl_ca_location, and that the "
            "certificate is valid for the host in bootstrap_servers"
        )
    if "SSL alert" in what:
        return (
            f"refuses {kafka.identity}: {what}; "
            "check ssl_certificate_location, ssl_key_location and who issued the certificate"
        )
    if code == KafkaError._SSL:
        return f"cannot be spoken to: {what}; check security_protocol and the ssl settings"
    return None


def _parsed(error: KafkaError) -> dict[str, str]:
    match = _CONNECTION_ERROR.fullmatch(error.str())
    return match.groupdict(default="") if match else {"address": "", "what": error.str()}


def _distrust(kafka: KafkaConfig, address: str) -> str | None:
    """librdkafka does not say what is wrong with a certificate: OpenSSL does."""
    host, _, port = address.rpartition(":")
    try:
        context = ssl.create_default_context()
        if kafka.ssl_ca_location is not None:
            is_folder = Path(kafka.ssl_ca_location).is_dir()
            place = "capath" if is_folder else "cafile"
            context.load_verify_locations(**{place: kafka.ssl_ca_location})
        with (
            socket.create_connection((host, int(port)), HANDSHAKE_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return None
    except ssl.SSLCertVerificationError as exc:
        return f"{exc.verify_message} ({address})"
    except (OSError, ValueError):
        return None
