"""Every fault of the table in `tests/support/faults.py` and docs/operations.md, seeded: its alerts
fire, the panel shows it, /health/ready says why, it mends, the alerts end, and nothing is lost. In
accelerated time, by the repository's rules; where Kafka or Postgres is away, the services' own
limits are shortened too."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx
import pytest
import trustme

from ratestream.streaming.types import OutgoingRecord, ProducerConfig
from tests.support.deployment import Deployment
from tests.support.faults import Sightings
from tests.support.kafka_servers import KafkaCluster
from tests.support.monitoring import Alert, Prometheus, wait_until
from tests.support.processes import ServiceProcess

pytestmark = pytest.mark.timeout(240)

SHORT_LIMITS = {
    "RATESTREAM_KAFKA__REQUEST_TIMEOUT": "10",
    "RATESTREAM_RUNTIME__SESSION_TIMEOUT": "6",
    "RATESTREAM_RUNTIME__TRANSACTION_TIMEOUT": "10",
    "RATESTREAM_RUNTIME__DELIVERY_TIMEOUT": "10",
    "RATESTREAM_RUNTIME__MAX_POLL_INTERVAL": "15",
    "RATESTREAM_RUNTIME__PROGRESS_TIMEOUT": "20",
}
OUTAGE_SECONDS = 25.0
"""Longer than each of these limits, as ten minutes are longer than each of the usual ones."""


def is_slow_burn(alert: Alert) -> bool:
    """Its windows are so long that it goes on for minutes even here."""
    return alert.is_of("ApiErrorBudgetBurning", severity="warning")


@pytest.fixture(autouse=True)
def mended(kafka: KafkaCluster | None, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test all is well again."""
    if kafka is None:
        pytest.skip("Tansu says wrong ends of partitions to tables; .ci/run brings Apache Kafka")
    deployment: Deployment = request.getfixturevalue("deployment")
    watch: Prometheus = request.getfixturevalue("watch")
    yield
    deployment.wait_ready()
    watch.wait_resolved(ignoring=is_slow_burn)
    deployment.wait_nothing_is_lost()


@pytest.fixture
def seen(watch: Prometheus, request: pytest.FixtureRequest) -> Iterator[Sightings]:
    """All that the table of faults promises of this test has to be seen."""
    sightings = Sightings(watch, request.function.__name__)
    yield sightings
    assert sightings.unseen == set()


@pytest.fixture
def short_limits(deployment: Deployment) -> Iterator[None]:
    """Services that give up early, all that wait: they still have to get on, as the same
    processes, when the fault is over."""
    assert all(float(limit) < OUTAGE_SECONDS for limit in SHORT_LIMITS.values())
    services = [each for each in deployment.everything() if each.service != "demo_server"]
    with changed(services, **SHORT_LIMITS) as started:
        yield
        deployment.wait_ready()
        deployment.wait_nothing_is_lost()
        assert [each.process for each in services] == started


@contextmanager
def changed(
    services: list[ServiceProcess], **environment: str
) -> Iterator[list[subprocess.Popen[bytes] | None]]:
    """Started again with these variables, and at the end without them. Yields the processes."""
    before = [dict(each.environment) for each in services]
    restart(services, [kept | environment for kept in before])
    try:
        yield [each.process for each in services]
    finally:
        restart(services, before)


def restart(services: list[ServiceProcess], environments: list[dict[str, str]]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(ServiceProcess.stop, services))
    for service, environment in zip(services, environments, strict=True):
        service.environment = environment
        service.start()
    for service in services:
        service.wait_ready()


@contextmanager
def outage() -> Iterator[None]:
    """Lasts for `OUTAGE_SECONDS` at least."""
    over = time.monotonic() + OUTAGE_SECONDS
    yield
    time.sleep(max(0.0, over - time.monotonic()))


@contextmanager
def stopped(service: ServiceProcess) -> Iterator[None]:
    """It has ended in good order, until the end of the block."""
    assert service.stop() == 0
    try:
        yield
    finally:
        service.start()


@contextmanager
def questions(url: str) -> Iterator[None]:
    """Someone who asks, twenty times a second."""
    ended = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=10) as client:
            while not ended.wait(0.05):
                client.get("/pairs")

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        ended.set()
        asking.join()


