"""A real Postgres for tests: one server a session, an empty database a test."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from ratestream.storage.database import upgrade
from ratestream.storage.embedded import EmbeddedPostgres

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
