"""The commands for operators, as processes, against real servers with real faults."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported in fact
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from ratestream.events import Snapshot
from ratestream.operations.checks import disk, room, skew
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Severity
from ratestream.settings import SERVICES, Settings
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    TopicPartition,
    TopicSpec,
)
from tests.support.brokers import patiently, send
from tests.support.half_servers import serving
from tests.support.kafka_servers import free_port, start_kafka
from tests.support.postgres import execute, fetch
from tests.support.processes import ServiceProcess

COMMAND = [str(Path(sys.executable).with_name("ratestream"))]
NOWHERE = {
    "RATESTREAM_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "RATESTREAM_KAFKA__REQUEST_TIMEOUT": "1",
    "RATESTREAM_POSTGRES__URL": "postgresql://me:hunter2@127.0.0.1:1/rates",
}
RESET_SECONDS = 20.0


class Command:
    """Runs `ratestream …` with these variables, in an empty folder."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._folder = folder
        self._variables = variables

    def having(self, **variables: str) -> Command:
        """With these variables as well."""
        return Command(self._folder, **{**self._variables, **variables})

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if "RATESTREAM" not in name}
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=self._folder,
            env={**kept, **self._variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    def lines(self, *arguments: str, code: int = 0) -> list[str]:
        """What it prints, when it ends with this exit code and no word on stderr."""
        done = self(*arguments)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        return [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    """A Kafka of our own: the names of topics are fixed."""
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with start_kafka() as cluster:
        yield cluster.bootstrap


@pytest.fixture
def kafka(bootstrap: str) -> Iterator[str]:
    """Without any topic."""
    yield bootstrap
    with AdminClient({"bootstrap.servers": bootstrap}) as admin:
        if names := [name for name in admin.list_topics().topics if not name.startswith("__")]:
            for future in admin.delete_topics(names).values():
                future.result()
        deadline = time.monotonic() + RESET_SECONDS
        while not set(names).isdisjoint(admin.list_topics().topics):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.fixture
def ratestream(kafka: str, database_url: str, tmp_path: Path) -> Command:
    return Command(
        tmp_path,
        RATESTREAM_KAFKA__BOOTSTRAP_SERVERS=kafka,
        RATESTREAM_POSTGRES__URL=database_url,
        RATESTREAM_TOPICS__PARTITIONS="2",
        **{f"RATESTREAM_{name.upper()}__PORT": str(free_port()) for name in SERVICES},
    )


@pytest.fixture
def nowhere(tmp_path: Path) -> Command:
    return Command(tmp_path, **NOWHERE)


# topics


@pytest.mark.kafka
def test_topics_are_made_and_found_right(ratestream: Command, kafka: str) -> None:
    missing = ratestream.lines("topics", "check", code=1)
    assert missing[0] == f"at Kafka {kafka}"
    assert "wrong topic src-data: is missing: run ratestream topics create" in missing
    assert missing[-1] == "6 wrong"
    made = ratestream.lines("topics", "create")
    assert {"src-data 2 made", "transaction-probe 1 made"} <= set(made)
    assert "src-data 2 exists" in ratestream.lines("topics", "create")
    assert ratestream.lines("topics", "check")[-1] == "6 ok"
    changed = ratestream.having(RATESTREAM_TOPICS__RETENTION_HOURS="5").lines("topics", "check")
    assert changed[-1] == "2 ok, 4 warning"


@pytest.mark.kafka
def test_a_changelog_of_the_wrong_size_is_found(ratestream: Command, kafka: str) -> None:
    changelog = "data-aggregator-windows-changelog"
    with closing(KafkaBroker(KafkaConfig(kafka))) as broker:
        broker.create_topics([TopicSpec(changelog, 3, cleanup_policy="compact", retention_ms=-1)])
    ratestream.lines("topics", "create")
    lines = ratestream.lines("topics", "check", code=1)
    assert any(
        each.startswith(f"wrong topic {changelog}: has 3 partitions and processed-data")
        for each in lines
    )


@pytest.mark.kafka
def test_a_changelog_that_forgets_deletions_early_is_found(ratestream: Command, kafka: str) -> None:
    ratestream.lines("topics", "create")
    changelog = "data-aggregator-windows-changelog"
    set_config(kafka, changelog, "delete.retention.ms", "3600000")
    told = f"wrong topic {changelog}: keeps deletions for 1 h: "
    assert any(each.startswith(told) for each in ratestream.lines("topics", "check", code=1))


def set_config(bootstrap: str, topic: str, name: str, value: str) -> None:
    """As `kafka-configs --alter --add-config` does."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    changed = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])
    with AdminClient({"bootstrap.servers": bootstrap}) as admin:
        admin.incremental_alter_configs([changed])[changed].result()


def test_a_kafka_that_does_not_answer_is_one_line(nowhere: Command) -> None:
    done = nowhere("topics", "create")
    assert (done.returncode, done.stdout) == (1, "at Kafka 127.0.0.1:1\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("ratestream: Kafka at 127.0.0.1:1")
    assert line.endswith("; start Kafka, or correct kafka.bootstrap_servers")


def test_a_server_that_is_no_kafka_is_told(nowhere: Command) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(answer) as address:
        done = nowhere.having(RATESTREAM_KAFKA__BOOTSTRAP_SERVERS=address)("topics", "check")
    assert "what answers does not speak as Kafka does; check bootstrap_servers" in done.stderr


def test_a_file_for_tls_that_is_not_there_is_told(nowhere: Command) -> None:
    secure = nowhere.having(
        RATESTREAM_KAFKA__SECURITY_PROTOCOL="SSL",
        RATESTREAM_KAFKA__SSL_CA_LOCATION="/no/such.pem",
    )
    told = "kafka.ssl_ca_location: /no/such.pem cannot be read: No such file or directory"
    done = secure("topics", "check")
    assert (done.returncode, done.stderr) == (1, f"ratestream: {told}\n")
    assert f"wrong kafka: {told}" in secure.lines("doctor", code=1)


# db


def test_the_schema_is_upgraded_and_checked(nowhere: Command, empty_database: str) -> None:
    ratestream = nowhere.having(RATESTREAM_POSTGRES__URL=empty_database)
    before = ratestream.lines("db", "check", code=1)
    assert before[0].startswith("at Postgres /tmp/")
    assert before[1].startswith("wrong schema: is not there yet, this ratestream needs ")
    assert before[1].endswith(": run ratestream db upgrade")
    assert ratestream.lines("db", "upgrade")[1].endswith(" now; it had none")
    assert ratestream.lines("db", "upgrade")[1].endswith(" already")
    assert ratestream.lines("db", "check")[1].endswith(", the newest")


def test_missing_grants_are_found_and_given(nowhere: Command, database_url: str) -> None:
    asyncio.run(execute(database_url, "CREATE ROLE operations_gateway"))
    ratestream = nowhere.having(
        RATESTREAM_POSTGRES__URL=database_url,
        RATESTREAM_POSTGRES__GATEWAY_ROLE="operations_gateway",
    )
    lines = ratestream.lines("db", "check", code=1)
    assert any(each.startswith("wrong grants: ") and "SELECT" in each for each in lines)
    granted = ratestream.lines("db", "upgrade")
    assert "operations_gateway may do what they need, and nothing else" in granted
    lines = ratestream.lines("db", "check")
    assert "ok grants: operations_gateway may do what they need, and nothing else" in lines
    asyncio.run(execute(database_url, "GRANT pg_write_all_data TO operations_gateway"))
    (told,) = ratestream.lines("db", "upgrade")[2:]
    assert told.startswith("postgres.gateway_role: operations_gateway also has INSERT on ")
    (warned,) = (each for each in ratestream.lines("db", "check") if "grants" in each)
    assert warned.startswith("warning grants: postgres.gateway_role: operations_gateway also has")


def test_a_schema_of_a_newer_version_is_told(nowhere: Command, database_url: str) -> None:
    asyncio.run(execute(database_url, "UPDATE alembic_version SET version_num = '9999'"))
    ratestream = nowhere.having(RATESTREAM_POSTGRES__URL=database_url)
    lines = ratestream.lines("db", "check", code=1)
    assert lines[1].startswith("wrong schema: the database's schema has version 9999 ")


def test_a_postgres_that_does_not_answer_is_one_line(nowhere: Command) -> None:
    done = nowhere("db", "check")
    assert (done.returncode, done.stdout) == (1, "at Postgres 127.0.0.1:1/rates\n")
    (line,) = done.stderr.splitlines()
    assert line == (
        "ratestream: no connection to Postgres: 127.0.0.1:1: Connection refused; start Postgres, "
        "or correct postgres.url"
    )


# dead letters


def letters(bootstrap: str, count: int) -> None:
    """In one partition, some in transactions, one of which is given up: offsets have gaps."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": "letters"})
    producer.init_transactions()
    for number in range(count):
        if number % 400 == 0:
            producer.begin_transaction()
            producer.produce("dead-letter", b"never", key=b"demo", partition=0)
            producer.flush()
            producer.abort_transaction()
            producer.begin_transaction()
        headers: list[tuple[str, str | bytes | None]] = [
            ("topic", b"src-data"),
            ("partition", b"0"),
            ("offset", str(number).encode()),
            ("service", b"data_processor"),
            ("reason", b"rare" if number % 1000 == 0 else b"frequent \x1b[31m"),
        ]
        value = json.dumps({"number": number})
        producer.produce("dead-letter", value, key=b"demo", partition=0, headers=headers)
        if number % 400 == 399:
            producer.commit_transaction()
    if count % 400:
        producer.commit_transaction()


