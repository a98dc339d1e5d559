"""What `ratestream doctor` looks at, beside topics, schema and lag, which have their own."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx

from ratestream.certificates import Certificate, kafka_places, postgres_places
from ratestream.operations.database import CheckDatabase
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity, counted
from ratestream.settings import SERVICES
from ratestream.sources.base import SourceError
from ratestream.sources.config import SourceSettings
from ratestream.sources.factory import make_source
from ratestream.sources.http import make_client, make_tls_context
from ratestream.storage.database import check
from ratestream.storage.inspection import inspect
from ratestream.streaming import ConsumerConfig, TopicPartition

OLDEST_POSTGRES = 14
SKEW_WARNING = timedelta(seconds=1)
SKEW_WRONG = timedelta(seconds=30)
FREE_WARNING = 0.15
FREE_WRONG = 0.05
"""Shares of the disk that should be, and have to be, free."""

CERTIFICATE_WARNING = timedelta(days=30)
CERTIFICATE_WRONG = timedelta(days=3)
HEALTH_SECONDS = 5.0
_HEALTH_BYTES = 64 * 1024
_NEWEST_SECONDS = 2.0
_SRC_DATA = "src-data"


def kafka(deployment: Deployment) -> list[Finding]:
    """Raises `BrokerError`."""
    cluster = deployment.broker.cluster_id()
    deployment.broker.describe_topics([_SRC_DATA])  # a client remembers its cluster; this it asks
    return [Finding("kafka", Severity.OK, f"cluster {cluster} answers")]


async def postgres(deployment: Deployment) -> list[Finding]:
    """Server, schema, grants, and whether the rows are those of this Kafka cluster. Raises
    `StorageError`."""
    dsn = deployment.settings.postgres.dsn()
    server = await inspect(dsn)
    findings = [Finding("postgres", Severity.OK, f"version {server.version} answers")]
    if server.version_number < OLDEST_POSTGRES * 10_000:
        findings = [
            Finding(
                "postgres",
                Severity.WRONG,
                f"has version {server.version}",
                f"use one that is supported: {OLDEST_POSTGRES} or newer",
            )
        ]
    schema = await CheckDatabase().run(deployment)
    return findings + [each for each in schema if each.subject != "cluster"]


async def cluster(deployment: Deployment) -> list[Finding]:
    """Whether the rows in Postgres are those of this Kafka cluster. Raises `StorageError` and
    `BrokerError`."""
    state = await check(deployment.settings.postgres.dsn())
    ours = await asyncio.to_thread(deployment.broker.cluster_id)
    if state.cluster_id is None:
        return []
    if state.cluster_id == ours:
        return [Finding("cluster", Severity.OK, "the rows in Postgres are of this Kafka cluster")]
    return [
        Finding(
            "cluster",
            Severity.WRONG,
            f"the rows in Postgres are of Kafka cluster {state.cluster_id}, and this is {ours}",
            "connect to that cluster, or give postgres.url an empty database",
        )
    ]


async def clocks(deployment: Deployment) -> list[Finding]:
    """Ours against Postgres', and against that of whoever put the newest snapshot on its topic.
    Raises `StorageError` and `BrokerError`."""
    server = await inspect(deployment.settings.postgres.dsn())
    ahead = server.clock_ahead
    findings = [_skew("the clock of Postgres", ahead, server.uncertainty)]
    newest = await asyncio.to_thread(_newest_timestamp, deployment)
    if newest is not None:
        # Only what is from the future tells of clocks: what is old may just be old.
        ahead = datetime.fromtimestamp(newest / 1000, UTC) - datetime.now(UTC)
        findings.append(_skew("the clock of data_requester", max(ahead, timedelta()), timedelta()))
    return findings


def _skew(whose: str, ahead: timedelta, uncertainty: timedelta) -> Finding:
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
    with closing(deployment.broker.consumer(ConsumerConfig(client_id="ratestream-doctor"))) as last:
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
    text = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free for {folder}"
    share = usage.free / usage.total
    if share > FREE_WARNING:
        return [Finding("disk", Severity.OK, text)]
    severity = Severity.WRONG if share < FREE_WRONG else Severity.WARNING
    advice = "make room, add disk, or lower topics.retention_hours and postgres.retention_days"
    return [Finding("disk", severity, text, advice)]


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
            answer = await client.get(f"{url}/health/ready")
            reasons = [str(each) for each in answer.json()["reasons"]]
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        is_known = address is not None or deployment.runs_services
        severity = Severity.WRONG if is_known else Severity.WARNING
        advice = f"start it with ratestream run {service}, or say with --address where it runs"
        return Finding(service, severity, f"does not answer at {url} ({reason})", advice)
    except (ValueError, LookupError, TypeError):
        text = f"something else answers at {url}, with status {answer.status_code}"
        return Finding(service, Severity.WRONG, text, "say with --address where the service is")
    if answer.status_code == httpx.codes.OK:
        return Finding(service, Severity.OK, f"is ready at {url}")
    text = f"at {url} is not ready: {'; '.join(reasons)}"
    return Finding(service, Severity.WRONG, text, "the reasons say what it waits for; see its log")


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
