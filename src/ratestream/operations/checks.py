"""What `ratestream doctor` looks at, beside topics, schema and lag, which have their own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec

from ratestream import __version__
from ratestream.certificates import Certificate, kafka_places, postgres_places
from ratestream.operations import database
from ratestream.operations.deployment import Deployment
from ratestream.operations.errors import OperationError
from ratestream.operations.findings import Finding, Severity, counted
from ratestream.operations.letters import Filter, ListDeadLetters
from ratestream.settings import SERVICES
from ratestream.sources.base import SourceError
from ratestream.sources.config import SourceSettings
from ratestream.sources.factory import make_source
from ratestream.sources.http import make_client, make_tls_context
from ratestream.storage.inspection import inspect
from ratestream.streaming import ConfigurationError, ConsumerConfig, TopicPartition
from ratestream.streaming.app import TRANSACTION_PROBE

OLDEST_POSTGRES = 14
SKEW_WARNING = timedelta(seconds=1)
SKEW_WRONG = timedelta(seconds=30)
FREE_WARNING = 0.15
FREE_WRONG = 0.05
"""Shares of the disk that should be, and have to be, free."""

CERTIFICATE_WARNING = timedelta(days=30)
CERTIFICATE_WRONG = timedelta(days=3)
HEALTH_SECONDS = 5.0
DOCTOR = "ratestream-doctor"
"""What it is called in Kafka, and the transactional id that it tries transactions with."""

MANY_LETTERS = 1_000
"""Dead letters that are counted, at most."""

_LETTERS_SINCE = timedelta(hours=1)
_HEALTH_BYTES = 64 * 1024
_SAY_WHERE = "say with --address where the service is"
_NEWEST_SECONDS = 2.0
_SRC_DATA = "src-data"


def kafka(deployment: Deployment) -> list[Finding]:
    """Raises `BrokerError`."""
    cluster = deployment.broker.cluster_id()
    deployment.broker.describe_topics([_SRC_DATA])  # a client remembers its cluster; this it asks
    return [Finding("kafka", Severity.OK, f"cluster {cluster} answers")]


def transactions(deployment: Deployment) -> list[Finding]:
    """Whether this Kafka can do what exactly_once needs, tried as a service does when it starts.
    Raises `BrokerError`."""
    subject, probe = "transactions", TRANSACTION_PROBE.name
    if probe not in deployment.plan.topics:
        return [Finding(subject, Severity.OK, "no service needs them: all work at_least_once")]
    if not deployment.broker.describe_topics([probe]):
        text = f"cannot be tried: topic {probe} is missing"
        return [Finding(subject, Severity.SKIPPED, text, "run ratestream topics create")]
    try:
        deployment.broker.require_transactions(probe, DOCTOR, DOCTOR)
    except ConfigurationError as error:
        return [Finding(subject, Severity.WRONG, str(error))]
    return [
        Finding(subject, Severity.OK, "one was aborted and one committed, as exactly_once needs")
    ]


async def postgres(deployment: Deployment) -> list[Finding]:
    """Server, schema and grants. Raises `StorageError`."""
    server = await inspect(deployment.settings.postgres.dsn())
    finding = Finding("postgres", Severity.OK, f"version {server.version} answers")
    if server.version_number < OLDEST_POSTGRES * 10_000:
        text = f"has version {server.version}"
        advice = f"use one that is supported: {OLDEST_POSTGRES} or newer"
        finding = Finding("postgres", Severity.WRONG, text, advice)
    return [finding, *await database.schema(deployment)]


async def cluster(deployment: Deployment) -> list[Finding]:
    """Whether the rows in Postgres are those of this Kafka cluster. Raises `StorageError` and
    `BrokerError`."""
    ours = await asyncio.to_thread(deployment.broker.cluster_id)
    return [await database.cluster(deployment, ours)]


async def dead_letters(deployment: Deployment) -> list[Finding]:
    """Those of the last hour that were not replayed. Raises `BrokerError`."""
    recent = Filter(since=datetime.now(UTC) - _LETTERS_SINCE)
    try:
        found = await ListDeadLetters(MANY_LETTERS, recent).run(deployment)
    except OperationError:
        return [Finding("dead letters", Severity.SKIPPED, "see topics")]
    count = len(found.letters)
    if not count and found.is_complete:
        return [Finding("dead letters", Severity.OK, "none in the last hour")]
    more = "" if found.is_complete and count < MANY_LETTERS else " or more"
    text = f"{counted(count, 'letter')}{more} in the last hour"
    advice = "see what was refused, and why, with ratestream dead-letter list --since 1h"
    return [Finding("dead letters", Severity.WARNING, text, advice)]


async def clocks(deployment: Deployment) -> list[Finding]:
    """Ours against Postgres', and against that of whoever put the newest snapshot on its topic.
    Raises `StorageError` and `BrokerError`."""
    server = await inspect(deployment.settings.postgres.dsn())
    ahead = server.clock_ahead
    findings = [skew("the clock of Postgres", ahead, server.uncertainty)]
    newest = await asyncio.to_thread(_newest_timestamp, deployment)
    if newest is not None:
        # Only what is from the future tells of clocks: what is old may just be old.
        ahead = datetime.fromtimestamp(newest / 1000, UTC) - datetime.now(UTC)
        findings.append(skew("the clock of data_requester", max(ahead, timedelta())))
    return findings


def skew(whose: str, ahead: timedelta, uncertainty: timedelta = timedelta()) -> Finding:
    """Only what is beyond the `uncertainty` of a measurement counts."""
    difference = max(timedelta(), abs(ahead) - uncertainty)
    if difference <= SKEW_WARNING:
        return Finding(whose, Severity.OK, f"differs from ours by {_seconds(difference)} s")
    severity = Severity.WRONG if difference > SKEW_WRONG else Severity.WARNING
    direction = "ahead of" if ahead > timedelta() else "behind"
    return Finding(
        whose,
        severity,
        f"is {_seconds(difference)} s {direction} ours",
        "let NTP set the clocks of both machines: ages and delays are differences of clocks",
    )


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.1f}"


def _newest_timestamp(deployment: Deployment) -> int | None:
    """Of the last snapshots of all partitions."""
    found = deployment.broker.describe_topics([_SRC_DATA]).get(_SRC_DATA)
    with closing(deployment.broker.consumer(ConsumerConfig(client_id=DOCTOR))) as last:
        partitions = [TopicPartition(_SRC_DATA, n) for n in range(found.partitions if found else 0)]
        ends = {each: last.watermarks(each) for each in partitions}
        wanted = {each: marks.high - 1 for each, marks in ends.items() if marks.high > marks.low}
        if not wanted:
            return None
        last.assign(wanted)
        newest: dict[TopicPartition, int] = {}
        deadline = time.monotonic() + _NEWEST_SECONDS
        while len(newest) < len(wanted) and time.monotonic() < deadline:
            for record in last.poll(len(wanted), 0.2):
                newest[record.topic_partition] = record.timestamp
    return max(newest.values(), default=None)


def disk(deployment: Deployment) -> list[Finding]:
    """Where this runs, which is where the services run only if it is their machine."""
    folder = deployment.settings.data_dir
    place = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"probe")
    except OSError as error:
        text = f"{folder} cannot be written: {error.strerror}"
        return [Finding("disk", Severity.WRONG, text, "correct its owner, or set data_dir")]
    usage = shutil.disk_usage(place)
    return [room(folder, usage.free, usage.total)]


def room(folder: Path, free: int, total: int) -> Finding:
    """Whether that many free bytes are enough on a disk of that many."""
    text = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free for {folder}"
    if free > FREE_WARNING * total:
        return Finding("disk", Severity.OK, text)
    severity = Severity.WRONG if free < FREE_WRONG * total else Severity.WARNING
    advice = "make room, add disk, or lower topics.retention_hours and postgres.retention_days"
    return Finding("disk", severity, text, advice)


async def services(deployment: Deployment, address: str | None) -> list[Finding]:
    """Each service's own word. Without an `address` one that does not answer may run elsewhere."""
    async with httpx.AsyncClient(timeout=HEALTH_SECONDS, trust_env=False) as client:
        return list(
            await asyncio.gather(
                *(_health(client, deployment, service, address) for service in SERVICES)
            )
        )