@pytest.mark.kafka
def test_dead_letters_are_listed_shown_and_replayed(ratestream: Command, kafka: str) -> None:
    ratestream.lines("topics", "create")
    assert ratestream.lines("dead-letter", "list")[1:] == ["no letters"]
    letters(kafka, 2100)
    listed = json.loads(ratestream("dead-letter", "list", "--format", "json").stdout)["result"]
    assert len(listed["letters"]) == 20
    rare = ratestream.lines("dead-letter", "list", "--reason", "RARE")
    assert rare[1] == "id time topic service reason key"
    assert [each.split()[3:] for each in rare[2:]] == [
        ["src-data", "data_processor", "rare", "demo"]
    ] * 3
    which = rare[2].split()[0]
    shown = ratestream.lines("dead-letter", "show", which)
    assert shown[-3:] == ["{", '"number": 2000', "}"]
    assert ratestream.lines("dead-letter", "replay", which, "--dry-run")[1:] == [
        f"{which} would be sent again to src-data"
    ]
    assert ratestream.lines("dead-letter", "replay", which)[1:] == [
        f"{which} sent again to src-data"
    ]
    assert ratestream.lines("dead-letter", "replay", which, code=1)[1:] == [
        f"{which} refused: it was replayed before; --again does it once more"
    ]
    all_others = ("dead-letter", "replay", "--all", "--reason", "rare")
    unsure = ratestream(*all_others)
    assert (unsure.returncode, "2 letters would be sent again" in unsure.stderr) == (2, True)
    assert len(ratestream.lines(*all_others, "--yes")) == 3
    assert ratestream.lines("dead-letter", "list", "--reason", "rare")[1:] == ["no letters"]
    assert len(ratestream.lines("dead-letter", "list", "--reason", "rare", "--replayed")) == 5


