"""Until when certificates hold: read from real files, and from servers that speak TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
import trustme
from pydantic import SecretStr

from ratestream.certificates import Certificate, kafka_places, postgres_places
from ratestream.monitoring import run_monitored
from ratestream.settings import KafkaSettings, PostgresSettings, Settings
from ratestream.streaming import App, BrokerError, Worker, WorkerConfig
from ratestream.streaming.local import LocalBroker
from tests.support.certificates import Authority
from tests.support.certificates import Certificate as Issued
from tests.support.kafka_servers import free_port
from tests.support.postgres import start_tcp_postgres
from tests.support.secure_kafka import start_secure_kafka

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
EXPIRED = datetime(2020, 1, 1, tzinfo=UTC)


def expiring(folder: Path, not_after: datetime) -> tuple[Path, Path]:
    """A certificate with its key, until then."""
    issued = trustme.CA().issue_cert(
        "localhost", "127.0.0.1", not_before=datetime(2019, 1, 1, tzinfo=UTC), not_after=not_after
    )
    certificate, key = folder / "server.crt", folder / "server.key"
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    return certificate, key


def server_context(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """With `clients`, only those that this authority knows get past the handshake, and none
    would get a certificate to see before showing its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients)
    return context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[str]:
    """Its address, "127.0.0.1:port". It speaks TLS from the start, as Kafka does."""

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(wait_for_end, "127.0.0.1", 0, ssl=context) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_kafka(settings: KafkaSettings) -> dict[str, Certificate]:
    return {each.name: await asyncio.to_thread(each.read) for each in kafka_places(settings)}


async def read_postgres(settings: PostgresSettings) -> dict[str, Certificate]:
    return {each.name: await asyncio.to_thread(each.read) for each in postgres_places(settings)}


@pytest.mark.parametrize("not_after", [SOON, EXPIRED])
def test_a_server_shows_when_its_certificate_expires(tmp_path: Path, not_after: datetime) -> None:
    async def main() -> None:
        async with tls_server(server_context(*expiring(tmp_path, not_after))) as address:
            found = await read_kafka(
                KafkaSettings(security_protocol="SSL", bootstrap_servers=address)
            )
            name = f"kafka server {address}"
            assert found == {name: Certificate(name, not_after)}

    asyncio.run(main())


