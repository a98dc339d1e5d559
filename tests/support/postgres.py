"""A real Postgres for tests: one server a session, an empty database a test; and, for what only
a network connection has, passwords and TLS, a server of its own over TCP."""

from __future__ import annotations

import asyncio
import itertools
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from ratestream.storage.database import upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from tests.support.kafka_servers import free_port

_START_SECONDS = 30.0

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A server that all tests of the session share."""
    with (
        tempfile.TemporaryDirectory(prefix="rs-") as folder,
        EmbeddedPostgres(Path(folder) / "pg") as server,
    ):
        yield server


@pytest.fixture
def empty_database(postgres: EmbeddedPostgres) -> str:
    """The URL of a database without any table."""
    return asyncio.run(new_database(postgres))


@pytest.fixture
def database_url(empty_database: str) -> str:
    """The URL of a migrated database without any row."""
    asyncio.run(upgrade(empty_database))
    return empty_database


@pytest.fixture(scope="session")
def tcp_postgres_binaries() -> Path:
    """A Postgres that was built with OpenSSL, which the one in the wheel was not."""
    try:
        return tcp_postgres_folder()
    except FileNotFoundError as error:
        if "postgres" in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
            pytest.fail(str(error))
        pytest.skip(str(error))


def tcp_postgres_folder() -> Path:
    """Where `initdb` and `postgres` are: on PATH, or where Debian puts them."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, reversed(debian))])
    if (found := shutil.which("initdb", path=path)) is None:
        raise FileNotFoundError("no Postgres server is installed (Debian: postgresql)")
    return Path(found).resolve().parent


@dataclass(frozen=True)
class TcpPostgres:
    """A server on 127.0.0.1, whose administrator comes through a socket, without a password."""

    port: int
    sockets: Path

    @property
    def admin_url(self) -> str:
        return f"postgresql://admin@/postgres?host={self.sockets}&port={self.port}"

    def url(self, user: str, database: str = "postgres", host: str = "localhost") -> str:
        return f"postgresql://{user}@{host}:{self.port}/{database}"


@contextmanager
def start_tcp_postgres(
    binaries: Path, hba: str, files: Mapping[str, bytes] | None = None, **settings: str
) -> Iterator[TcpPostgres]:
    """`hba` says who may come over TCP; `files` are put beside the data, for `settings` to name."""
    with tempfile.TemporaryDirectory(prefix="rs-") as name:
        folder, identity = Path(name), _ordinary_identity()
        server = TcpPostgres(free_port(), folder)
        data = folder / "data"
        for path, content in (files or {}).items():
            (folder / path).write_bytes(content)
            (folder / path).chmod(0o600)
        if identity:
            for each in (folder, *folder.iterdir()):
                shutil.chown(each, identity["user"], identity["group"])
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "admin", "-A", "trust", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            **identity,
        )
        (data / "pg_hba.conf").write_text(f"local all admin trust\n{hba}")
        options = {
            "port": str(server.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            **{key: value.format(folder=folder) for key, value in settings.items()},
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen[bytes](
                [
                    *(str(binaries / "postgres"), "-D", str(data)),
                    *(part for item in options.items() for part in ("-c", "=".join(item))),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                **identity,
            )
        try:
            _wait_for_postgres(server, process, folder / "log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=20)


def _ordinary_identity() -> dict[str, Any]:
    """For `subprocess`: Postgres does not run as root."""
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam("nobody")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _wait_for_postgres(server: TcpPostgres, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            asyncio.run(execute(server.admin_url, "SELECT"))
        except (OSError, asyncpg.PostgresError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"Postgres does not start: {log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


def as_user(url: str, name: str) -> str:
    """The same database, for another user."""
    return re.sub(r"//[^@/]*@", f"//{name}@", url)


async def new_database(server: EmbeddedPostgres) -> str:
    name = f"test_{next(_numbers)}"
    await execute(server.url, f"CREATE DATABASE {name}")
    return server.url.replace("/postgres?", f"/{name}?")


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()