@pytest.mark.kafka
def test_a_letter_cannot_steer_the_terminal(ratestream: Command, kafka: str) -> None:
    ratestream.lines("topics", "create")
    letters(kafka, 2)
    assert "frequent \\x1b[31m" in ratestream("dead-letter", "list").stdout
    assert "\x1b" not in ratestream("dead-letter", "show", "0:4").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("list", "--since", "yesterday"),
        ("list", "--since", "999999d"),
        ("list", "--since", "٣d"),
        ("list", "--limit", "0"),
        ("replay",),
        ("replay", "1:1", "--all"),
        ("replay", "1:1", "--topic", "src-data"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: tuple[str, ...], nowhere: Command) -> None:
    assert nowhere("dead-letter", *arguments).returncode == 2


# doctor


def test_doctor_says_what_is_away(nowhere: Command) -> None:
    lines = nowhere.lines("doctor", code=1)
    assert lines[0] == "at Kafka 127.0.0.1:1 and Postgres 127.0.0.1:1/rates"
    for start in (
        *("wrong kafka: Kafka at 127.0.0.1:1", "wrong postgres: no connection to Postgres: "),
        *("skipped topics: see kafka", "skipped lag: see kafka"),
        *("skipped clocks: see kafka and postgres", "ok disk: "),
    ):
        assert any(each.startswith(start) for each in lines), start
    assert not any("hunter2" in each for each in lines)


