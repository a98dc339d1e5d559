"""Passwords and TLS, on a real Postgres over TCP with real certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from ratestream.settings import PostgresSettings
from ratestream.storage.database import Database, DatabaseOptions
from ratestream.storage.errors import DatabaseAccessError, DatabaseUnavailableError
from tests.support.postgres import TcpPostgres, execute, start_tcp_postgres

PASSWORD = "p@ss: /%ü&=#+?'\"\\"
HBA = """
hostssl all certified all scram-sha-256 clientcert=verify-full
hostssl all all       all scram-sha-256
host    all plain     all scram-sha-256
"""


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def server(tcp_postgres_binaries: Path, authority: trustme.CA) -> Iterator[TcpPostgres]:
    """Its certificate is for `localhost` only."""
    certificate = authority.issue_cert("localhost")
    with start_tcp_postgres(
        tcp_postgres_binaries,
        HBA,
        {
            "server.pem": certificate.cert_chain_pems[0].bytes(),
            "server.key": certificate.private_key_pem.bytes(),
            "ca.pem": authority.cert_pem.bytes(),
        },
        ssl="on",
        ssl_cert_file="{folder}/server.pem",
        ssl_key_file="{folder}/server.key",
        ssl_ca_file="{folder}/ca.pem",
    ) as server:
        make_users(server)
        yield server


@pytest.fixture(scope="module")
def server_without_tls(tcp_postgres_binaries: Path) -> Iterator[TcpPostgres]:
    with start_tcp_postgres(tcp_postgres_binaries, HBA) as server:
        make_users(server)
        yield server


def make_users(server: TcpPostgres) -> None:
    quoted = PASSWORD.replace("'", "''")
    for user in ("plain", "certified"):
        asyncio.run(execute(server.admin_url, f"CREATE ROLE {user} LOGIN PASSWORD '{quoted}'"))


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def client_files(authority: trustme.CA, name: str, folder: Path) -> dict[str, str]:
    certificate = authority.issue_cert(f"{name}@example.org", common_name=name)
    certificate.cert_chain_pems[0].write_to_path(str(folder / "client.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "client.key"))
    return {
        "ssl_certificate_location": str(folder / "client.pem"),
        "ssl_key_location": str(folder / "client.key"),
    }


def connection(url: str, **options: Any) -> PostgresSettings:
    return PostgresSettings(**{"url": SecretStr(url), "password": SecretStr(PASSWORD), **options})


async def encryption(settings: PostgresSettings) -> bool:
    """Whether the server says that the connection is encrypted."""
    database = Database(settings.dsn(), DatabaseOptions(pool_size=1, connect_timeout=60))
    try:
        async with database.transaction() as used:
            found = await used.exec_driver_sql(
                "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
            )
            return bool(found.scalar())
    finally:
        await database.close()


def refusal(settings: PostgresSettings) -> str:
    with pytest.raises(DatabaseAccessError) as caught:
        asyncio.run(encryption(settings))
    message = str(caught.value)
    assert "\n" not in message
    assert PASSWORD not in message
    return message


def test_a_recognised_server_is_used(server: TcpPostgres, ca_file: str) -> None:
    settings = connection(server.url("plain"), ssl_mode="verify-full", ssl_ca_location=ca_file)
    assert asyncio.run(encryption(settings))


@pytest.mark.parametrize(
    ("mode", "encrypted"), [("disable", False), ("prefer", True), ("require", True), (None, True)]
)
def test_modes_that_recognise_nobody(server: TcpPostgres, mode: str, encrypted: bool) -> None:
    assert asyncio.run(encryption(connection(server.url("plain"), ssl_mode=mode))) is encrypted


def test_prefer_makes_do_without_tls(server_without_tls: TcpPostgres) -> None:
    settings = connection(server_without_tls.url("plain"))
    assert asyncio.run(encryption(settings)) is False


def test_another_authority_is_refused(server: TcpPostgres, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    settings = connection(
        server.url("plain"), ssl_mode="verify-ca", ssl_ca_location=str(tmp_path / "other.pem")
    )
    assert "the server's certificate is not trusted: " in refusal(settings)


def test_another_name_is_refused(server: TcpPostgres, ca_file: str) -> None:
    url = server.url("plain", host="127.0.0.1")
    settings = connection(url, ssl_mode="verify-full", ssl_ca_location=ca_file)
    assert "certificate is not valid for '127.0.0.1'" in refusal(settings)
    by_authority = connection(url, ssl_mode="verify-ca", ssl_ca_location=ca_file)
    assert asyncio.run(encryption(by_authority))


def test_a_server_without_tls_is_refused(server_without_tls: TcpPostgres) -> None:
    settings = connection(server_without_tls.url("plain"), ssl_mode="require")
    assert refusal(settings) == (
        "no access to Postgres: the server has no TLS, or is no Postgres; postgres.ssl_mode or the "
        "url's sslmode asks for TLS"
    )


def test_a_server_that_cannot_start_a_process_is_not_a_refusal() -> None:
    """Postgres then answers the question for TLS with an error, in plain text."""

    async def main() -> None:
        async with await asyncio.start_server(answer_with_an_error, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"postgresql://plain@127.0.0.1:{port}/postgres"
            await encryption(connection(url, ssl_mode="require"))

    with pytest.raises(DatabaseUnavailableError, match="no connection to Postgres") as caught:
        asyncio.run(main())
    assert not isinstance(caught.value, DatabaseAccessError)


async def answer_with_an_error(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(8)
    writer.write(b"Ecould not fork new process for connection: Cannot allocate memory\n\0")
    await writer.drain()
    writer.close()


def test_a_client_certificate_is_shown(
    server: TcpPostgres, authority: trustme.CA, ca_file: str, tmp_path: Path
) -> None:
    settings = connection(
        server.url("certified"),
        ssl_mode="verify-full",
        ssl_ca_location=ca_file,
        **client_files(authority, "certified", tmp_path),
    )
    assert asyncio.run(encryption(settings))


def test_without_a_client_certificate_there_is_no_access(server: TcpPostgres) -> None:
    settings = connection(server.url("certified"), ssl_mode="require")
    assert "requires a valid client certificate" in refusal(settings)


def test_the_client_certificate_of_another_is_refused(
    server: TcpPostgres, authority: trustme.CA, tmp_path: Path
) -> None:
    files = client_files(authority, "plain", tmp_path)
    settings = connection(server.url("certified"), ssl_mode="require", **files)
    assert 'authentication failed for user "certified"' in refusal(settings)


def test_a_client_certificate_that_the_server_does_not_trust_is_refused(
    server: TcpPostgres, tmp_path: Path
) -> None:
    files = client_files(trustme.CA(), "certified", tmp_path)
    settings = connection(server.url("certified"), ssl_mode="require", **files)
    assert "unknown ca" in refusal(settings)


def test_a_login_without_tls_is_refused_where_tls_is_asked_for(server: TcpPostgres) -> None:
    settings = connection(server.url("certified"), ssl_mode="disable")
    assert 'no pg_hba.conf entry for host "127.0.0.1"' in refusal(settings)


@pytest.mark.parametrize(
    ("user", "database", "options", "reason"),
    [
        ("plain", "postgres", {"password": SecretStr("other")}, "password authentication failed"),
        ("plain", "postgres", {"password": None}, "no password supplied|password authentication"),
        ("stranger", "postgres", {}, 'password authentication failed for user "stranger"'),
        ("plain", "elsewhere", {}, 'database "elsewhere" does not exist'),
    ],
)
@pytest.mark.parametrize("mode", [None, "require"])
def test_a_wrong_login_is_refused(
    server: TcpPostgres,
    user: str,
    database: str,
    options: dict[str, Any],
    reason: str,
    mode: str | None,
) -> None:
    settings = connection(server.url(user, database), ssl_mode=mode, **options)
    assert any(each in refusal(settings) for each in reason.split("|"))


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_file_that_is_no_certificate_is_named(
    server: TcpPostgres, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    message = refusal(
        connection(server.url("plain"), ssl_mode="verify-full", ssl_ca_location=str(path))
    )
    assert message.startswith(f"postgres.ssl_ca_location: {path} ")


def test_a_key_of_another_certificate_is_named(
    server: TcpPostgres, authority: trustme.CA, tmp_path: Path
) -> None:
    files = client_files(authority, "certified", tmp_path)
    authority.issue_cert("other").private_key_pem.write_to_path(files["ssl_key_location"])
    message = refusal(connection(server.url("certified"), ssl_mode="require", **files))
    assert message.startswith(f"postgres.ssl_certificate_location: {tmp_path}/client.pem or ")
    assert "mismatch" in message


def test_a_server_that_is_away_is_not_a_refusal(ca_file: str) -> None:
    settings = connection(
        "postgresql://plain@localhost:1/postgres", ssl_mode="verify-full", ssl_ca_location=ca_file
    )
    with pytest.raises(DatabaseUnavailableError, match="no connection to Postgres") as caught:
        asyncio.run(encryption(settings))
    assert not isinstance(caught.value, DatabaseAccessError)