def test_a_server_that_wants_a_certificate_first_gets_ours(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    client: Issued = authority.issue("loader")
    certificate, key = expiring(tmp_path, SOON)

    async def main() -> None:
        async with tls_server(server_context(certificate, key, authority.ca)) as address:
            without = KafkaSettings(security_protocol="SSL", bootstrap_servers=address)
            files = {
                "ssl_ca_location": str(authority.ca),
                "ssl_certificate_location": str(client.certificate),
                "ssl_key_location": str(client.key),
            }
            name = f"kafka server {address}"
            assert (await read_kafka(without))[name].not_after is None
            found = await read_kafka(without.model_copy(update=files))
            assert found[name].not_after == SOON
            assert set(found) == {name, "kafka CA", "kafka client"}
            assert all(each.not_after for each in found.values())

    asyncio.run(main())


def test_of_a_file_with_several_certificates_the_first_to_expire_counts(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.pem"
    certificate, _ = expiring(tmp_path, SOON)
    bundle.write_bytes(Authority(tmp_path / "ca").ca.read_bytes() + certificate.read_bytes())
    (place,) = kafka_places(KafkaSettings(ssl_ca_location=str(bundle)))
    assert place.read() == Certificate("kafka CA", SOON)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_file_without_certificates_is_a_problem(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    (place,) = kafka_places(KafkaSettings(ssl_ca_location=str(file)))
    found = place.read()
    assert found.not_after is None
    assert found.problem


def test_a_server_that_is_away_or_silent_is_a_problem() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
            port = silent.sockets[0].getsockname()[1]
            servers = f"127.0.0.1:{free_port()}, 127.0.0.1:{port}"
            found = await read_kafka(
                KafkaSettings(security_protocol="SASL_SSL", bootstrap_servers=servers, **LOGIN)
            )
            away, silent_one = found.values()
            assert (away.not_after, silent_one.not_after) == (None, None)
            assert "refused" in away.problem
            assert "timed out" in silent_one.problem

    asyncio.run(main())


LOGIN = {"sasl_mechanism": "PLAIN", "sasl_username": "me", "sasl_password": SecretStr("hunter2")}


def test_without_tls_there_is_nothing_to_read() -> None:
    assert kafka_places(KafkaSettings()) == []
    assert postgres_places(PostgresSettings()) == []
    socket = "postgresql:///rates?host=/run/postgresql&sslmode=require"
    assert postgres_places(PostgresSettings(url=SecretStr(socket))) == []


def test_postgres_shows_its_certificate_after_it_is_asked_for_tls(
    tcp_postgres_binaries: Path, tmp_path: Path
) -> None:
    certificate, key = expiring(tmp_path, SOON)
    files = {"server.crt": certificate.read_bytes(), "server.key": key.read_bytes()}
    with (
        start_tcp_postgres(
            tcp_postgres_binaries,
            "",
            files,
            ssl="on",
            ssl_cert_file="{folder}/server.crt",
            ssl_key_file="{folder}/server.key",
        ) as encrypted,
        start_tcp_postgres(tcp_postgres_binaries, "") as plain,
    ):
        servers = f"127.0.0.1:{encrypted.port},127.0.0.1:{plain.port}"
        settings = PostgresSettings(
            url=SecretStr(f"postgresql://me:hunter2@{servers}/rates"),
            ssl_mode="verify-full",
            ssl_ca_location=str(Authority(tmp_path / "ca").ca),
        )
        found = asyncio.run(read_postgres(settings))
    assert found[f"postgres server 127.0.0.1:{encrypted.port}"].not_after == SOON
    refused = found[f"postgres server 127.0.0.1:{plain.port}"]
    assert (refused.not_after, refused.problem) == (None, "the server does not speak TLS")
    assert found["postgres CA"].not_after is not None
    assert len(found) == 3


def test_a_postgres_that_answers_with_an_error_is_not_said_to_speak_no_tls() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"Ecould not fork new process\n\0")
        await writer.drain()
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"postgresql://me@127.0.0.1:{server.sockets[0].getsockname()[1]}/rates"
            settings = PostgresSettings(url=SecretStr(url), ssl_mode="require")
            (found,) = (await read_postgres(settings)).values()
            assert found.problem == "the server does not answer whether it speaks TLS"

    asyncio.run(main())


WATCH = """
import asyncio, sys
from ratestream import certificates
from ratestream.monitoring import run_monitored
from ratestream.settings import KafkaSettings, Settings
from ratestream.streaming import App, Worker, WorkerConfig
from ratestream.streaming.local import LocalBroker

async def main(hangs, certificate, folder, seconds, until):
    certificates.READ_SECONDS = float(seconds)
    files = {"ssl_ca_location": hangs, "ssl_certificate_location": certificate}
    app = App("data_processor")
    app.topic("in", value_type=str)
    worker = Worker(app, LocalBroker(None), WorkerConfig(data_dir=folder))
    settings = Settings(kafka=KafkaSettings(**files))
    running = asyncio.create_task(run_monitored(worker, settings, owns_process=True))
    name = "ratestream_certificate_expiry_timestamp_seconds"
    while not (found := app.registry.get_sample_value(name, {"certificate": "kafka client"})):
        await asyncio.sleep(0.1)
        if until == "now":
            break
    worker.stop()
    await running
    print(found)

asyncio.run(main(*sys.argv[1:]))
"""


def watch_a_file_that_hangs(folder: Path, seconds: float, until: str) -> list[str]:
    """Lines that a service prints, the last the expiry of its other certificate. It spends
    `seconds` on reading the file that hangs, and is stopped "now" or once it knows the other."""
    hangs = folder / "ca.pem"
    os.mkfifo(hangs)
    certificate, _ = expiring(folder, SOON)
    arguments = [str(hangs), str(certificate), str(folder), str(seconds), until]
    command = [sys.executable, "-c", WATCH, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def test_a_file_that_hangs_keeps_nobody_from_the_other_certificates(tmp_path: Path) -> None:
    *log, expiry = watch_a_file_that_hangs(tmp_path, seconds=0.5, until="known")
    assert expiry == str(SOON.timestamp())
    (unknown,) = [line for line in log if "certificate_unknown" in line]
    assert "kafka CA" in unknown
    assert "nothing was read within" in unknown


def test_a_file_that_hangs_does_not_keep_the_service_from_ending(tmp_path: Path) -> None:
    assert watch_a_file_that_hangs(tmp_path, seconds=3600, until="now")[-1] == "None"


@pytest.mark.kafka
def test_kafka_shows_its_certificate_whether_it_wants_one_or_not(tmp_path: Path) -> None:
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with start_secure_kafka(tmp_path) as secure:
        user = secure.with_certificate("data_processor")
        settings = KafkaSettings(
            security_protocol="SSL",
            bootstrap_servers=f"{secure.cluster.tls_bootstrap},{secure.cluster.bootstrap}",
            ssl_ca_location=user.ssl_ca_location,
            ssl_certificate_location=user.ssl_certificate_location,
            ssl_key_location=user.ssl_key_location,
        )
        found = asyncio.run(read_kafka(settings))
    assert len(found) == 4
    assert [each.problem for each in found.values() if each.not_after is None] == []


class AwayBroker(LocalBroker):
    """Because its certificate has expired, for example."""

    def cluster_id(self) -> str:
        raise BrokerError("certificate has expired")


def test_a_service_that_cannot_connect_still_tells_when_certificates_expire(tmp_path: Path) -> None:
    app = App("data_processor")
    app.topic("in", value_type=str)

    async def main() -> None:
        async with tls_server(server_context(*expiring(tmp_path, EXPIRED))) as address:
            servers = f"{address},127.0.0.1:{free_port()}"
            settings = Settings(
                kafka=KafkaSettings(security_protocol="SSL", bootstrap_servers=servers)
            )
            broker = AwayBroker(None)
            worker = Worker(app, broker, WorkerConfig(data_dir=str(tmp_path)))
            running = asyncio.create_task(run_monitored(worker, settings, owns_process=True))
            labels = {"certificate": f"kafka server {address}"}
            name = "ratestream_certificate_expiry_timestamp_seconds"
            while not app.registry.get_sample_value(name, labels):
                await asyncio.sleep(0.01)
            assert app.registry.get_sample_value(name, labels) == EXPIRED.timestamp()
            assert app.registry.get_sample_value("process_resident_memory_bytes")
            while not any(each["event"] == "certificate_unknown" for each in logs):
                await asyncio.sleep(0.01)
            assert not running.done()
            worker.stop()
            await running
            broker.close()

    with structlog.testing.capture_logs() as logs:
        asyncio.run(main())


def test_in_a_process_that_services_share_none_tells_about_the_process(tmp_path: Path) -> None:
    app = App("one_of_six")

    async def main() -> None:
        broker = LocalBroker(None)
        worker = Worker(app, broker, WorkerConfig(data_dir=str(tmp_path)))
        running = asyncio.create_task(run_monitored(worker, Settings(), owns_process=False))
        while worker.readiness():
            await asyncio.sleep(0.01)
        assert app.registry.get_sample_value("process_resident_memory_bytes") is None
        worker.stop()
        await running
        broker.close()

    asyncio.run(main())