@pytest.mark.kafka
def test_doctor_finds_each_fault(ratestream: Command, kafka: str, database_url: str) -> None:
    assert "wrong topic src-data: is missing: run ratestream topics create" in ratestream.lines(
        "doctor", code=1
    )
    ratestream.lines("topics", "create")
    healthy = ratestream.lines("doctor")
    assert "ok data_processor on src-data: has done everything there is" in healthy
    assert any(each.startswith("ok transactions: one was aborted and one ") for each in healthy)
    assert any(each.startswith("warning db_loader: does not answer at ") for each in healthy)
    assert healthy[-1].endswith(" ok, 6 warning")

    with closing(KafkaBroker(KafkaConfig(kafka))) as broker:
        send(broker, OutgoingRecord("src-data", b"demo", b"{}"))
    lagging = ratestream.lines("doctor", code=1)
    behind = "data_processor on src-data: is 1 record behind and has never committed anything"
    assert any(each.startswith(f"wrong {behind}") for each in lagging)

    asyncio.run(execute(database_url, "INSERT INTO origin_cluster (cluster_id) VALUES ('another')"))
    mixed = ratestream.lines("doctor", code=1)
    of_another = "wrong cluster: the rows in Postgres are of Kafka cluster another, and this is "
    assert any(each.startswith(of_another) for each in mixed)


def test_doctor_finds_a_broker_that_shows_what_was_aborted(
    nowhere: Command, tansu_address: str
) -> None:
    there = nowhere.having(RATESTREAM_KAFKA__BOOTSTRAP_SERVERS=tansu_address)
    there.lines("topics", "create")
    (line,) = (each for each in there.lines("doctor", code=1) if "transactions: " in each)
    assert line.startswith("wrong transactions: ")
    assert line.endswith("set processing_guarantee to at_least_once, or use another broker")


@pytest.mark.kafka
def test_doctor_does_not_count_the_ends_of_transactions(
    ratestream: Command, kafka: str, database_url: str, tmp_path: Path
) -> None:
    """Each takes an offset, at the end of all that exactly-once services write."""
    ratestream.lines("topics", "create")
    names = ("data_processor", "data_aggregator", "db_loader")
    environment = {"RATESTREAM_POSTGRES__URL": database_url}
    services = [ServiceProcess(name, kafka, tmp_path / name, environment) for name in names]
    now = datetime.now(UTC)
    snapshot = Snapshot("demo", now, now, {"EURUSD": msgspec.Raw(b'"1.25"')})
    try:
        for service in services:
            service.start()
        with closing(KafkaBroker(KafkaConfig(kafka))) as broker:
            send(broker, OutgoingRecord("src-data", b"demo", msgspec.json.encode(snapshot)))
            for _ in patiently():
                if asyncio.run(fetch(database_url, "SELECT FROM averages")):
                    break
            ends = read_ends(broker, "processed-data")
            for _ in patiently():
                lines = ratestream("doctor").stdout.splitlines()
                at_rest = [each for each in lines if "has done everything there is" in each]
                if len(at_rest) == 4:
                    break
            assert len(at_rest) == 4, lines
            assert sorted(ends) == [0, 2]  # a quote, and the end of its transaction
    finally:
        for service in services:
            service.kill()