async def _health(
    client: httpx.AsyncClient, deployment: Deployment, service: str, address: str | None
) -> Finding:
    url = _address(deployment, service, address)
    if url is None:
        text = f"has no address of its own: {service}.port is 0"
        return Finding(service, Severity.WARNING, text, "set the port, or give --address")
    try:
        async with asyncio.timeout(HEALTH_SECONDS):
            status, body = await _asked(client, f"{url}/health/ready")
        readiness = msgspec.json.decode(body, type=_Readiness)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        is_known = address is not None or deployment.runs_services
        severity = Severity.WRONG if is_known else Severity.WARNING
        advice = f"start it with ratestream run {service}, or say with --address where it runs"
        if deployment.runs_services:
            advice = "see the log of ratestream up"
        return Finding(service, severity, f"does not answer at {url} ({reason})", advice)
    except msgspec.DecodeError:
        text = f"something else answers at {url}, with status {status}"
        return Finding(service, Severity.WRONG, text, _SAY_WHERE)
    if readiness.service != service:
        text = f"{readiness.service[:80]} answers at {url}"
        return Finding(service, Severity.WRONG, text, _SAY_WHERE)
    if status == httpx.codes.OK:
        return _of_version(service, f"is ready at {url}", readiness.version)
    text = f"at {url} is not ready: {'; '.join(readiness.reasons)}"
    return Finding(service, Severity.WRONG, text, "the reasons say what it waits for; see its log")


