"""Migrations, and what happens when Postgres goes away, on a real Postgres."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ratestream.events import Origin, Quote
from ratestream.storage import schema
from ratestream.storage.database import Database, DatabaseOptions, upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.errors import DatabaseUnavailableError, SchemaError
from ratestream.storage.reader import Reader
from ratestream.storage.tables import metadata
from ratestream.storage.writer import Writer
from tests.support.postgres import execute

NOW = datetime.now(UTC)


def quote(offset: int) -> Quote:
    return Quote("USDRUB", "demo", Decimal("27.8"), NOW, NOW, Origin("src-data", 0, offset))


def test_the_migrations_lead_to_the_tables(database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async def main() -> None:
        database = Database(database_url)
        async with database.transaction() as connection:
            assert await connection.run_sync(differences) == []
        await database.close()

    asyncio.run(main())


def test_versions_are_those_that_alembic_finds() -> None:
    scripts = ScriptDirectory(str(Path(schema.__file__).with_name("migrations")))
    assert schema.head() == scripts.get_current_head()
    assert schema.versions() == {each.revision for each in scripts.walk_revisions()}


def test_whoever_migrates_second_waits_and_finds_it_done(empty_database: str) -> None:
    async def main() -> None:
        await asyncio.gather(*(upgrade(empty_database) for _ in range(4)))
        database = Database(empty_database)
        await database.check()
        await database.close()

    asyncio.run(main())


def test_an_empty_database_is_not_ready(empty_database: str) -> None:
    async def main() -> None:
        database = Database(empty_database)
        with pytest.raises(DatabaseUnavailableError, match="not migrated yet"):
            await database.check()
        with pytest.raises(DatabaseUnavailableError, match="does not exist"):
            await Reader(database).pairs(1)
        assert database.trouble
        await database.close()

    asyncio.run(main())


def test_a_newer_schema_is_refused(database_url: str) -> None:
    async def main() -> None:
        await execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaError, match="version 9999"):
            await upgrade(database_url)
        database = Database(database_url)
        with pytest.raises(SchemaError, match="run the newer ratestream"):
            await database.check()
        await database.close()

    asyncio.run(main())


def test_the_pool_outlives_a_restart_of_postgres(tmp_path: Path) -> None:
    async def main(server: EmbeddedPostgres) -> None:
        await upgrade(server.url)
        database = Database(server.url)
        writer = Writer(database)
        assert await writer.write_quotes([quote(1)], []) == 1
        await asyncio.to_thread(server.stop)
        with pytest.raises(DatabaseUnavailableError):
            await writer.write_quotes([quote(1), quote(2)], [])
        assert database.trouble
        await asyncio.to_thread(server.start)
        assert await writer.write_quotes([quote(1), quote(2)], []) == 1
        assert database.trouble is None
        await database.close()

    with EmbeddedPostgres(tmp_path / "pg") as server:
        asyncio.run(main(server))


def test_a_reader_cannot_write(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url, DatabaseOptions(read_only=True))
        with pytest.raises(DatabaseUnavailableError, match="read-only"):
            await Writer(database).write_quotes([quote(1)], [])
        await database.close()

    asyncio.run(main())


def test_a_slow_statement_ends(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url, DatabaseOptions(statement_timeout=0.05))
        with pytest.raises(DatabaseUnavailableError, match="statement timeout"):
            async with database.transaction() as connection:
                await connection.exec_driver_sql("SELECT pg_sleep(10)")
        await database.close()

    asyncio.run(main())


def test_a_full_pool_is_an_error_not_a_wait_for_ever(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url, DatabaseOptions(pool_size=1, pool_timeout=0.05))
        async with database.transaction():
            with pytest.raises(DatabaseUnavailableError):
                await Reader(database).pairs(1)
        await database.close()

    asyncio.run(main())