def read_ends(broker: KafkaBroker, topic: str) -> list[int]:
    """The end of each partition."""
    partitions = broker.describe_topics([topic])[topic].partitions
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        return [consumer.watermarks(TopicPartition(topic, n)).high for n in range(partitions)]


@pytest.mark.kafka
def test_doctor_finds_a_schema_that_is_not_there(ratestream: Command, database_url: str) -> None:
    asyncio.run(execute(database_url, "DROP TABLE alembic_version"))
    lines = ratestream.lines("doctor", code=1)
    assert any(each.startswith("wrong schema: is not there yet") for each in lines)


@pytest.mark.kafka
def test_doctor_finds_a_clock_that_is_ahead(ratestream: Command, kafka: str) -> None:
    ratestream.lines("topics", "create")
    ahead = int((time.time() + 600) * 1000)
    with closing(KafkaBroker(KafkaConfig(kafka))) as broker:
        send(broker, OutgoingRecord("src-data", b"demo", b"{}", timestamp=ahead))
    lines = ratestream.lines("doctor", code=1)
    (found,) = (each for each in lines if "clock of data_requester" in each)
    assert found.startswith("wrong the clock of data_requester: is ")
    assert " s ahead of ours" in found


def test_doctor_tells_a_service_that_is_not_ready(nowhere: Command, tmp_path: Path) -> None:
    service = ServiceProcess("data_processor", "127.0.0.1:1", tmp_path / "service").start()
    try:
        doctor = nowhere.having(RATESTREAM_DATA_PROCESSOR__PORT=str(service.port))
        deadline = time.monotonic() + RESET_SECONDS
        while "data_processor: at http" not in (output := doctor("doctor").stdout):
            assert time.monotonic() < deadline, output
    finally:
        service.kill()
    (line,) = (each for each in output.splitlines() if "data_processor: at http" in each)
    assert line.startswith("wrong ")
    assert "is not ready: " in line


def test_doctor_takes_the_address_of_services(nowhere: Command) -> None:
    lines = nowhere.lines("doctor", "--address", "http://127.0.0.1:1/{service}", code=1)
    (line,) = (each for each in lines if each.startswith("wrong db_loader: "))
    assert "does not answer at http://127.0.0.1:1/db_loader" in line


@pytest.mark.parametrize("address", ["foo", "http://127.0.0.1:1", "ftp://{service}", "http://"])
def test_doctor_refuses_what_is_no_address(address: str, nowhere: Command) -> None:
    done = nowhere("doctor", "--address", address)
    assert (done.returncode, "is no address of every service" in done.stderr) == (2, True)


def test_doctor_knows_a_service_from_another(nowhere: Command, tmp_path: Path) -> None:
    service = ServiceProcess("demo_server", "127.0.0.1:1", tmp_path / "service").start()
    try:
        doctor = nowhere.having(RATESTREAM_DATA_PROCESSOR__PORT=str(service.port))
        deadline = time.monotonic() + RESET_SECONDS
        told = f"data_processor: demo_server answers at http://127.0.0.1:{service.port}: say with "
        while told not in (output := doctor("doctor").stdout):
            assert time.monotonic() < deadline, output
    finally:
        service.kill()


