"""Passwords, certificates and ACLs: what works, and what an operator reads when it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from ratestream.operations.checks import DOCTOR
from ratestream.streaming import (
    AccessError,
    App,
    AuthorizationError,
    ConfigurationError,
    ConsumerConfig,
    ProcessingGuarantee,
    ProducerConfig,
    Stream,
    TopicPartition,
    TopicSpec,
    Worker,
    WorkerConfig,
)
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from tests.support.brokers import PATIENCE_SECONDS, patiently, read, send, values
from tests.support.certificates import Authority
from tests.support.half_servers import tls_server
from tests.support.postgres import fetch
from tests.support.processes import ServiceProcess
from tests.support.secure_kafka import ADMIN, SecureKafka, password_of, start_secure_kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

USER = "data_aggregator"

# As docs/security.md has them.
READ, WRITE = ["READ"], ["WRITE"]
CHANGELOG = "data-aggregator-windows-changelog"
PROBE = "transaction-probe"
TOPICS = ("src-data", "processed-data", "aggregated-data", CHANGELOG, "dead-letter", PROBE)
NEEDS: dict[str, dict[str, list[str]]] = {
    "topics": {name: ["CREATE", "DESCRIBE"] for name in TOPICS},
    "data_requester": {"src-data": [*READ, *WRITE], "dead-letter": WRITE},
    "data_processor": {
        "src-data": READ,
        "processed-data": WRITE,
        "dead-letter": WRITE,
        PROBE: [*READ, *WRITE],
    },
    "data_aggregator": {
        "processed-data": READ,
        "aggregated-data": WRITE,
        CHANGELOG: [*READ, *WRITE],
        "dead-letter": WRITE,
        PROBE: [*READ, *WRITE],
    },
    "db_loader": {"processed-data": READ, "aggregated-data": READ, "dead-letter": WRITE},
}
IN_TRANSACTIONS = ("data_processor", "data_aggregator")


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with start_secure_kafka(tmp_path_factory.mktemp("secure")) as kafka:
        yield kafka


@pytest.fixture(autouse=True)
def nothing_is_allowed(secure: SecureKafka) -> None:
    secure.forbid(USER)


@pytest.fixture
def admin(secure: SecureKafka) -> Iterator[KafkaBroker]:
    with closing(KafkaBroker(secure.with_password(ADMIN))) as broker:
        yield broker


class Sums:
    """An app that has everything that needs access: input, output, a table, a group, and, when it
    is exactly once, transactions. Close it when its workers have ended."""

    def __init__(
        self, admin: KafkaBroker, guarantee: ProcessingGuarantee = "at_least_once"
    ) -> None:
        self._guarantee = guarantee
        self._brokers = ExitStack()
        self.name = f"sums-{uuid4().hex[:8]}"
        self.input, self.output = f"{self.name}-in", f"{self.name}-out"
        self.changelog = f"{self.name}-total-changelog"
        self.admin = admin
        self.app = self._build()
        admin.create_topics([replace(spec, partitions=1) for spec in self.app.topic_specs()])

    def _build(self) -> App:
        app = App(self.name, processing_guarantee=self._guarantee)
        numbers = app.topic(self.input, value_type=int)
        sums = app.topic(self.output, value_type=int)
        total = app.Table("total", value_type=int, default=int, partitions_of=numbers)

        @app.agent(numbers)
        async def add(stream: Stream[int]) -> None:
            async for number in stream:
                total["all"] += number
                await sums.send(key="all", value=total["all"])

        return app

    @property
    def needs(self) -> dict[tuple[str, str], list[str]]:
        needs = {
            ("topic", self.input): ["READ"],
            ("topic", self.output): ["WRITE"],
            ("topic", self.changelog): ["READ", "WRITE"],
            ("group", self.name): ["READ"],
        }
        if self.app.is_exactly_once:
            needs["topic", PROBE] = ["READ", "WRITE"]
            needs["transactional_id", f"{self.name}-"] = ["WRITE"]
        return needs

    def allow(self, secure: SecureKafka, *, without: tuple[str, str] | None = None) -> None:
        for (kind, name), operations in self.needs.items():
            if (kind, name) != without:
                secure.allow(USER, kind, name, *operations)

    def worker(self, config: KafkaConfig, folder: Path) -> Worker:
        broker = self._brokers.enter_context(closing(KafkaBroker(config)))
        return Worker(self.app, broker, settings_in(folder))

    def close(self) -> None:
        self._brokers.close()

    def put(self, *numbers: int) -> None:
        send(self.admin, *values(self.input, 0, *map(str, numbers)))

    async def wait_for(self, *sums: int) -> None:
        await asyncio.to_thread(self._wait_for, [str(each).encode() for each in sums])

    def _wait_for(self, sums: list[bytes]) -> None:
        with closing(self.admin.consumer(ConsumerConfig())) as consumer:
            consumer.assign({TopicPartition(self.output, 0): 0})
            assert [record.value for record in read(consumer, len(sums))] == sums


@pytest.fixture
def sums(admin: KafkaBroker) -> Iterator[Sums]:
    with closing(Sums(admin)) as sums:
        yield sums


@pytest.fixture
def exact_sums(admin: KafkaBroker) -> Iterator[Sums]:
    with closing(Sums(admin, "exactly_once")) as sums:
        yield sums


def settings_in(folder: Path) -> WorkerConfig:
    return WorkerConfig(
        data_dir=str(folder),
        create_topics=False,
        session_timeout=6.0,
        heartbeat_interval=0.3,
        delivery_timeout=5.0,
        retry_backoff_min=0.1,
        retry_backoff_max=0.5,
    )


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(worker.run())
    try:
        yield task
    finally:
        worker.stop()
        await task


def error_of(worker: Worker) -> str:
    """What ends it, in one line."""
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(asyncio.wait_for(worker.run(), PATIENCE_SECONDS))
    text = str(caught.value)
    assert "\n" not in text
    assert password_of(USER) not in text
    return text


LOGINS: dict[str, Callable[[SecureKafka], KafkaConfig]] = {
    "scram": lambda kafka: kafka.with_password(USER),
    "plain": lambda kafka: kafka.with_password(USER, sasl_mechanism="PLAIN"),
    "certificate": lambda kafka: kafka.with_certificate(USER),
}


@pytest.mark.parametrize("login", LOGINS)
def test_an_app_with_a_table_works(secure, sums, tmp_path, login):
    sums.allow(secure)
    sums.put(1, 2, 3)

    async def scenario() -> None:
        async with working(sums.worker(LOGINS[login](secure), tmp_path)):
            await sums.wait_for(1, 3, 6)

    asyncio.run(scenario())


def test_a_table_is_restored_with_the_rights_of_the_app(secure, sums, tmp_path):
    sums.allow(secure)
    sums.put(1, 2)

    async def scenario() -> None:
        for number, folder in enumerate((tmp_path / "one", tmp_path / "other")):
            async with working(sums.worker(secure.with_password(USER), folder)):
                await sums.wait_for(*[(1, 3), (1, 3, 103)][number])
            sums.put(100)
            sums.app = sums._build()

    asyncio.run(scenario())


def test_transactions_work_with_the_rights_of_the_app(secure, exact_sums, tmp_path):
    exact_sums.allow(secure)
    exact_sums.put(1, 2)

    async def scenario() -> None:
        for number, folder in enumerate((tmp_path / "one", tmp_path / "other")):
            async with working(exact_sums.worker(secure.with_password(USER), folder)):
                await exact_sums.wait_for(*[(1, 3), (1, 3, 103)][number])
            exact_sums.put(100)
            exact_sums.app = exact_sums._build()

    asyncio.run(scenario())


def test_who_may_use_no_transactional_id_ends_and_it_is_named(secure, exact_sums, tmp_path):
    exact_sums.allow(secure, without=("transactional_id", f"{exact_sums.name}-"))
    text = error_of(exact_sums.worker(secure.with_password(USER), tmp_path))
    assert f"a transaction of {exact_sums.name}-" in text
    assert "user 'data_aggregator' is not allowed to: TRANSACTIONAL_ID_AUTHORIZATION_FAILED" in text
    assert "ACL" in text


@pytest.mark.parametrize("may", [[], ["READ"], ["WRITE"]], ids=["nothing", "READ", "WRITE"])
def test_who_may_not_try_transactions_ends_and_the_topic_is_named(
    secure, exact_sums, tmp_path, may
):
    exact_sums.allow(secure, without=("topic", PROBE))
    if may:
        secure.allow(USER, "topic", PROBE, *may)
    text = error_of(exact_sums.worker(secure.with_password(USER), tmp_path))
    assert PROBE in text
    assert "user 'data_aggregator' is not allowed to: TOPIC_AUTHORIZATION_FAILED" in text


def test_who_may_not_use_the_group_in_transactions_ends_and_it_is_named(
    secure, exact_sums, tmp_path
):
    exact_sums.allow(secure, without=("group", exact_sums.name))
    text = error_of(exact_sums.worker(secure.with_password(USER), tmp_path))
    assert f"of group {exact_sums.name}" in text
    assert "user 'data_aggregator' is not allowed to: GROUP_AUTHORIZATION_FAILED" in text


def another_authority(secure: SecureKafka, folder: Path) -> KafkaConfig:
    other = Authority(folder)
    return secure.with_password(USER, ssl_ca_location=str(other.ca))


def another_host(secure: SecureKafka, _: Path) -> KafkaConfig:
    servers = secure.cluster.bootstrap.replace("127.0.0.1", "localhost")
    return secure.with_password(USER, bootstrap_servers=servers)


def a_stranger(secure: SecureKafka, folder: Path) -> KafkaConfig:
    own = Authority(folder).issue(USER)
    return secure.with_certificate(
        USER, ssl_certificate_location=str(own.certificate), ssl_key_location=str(own.key)
    )


REFUSALS: dict[str, tuple[Callable[[SecureKafka, Path], KafkaConfig], list[str]]] = {
    "a wrong password": (
        lambda kafka, _: kafka.with_password(USER, sasl_password="wrong"),
        ["refuses user 'data_aggregator'", "invalid credentials", "sasl_username"],
    ),
    "a wrong password, plain": (
        lambda kafka, _: kafka.with_password(USER, sasl_mechanism="PLAIN", sasl_password="wrong"),
        ["refuses user 'data_aggregator'", "Invalid username or password", "sasl_password"],
    ),
    "a mechanism that is not offered": (
        lambda kafka, _: kafka.with_password(USER, sasl_mechanism="SCRAM-SHA-256"),
        ["SCRAM-SHA-512,PLAIN", "sasl_mechanism"],
    ),
    "an unknown authority": (
        another_authority,
        ["not trusted", "unable to get local issuer certificate", "ssl_ca_location"],
    ),
    "a certificate for another host": (
        another_host,
        ["Hostname mismatch", "not valid for 'localhost'", "bootstrap_servers"],
    ),
    "a client certificate from elsewhere": (
        a_stranger,
        ["refuses the certificate", "ssl_certificate_location", "ssl_key_location"],
    ),
    "no client certificate": (
        lambda kafka, _: kafka.with_certificate(
            USER, ssl_certificate_location=None, ssl_key_location=None
        ),
        ["without a certificate", "ssl_certificate_location"],
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_connection_ends_the_worker_and_says_what_to_check(
    secure, sums, tmp_path, reason, caplog
):
    caplog.set_level(logging.DEBUG)
    config, words = REFUSALS[reason]
    text = error_of(sums.worker(config(secure, tmp_path / "other"), tmp_path))
    assert [word for word in words if word not in text] == [], text
    assert password_of(USER) not in caplog.text


@pytest.mark.parametrize("missing", ["input", "output", "changelog", "group"])
def test_what_no_acl_allows_ends_the_worker_and_is_named(secure, sums, tmp_path, missing):
    kind, name = {
        "input": ("topic", sums.input),
        "output": ("topic", sums.output),
        "changelog": ("topic", sums.changelog),
        "group": ("group", sums.name),
    }[missing]
    sums.allow(secure, without=(kind, name))
    text = error_of(sums.worker(secure.with_password(USER), tmp_path))
    assert f"{kind} {name}" in text
    assert "user 'data_aggregator'" in text
    assert f"{kind.upper()}_AUTHORIZATION_FAILED" in text
    assert "ACL" in text


@pytest.mark.parametrize("guarantee", ["sums", "exact_sums"])
@pytest.mark.parametrize("end", ["input", "output", "changelog"])
def test_a_topic_that_may_only_be_described_ends_the_worker(
    secure, request, tmp_path, end, guarantee
):
    sums: Sums = request.getfixturevalue(guarantee)
    name = getattr(sums, end)
    sums.allow(secure, without=("topic", name))
    secure.allow(USER, "topic", name, "DESCRIBE")
    sums.put(1)
    text = error_of(sums.worker(secure.with_password(USER), tmp_path))
    assert name in text
    assert "user 'data_aggregator' is not allowed to" in text


def test_what_is_forbidden_later_is_waited_for(secure, sums, tmp_path):
    sums.allow(secure)
    sums.put(1)

    async def scenario() -> None:
        worker = sums.worker(secure.with_password(USER), tmp_path)
        async with working(worker) as task:
            await sums.wait_for(1)
            secure.forbid(USER)
            sums.put(2)
            for _ in patiently():
                if any("not allowed to" in reason for reason in worker.readiness()):
                    break
                await asyncio.sleep(0.1)
            assert "user 'data_aggregator'" in str(worker.readiness())
            assert not task.done()
            sums.allow(secure)
            await sums.wait_for(1, 3)

    asyncio.run(scenario())


@pytest.fixture
def writers(admin: KafkaBroker) -> dict[str, App]:
    """Apps without a table, by how they send; each may do anything but that."""
    passing, polling = App(f"passing-{uuid4().hex[:8]}"), App(f"polling-{uuid4().hex[:8]}")
    numbers = passing.topic(f"{passing.id}-in", value_type=int)
    passed = passing.topic(f"{passing.id}-out", value_type=int)
    polled = polling.topic(f"{polling.id}-out", value_type=int)
    polling.leader_topic = polled

    @passing.agent(numbers)
    async def pass_on(stream: Stream[int]) -> None:
        async for number in stream:
            await passed.send(key="all", value=number)

    @polling.timer(0.2, on_leader=True)
    async def poll() -> None:
        await polled.send(key="all", value=1)

    writers = {"an agent": passing, "a timer": polling}
    for app in writers.values():
        admin.create_topics([replace(spec, partitions=1) for spec in app.topic_specs()])
    return writers


def allow(secure: SecureKafka, app: App, *operations: str) -> None:
    for topic in app.topics:
        secure.allow(USER, "topic", topic, *operations)
    secure.allow(USER, "group", app.id, "READ")


@pytest.mark.parametrize("writer", ["an agent", "a timer"])
def test_who_may_never_write_ends(secure, admin, writers, tmp_path, writer):
    app = writers[writer]
    allow(secure, app, "READ")
    send(admin, *[each for topic in app.topics for each in values(topic, 0, "1")])
    with closing(KafkaBroker(secure.with_password(USER))) as broker:
        text = error_of(Worker(app, broker, settings_in(tmp_path)))
    assert "user 'data_aggregator' is not allowed to" in text


@pytest.mark.parametrize("writer", ["an agent", "a timer"])
def test_who_may_not_write_any_more_waits(secure, admin, writers, tmp_path, writer):
    app = writers[writer]
    allow(secure, app, "READ", "WRITE")
    out = f"{app.id}-out"

    def write() -> None:
        if app.agents:
            send(admin, *values(app.agents[0].topic.name, 0, "1"))

    def count() -> float:
        return app.registry.get_sample_value("ratestream_records_out_total", {"topic": out}) or 0.0

    async def scenario(broker: KafkaBroker) -> None:
        worker = Worker(app, broker, settings_in(tmp_path))
        async with working(worker) as task:
            await asyncio.to_thread(write)
            await until(lambda: count() > 0)
            secure.forbid(USER)
            allow(secure, app, "READ")
            await asyncio.to_thread(write)
            await until(lambda: "is not allowed to" in str(worker.readiness()))
            await asyncio.sleep(2.0)  # some more refusals
            assert not task.done()
            before = count()
            allow(secure, app, "WRITE")
            await until(lambda: count() > before and worker.readiness() == [])

    with closing(KafkaBroker(secure.with_password(USER))) as broker:
        asyncio.run(scenario(broker))


def test_a_producer_that_may_not_write_is_closed_in_silence(secure, sums):
    secure.allow(USER, "topic", sums.output, "DESCRIBE")
    with closing(KafkaBroker(secure.with_password(USER))) as broker:
        producer = broker.producer(ProducerConfig())
        time.sleep(3.0)  # librdkafka asks by itself for what it may not have
        producer.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in patiently():
        if condition():
            return
        await asyncio.sleep(0.1)
    pytest.fail("it never came")


def test_one_server_among_others_that_is_not_trusted_ends_nothing(secure, tmp_path):
    stranger = Authority(tmp_path / "other").issue("kafka", "127.0.0.1")
    with tls_server(stranger) as address:
        for servers in ("{0},{1}", "{1},{0}", "{0},{1}", "{1},{0}"):  # librdkafka begins anywhere
            config = secure.with_password(ADMIN)
            both = servers.format(address, config.bootstrap_servers)
            with closing(KafkaBroker(replace(config, bootstrap_servers=both))) as broker:
                assert broker.cluster_id()


def test_a_new_password_is_told_as_a_refusal_and_not_as_an_outage(secure, caplog):
    broker = KafkaBroker(secure.with_password("db_loader"))
    consumer = broker.consumer(ConsumerConfig())
    broker.cluster_id()
    secure.set_password("db_loader", "another")
    secure.cluster.kill(1)
    for _ in patiently():
        consumer.poll(1, timeout=0.1)
        if broker.trouble():
            break
    assert "refuses" not in (broker.trouble() or "")
    secure.cluster.start_again()
    for _ in patiently():
        consumer.poll(1, timeout=0.1)
        if "refuses user 'db_loader'" in (broker.trouble() or ""):
            break
    assert "sasl_password" in (broker.trouble() or "")
    assert not broker.is_reachable()
    with pytest.raises(AccessError, match="refuses user 'db_loader'"):
        broker.describe_topics(["quotes"])
    [told] = [record for record in caplog.records if "refuses" in record.getMessage()]
    assert told.levelno == logging.WARNING
    secure.set_password("db_loader", password_of("db_loader"))
    for _ in patiently():
        consumer.poll(1, timeout=0.1)
        if broker.is_reachable():
            break
    assert broker.trouble() is None
    consumer.close()
    broker.close()


@pytest.fixture
def services(
    secure: SecureKafka, database_url: str, tmp_path: Path
) -> Iterator[dict[str, ServiceProcess]]:
    """The services that talk to Kafka, and a source; each logs in as itself."""
    demo = ServiceProcess("demo_server", secure.cluster.bootstrap, tmp_path / "demo_server")
    source = {"kind": "demo", "url": demo.url, "interval_seconds": 0.5}
    started = {"demo_server": demo.start()}
    try:
        for user in NEEDS.keys() - {"topics"}:
            environment = {
                "RATESTREAM_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
                "RATESTREAM_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
                "RATESTREAM_KAFKA__SASL_USERNAME": user,
                "RATESTREAM_KAFKA__SASL_PASSWORD": password_of(user),
                "RATESTREAM_KAFKA__SSL_CA_LOCATION": str(secure.authority.ca),
                "RATESTREAM_RUNTIME__CREATE_TOPICS": "false",
                "RATESTREAM_POSTGRES__URL": database_url,
                "RATESTREAM_DATA_REQUESTER__SOURCES": json.dumps([source]),
            }
            started[user] = ServiceProcess(
                user, secure.cluster.bootstrap, tmp_path / user, environment
            )
        yield started
    finally:
        for service in started.values():
            if service.process is not None:
                service.kill()


def test_the_services_work_with_the_acls_that_are_documented(secure, admin, services, database_url):
    for user, topics in NEEDS.items():
        secure.forbid(user)
        for topic, operations in topics.items():
            secure.allow(user, "topic", topic, *dict.fromkeys(operations))
        if user != "topics":
            secure.allow(user, "group", user, "READ")
        if user in IN_TRANSACTIONS:
            secure.allow(user, "transactional_id", f"{user}-", "WRITE")
    with closing(KafkaBroker(secure.with_password("topics"))) as broker:
        broker.create_topics([TopicSpec(name, 2) for name in TOPICS[:3]])
        broker.create_topics([TopicSpec(CHANGELOG, 2, cleanup_policy="compact", retention_ms=-1)])
        broker.create_topics([TopicSpec("dead-letter", 2), TopicSpec(PROBE, 1)])
        assert broker.describe_topics(TOPICS).keys() == set(TOPICS)
        with pytest.raises(AuthorizationError, match="the configs of topic"):
            broker.topic_configs(TOPICS)
        for topic in TOPICS:
            secure.allow("topics", "topic", topic, "DESCRIBE_CONFIGS")
        assert broker.topic_configs(TOPICS).keys() == set(TOPICS)
        with pytest.raises(AuthorizationError):
            broker.require_transactions(PROBE, DOCTOR, DOCTOR)
        secure.allow("topics", "topic", PROBE, "READ", "WRITE")
        secure.allow("topics", "transactional_id", DOCTOR, "WRITE")
        secure.allow("topics", "group", DOCTOR, "READ")
        broker.require_transactions(PROBE, DOCTOR, DOCTOR)
    send(admin, *values("src-data", 0, "not a snapshot"))
    for service in services.values():
        if service.process is None:
            service.start()
    for service in services.values():
        service.wait_ready()
    for _ in patiently():
        if asyncio.run(fetch(database_url, "SELECT FROM averages")):
            break
    assert asyncio.run(fetch(database_url, "SELECT FROM averages"))
    with closing(admin.consumer(ConsumerConfig())) as consumer:
        consumer.assign({TopicPartition("dead-letter", number): 0 for number in range(2)})
        assert [record.value for record in read(consumer, 1)] == [b"not a snapshot"]