class _Readiness(msgspec.Struct):
    """What a service answers at `/health/ready`; an old one says no version."""

    service: str
    reasons: list[str]
    version: str = "unknown"


def _of_version(service: str, text: str, version: str) -> Finding:
    """Whether it is the one that this command knows the topics, schema and settings of."""
    text = f"{text}, version {version[:80]}"
    if version == __version__:
        return Finding(service, Severity.OK, text)
    text = f"{text}; this command is of {__version__}"
    return Finding(service, Severity.WARNING, text, "use one version for all services and for this")


async def _asked(client: httpx.AsyncClient, url: str) -> tuple[int, bytes]:
    """Status and body, of a long one a little more than `_HEALTH_BYTES`."""
    body = b""
    async with client.stream("GET", url) as answer:
        async for chunk in answer.aiter_raw(_HEALTH_BYTES):
            body += chunk
            if len(body) > _HEALTH_BYTES:
                break
    return answer.status_code, body


def _address(deployment: Deployment, service: str, address: str | None) -> str | None:
    if address is not None:
        return address.replace("{service}", service).rstrip("/")
    section = getattr(deployment.settings, service)
    if section.port == 0:
        return None
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(section.host, section.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{section.port}"


async def certificates(deployment: Deployment) -> list[Finding]:
    """Those that settings name, and those that servers show; none without TLS."""
    settings = deployment.settings
    places = [*kafka_places(settings.kafka), *postgres_places(settings.postgres)]
    found = await asyncio.gather(*(asyncio.to_thread(place.read) for place in places))
    return [_certificate(each) for each in found]


def _certificate(certificate: Certificate) -> Finding:
    subject = f"certificate of {certificate.name}"
    if certificate.not_after is None:
        text = f"cannot be read: {certificate.problem}"
        return Finding(subject, Severity.WRONG, text, "correct the file, or what the server shows")
    left = certificate.not_after - datetime.now(UTC)
    text = f"holds until {certificate.not_after:%Y-%m-%d %H:%M} UTC"
    if left > CERTIFICATE_WARNING:
        return Finding(subject, Severity.OK, text)
    if left <= timedelta():
        text = f"expired at {certificate.not_after:%Y-%m-%d %H:%M} UTC"
    severity = Severity.WRONG if left < CERTIFICATE_WRONG else Severity.WARNING
    return Finding(subject, severity, text, "make a new one, and start again what uses it")


async def sources(deployment: Deployment) -> list[Finding]:
    """Ask each source once, as data_requester does."""
    sections = deployment.settings.data_requester.sources
    return list(await asyncio.gather(*map(_source, sections)))


async def _source(section: SourceSettings) -> Finding:
    subject = f"source {section.name}"
    try:
        async with make_client(section, make_tls_context()) as client:
            answer = await make_source(section).fetch(client)
    except SourceError as error:
        advice = "see whether the address is right and reachable from here"
        return Finding(subject, Severity.WRONG, f"gives no rates: {error}", advice)
    return Finding(subject, Severity.OK, f"gives {counted(len(answer.rates), 'rate')}")