@pytest.mark.parametrize(
    ("free", "severity"),
    [
        *((100, Severity.OK), (16, Severity.OK), (15, Severity.WARNING)),
        *((5, Severity.WARNING), (4, Severity.WRONG), (0, Severity.WRONG)),
    ],
)
def test_a_disk_needs_room(free: int, severity: Severity) -> None:
    assert room(Path("here"), free, 100).severity is severity


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "severity"),
    [
        *((1.0, 0.0, Severity.OK), (1.1, 0.0, Severity.WARNING), (-1.1, 0.0, Severity.WARNING)),
        *((1.1, 0.1, Severity.OK), (-1.1, 0.1, Severity.OK), (0.1, 5.0, Severity.OK)),
        *((30.0, 0.0, Severity.WARNING), (30.1, 0.0, Severity.WRONG)),
        (30.1, 0.2, Severity.WARNING),
    ],
)
def test_clocks_differ_by_more_than_can_be_measured(
    ahead: float, uncertainty: float, severity: Severity
) -> None:
    found = skew("a clock", timedelta(seconds=ahead), timedelta(seconds=uncertainty))
    assert found.severity is severity


def test_doctor_asks_sources_when_told(nowhere: Command) -> None:
    source = "[{kind: demo, url: 'http://127.0.0.1:1', max_retries: 0}]"
    asking = nowhere.having(RATESTREAM_DATA_REQUESTER__SOURCES=source)
    lines = asking.lines("doctor", "--sources", code=1)
    assert any(each.startswith("wrong source demo: gives no rates: ") for each in lines)


def test_doctor_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with closing(LocalBroker(None)) as broker:
        here = Deployment(Settings(data_dir=Path("/proc/none/such")), lambda: broker, {})
        (finding,) = disk(here)
        assert finding.severity is Severity.WRONG
        assert finding.text.startswith("/proc/none/such cannot be written: ")
        new = tmp_path / "not" / "yet"
        (finding,) = disk(replace(here, settings=Settings(data_dir=new)))
        assert finding.text.endswith(f" GiB are free for {new}")


def test_results_can_be_read_by_machines(nowhere: Command) -> None:
    answer = json.loads(nowhere("doctor", "--format", "json").stdout)
    assert answer["where"] == "at Kafka 127.0.0.1:1 and Postgres 127.0.0.1:1/rates"
    assert {"subject", "severity", "text", "advice"} == set(answer["result"][0])


def test_an_unclaimed_database_is_no_fault(nowhere: Command, database_url: str) -> None:
    assert asyncio.run(fetch(database_url, "SELECT * FROM origin_cluster")) == []
    lines = nowhere.having(RATESTREAM_POSTGRES__URL=database_url).lines("db", "check")
    assert lines[-2:] == ["ok cluster: there are no rows of any Kafka cluster yet", "2 ok"]


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("topics", "create"), "RATESTREAM_KAFKA__BOOTSTRAP_SERVERS"),
        (("db", "upgrade"), "RATESTREAM_POSTGRES__URL"),
        (("dead-letter", "replay", "0:0"), "RATESTREAM_KAFKA__BOOTSTRAP_SERVERS"),
    ],
)
def test_nothing_is_changed_on_servers_that_nobody_named(
    arguments: tuple[str, ...], variables: str, tmp_path: Path
) -> None:
    done = Command(tmp_path)(*arguments)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert line.startswith(f"ratestream: no ratestream up runs in {tmp_path}/.ratestream, and ")
    assert line.endswith(f"set {variables}")


def test_what_only_looks_says_that_the_servers_are_the_defaults(tmp_path: Path) -> None:
    done = Command(tmp_path, RATESTREAM_KAFKA__REQUEST_TIMEOUT="0.5")("topics", "check")
    assert done.stdout.splitlines()[0] == (
        f"no ratestream up runs in {tmp_path}/.ratestream; at Kafka 127.0.0.1:9092 (default)"
    )


def test_a_url_without_a_host_is_shown_so(nowhere: Command) -> None:
    done = nowhere.having(RATESTREAM_POSTGRES__URL="postgresql:///rates")("db", "check")
    assert done.stdout.splitlines()[0] == "at Postgres (default host)/rates"


def test_output_that_cannot_be_written_is_one_line(
    nowhere: Command, database_url: str, tmp_path: Path
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "db", "check"],
            cwd=tmp_path,
            env={**os.environ, "RATESTREAM_POSTGRES__URL": database_url},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "ratestream: cannot write what there is to print: [Errno 28] No space left on device\n",
    )