@asynccontextmanager
async def locked_tables(url: str) -> AsyncIterator[None]:
    """As someone leaves a transaction open who has changed a table by hand."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE quotes, averages IN EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


def reason(deployment: Deployment, service: str, *parts: str) -> None:
    """Wait until it says that it is not ready, for this."""
    wait_until(
        lambda: any(part in each for each in deployment.reasons(service) for part in parts),
        lambda: f"{service}: {deployment.reasons(service)}",
    )


def test_source_that_stops_answering(
    deployment: Deployment, watch: Prometheus, seen: Sightings
) -> None:
    with stopped(deployment["demo_server"]):
        seen.wait_firing("SourceStale", source="demo", severity="warning")
        alert = seen.wait_firing("SourceStale", severity="critical")
        assert alert.annotations["runbook"] == "docs/runbooks/source-stale.md"
        watch.wait_firing("ServiceDown", service="demo_server")
        assert deployment.reasons("data_requester") == []


def test_service_that_is_started_again_and_again(
    deployment: Deployment, watch: Prometheus, seen: Sightings
) -> None:
    processor = deployment["data_processor"]
    instance = f"{processor.host}:{processor.port}"

    def started() -> list[float]:
        query = f'ratestream_start_timestamp_seconds{{instance="{instance}"}}'
        return [sample.value for sample in watch.query(query)]

    wait_until(lambda: started() != [], lambda: "not scraped yet")
    for _ in range(4):
        before = started()
        processor.kill()
        processor.start()
        wait_until(lambda: started() not in ([], before), processor.output)  # noqa: B023 - called now
    seen.wait_firing("ServiceRestarting", service="data_processor")


LOCKED_SECONDS = 45.0
"""Long enough for rows to be stored late."""


def test_tables_that_somebody_locks(deployment: Deployment, seen: Sightings) -> None:
    async def while_locked() -> None:
        async with locked_tables(deployment.postgres.url):
            await asyncio.to_thread(seen.wait_firing, "LagGrowing", service="db_loader")
            await asyncio.sleep(LOCKED_SECONDS)
            await asyncio.to_thread(reason, deployment, "db_loader", "busy", "postgres")
            await asyncio.to_thread(seen.wait_firing, "NoCommittedProgress", service="db_loader")

    asyncio.run(while_locked())
    seen.wait_firing("LoaderBehind", service="db_loader")


def test_loader_that_is_stopped(deployment: Deployment, seen: Sightings) -> None:
    with stopped(deployment["db_loader"]):
        seen.wait_firing("ServiceDown", service="db_loader", severity="critical")


def test_one_of_several_aggregators_that_hangs(deployment: Deployment, seen: Sightings) -> None:
    aggregator = deployment["data_aggregator"]
    assert aggregator.process is not None
    aggregator.process.send_signal(signal.SIGSTOP)
    try:
        instance = f"{aggregator.host}:{aggregator.port}"
        seen.wait_firing("ServiceDown", instance=instance, severity="warning")
        deployment.wait_nothing_is_lost()  # the others have taken over
    finally:
        aggregator.process.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("short_limits")
def test_kafka_that_goes_away(deployment: Deployment, kafka: KafkaCluster, seen: Sightings) -> None:
    kafka.kill(1)
    try:
        asked = deployment.requests()
        with outage():
            for service in ("data_requester", "data_processor", "data_aggregator", "db_loader"):
                seen.wait_firing("BrokerUnreachable", service=service)
                reason(deployment, service, "broker")
            seen.wait_firing("NoPartitions", service="data_processor")
        assert (
            deployment.requests() <= asked + 1
        )  # which waits to be sent: nothing is asked for more
    finally:
        kafka.start_again()
    deployment.wait_ready()
    with stopped(deployment["demo_server"]):
        deployment.wait_every_answer_was_sent()


def test_offsets_that_somebody_else_moves(deployment: Deployment, seen: Sightings) -> None:
    """As a loader does that belongs to another group, and works on the same database."""

    async def move() -> None:
        connection = await asyncpg.connect(deployment.postgres.url)
        try:
            while True:
                await connection.execute(
                    "UPDATE consumer_offsets SET next_offset = next_offset - 1 "
                    "WHERE next_offset > 0"
                )
                await asyncio.sleep(0.3)
        finally:
            await connection.close()

    async def while_moved() -> None:
        moving = asyncio.create_task(move())
        try:
            await asyncio.to_thread(seen.wait_firing, "SetbacksRepeating", service="db_loader")
        finally:
            moving.cancel()
            await asyncio.wait((moving,))

    asyncio.run(while_moved())


@pytest.mark.usefixtures("short_limits")
def test_postgres_that_goes_away(
    deployment: Deployment, watch: Prometheus, seen: Sightings
) -> None:
    api = deployment["api_gateway"].url
    with questions(api):
        deployment.postgres.stop()
        try:
            with outage():
                for service in ("db_loader", "api_gateway"):
                    seen.wait_firing("PostgresUnreachable", service=service)
                    reason(deployment, service, "postgres")
                budget = {"service": "api_gateway", "severity": "critical"}
                seen.wait_firing("ApiErrorBudgetBurning", **budget)
                answer = httpx.get(f"{api}/pairs")
                assert answer.status_code == 503
                assert "Retry-After" in answer.headers
        finally:
            deployment.postgres.start()
        watch.wait_resolved(ignoring=is_slow_burn)


def test_snapshot_that_cannot_be_read(deployment: Deployment, seen: Sightings) -> None:
    with closing(deployment.broker.producer(ProducerConfig())) as producer:
        producer.send([OutgoingRecord("src-data", b"demo", b"no JSON")])
        producer.flush()
    seen.wait_firing("DeadLetters", service="data_processor")
    assert deployment.reasons("data_processor") == []


@pytest.fixture
def small_disk(deployment: Deployment) -> Iterator[Path]:
    """Where one aggregator keeps its tables: a disk of 64 MB, for as long as the test lasts."""
    aggregator = deployment["data_aggregator"]
    own_user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    namespace = ("unshare", *own_user, "--mount")
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mount namespaces are forbidden here")
    script = 'mount -t tmpfs -o size=64m tmpfs "$0" && exec "$@"'
    aggregator.stop()
    aggregator.wrapper = (*namespace, "sh", "-c", script, str(aggregator.data_dir))
    aggregator.start().wait_ready()
    assert aggregator.process is not None
    try:
        yield Path(f"/proc/{aggregator.process.pid}/root{aggregator.data_dir}")
    finally:
        aggregator.wrapper = ()
        aggregator.stop()
        aggregator.start()


def test_disk_that_fills(
    deployment: Deployment, watch: Prometheus, seen: Sightings, small_disk: Path
) -> None:
    aggregator = deployment["data_aggregator"]
    free = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - free.f_blocks * free.f_frsize // 20))
    instance = f"{aggregator.host}:{aggregator.port}"
    seen.wait_firing("DiskFilling", instance=instance, severity="critical")
    ballast.unlink()
    watch.wait_resolved("DiskFilling")


def certificate_until(moment: datetime, file: Path) -> Path:
    issued = trustme.CA().issue_cert("kafka.test", not_after=moment)
    issued.cert_chain_pems[0].write_to_path(file)
    return file


@pytest.mark.parametrize(("days", "severity"), [(20, "warning"), (2, "critical")])
def test_certificate_about_to_expire(
    deployment: Deployment,
    watch: Prometheus,
    seen: Sightings,
    tmp_path: Path,
    days: int,
    severity: str,
) -> None:
    """And one that is renewed, which a service reads when it starts."""
    processor = deployment["data_processor"]
    soon = certificate_until(datetime.now(UTC) + timedelta(days=days), tmp_path / "soon.pem")
    with changed([processor], RATESTREAM_KAFKA__SSL_CA_LOCATION=str(soon)):
        seen.wait_firing("CertificateExpiring", service="data_processor", severity=severity)
        certificate_until(datetime.now(UTC) + timedelta(days=90), soon)
        restart([processor], [processor.environment])
        watch.wait_resolved("CertificateExpiring")
