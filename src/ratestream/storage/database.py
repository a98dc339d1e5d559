"""The way to Postgres: a bounded pool, errors in our own words, and the schema's version."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import alembic.command
import asyncpg
import structlog
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ratestream.storage.errors import DatabaseUnavailableError, SchemaError, UnstorableError

_MIGRATION_LOCK = 7_281_033_904
"""Whoever migrates holds this advisory lock; the number only has to be ours."""

_MIGRATION_TIMEOUT = 3600.0
_NOT_USED_YET = "not connected yet"
_DATA_ERRORS = ("22", "23")
"""SQLSTATE classes "data exception" and "integrity constraint violation"."""

log = structlog.get_logger("ratestream.storage")


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """How a service uses Postgres. Times are seconds; `pool_size` connections are the most that
    it ever opens, and a caller waits `pool_timeout` for one of them."""

    application_name: str = "ratestream"
    pool_size: int = 4
    pool_timeout: float = 10.0
    connect_timeout: float = 5.0
    statement_timeout: float = 30.0
    read_only: bool = False


class Database:
    """One Postgres, named by a libpq URL (`postgresql://user:password@host/database?sslmode=…`).

    Connects when first used. `trouble` says why the last use failed; None after a success.
    """

    def __init__(self, url: str, options: DatabaseOptions | None = None) -> None:
        self._dsn = re.sub(r"^postgres(ql)?(\+asyncpg)?:", "postgresql:", url)
        self._options = options or DatabaseOptions()
        self._engine = self._new_engine(self._options)
        self.trouble: str | None = _NOT_USED_YET

    def _new_engine(self, options: DatabaseOptions) -> AsyncEngine:
        async def connect() -> asyncpg.Connection:
            return await _connect(self._dsn, options)

        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            pool_size=options.pool_size,
            max_overflow=0,
            pool_timeout=options.pool_timeout,
            pool_pre_ping=True,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Committed at the end of the block, rolled back when it raises.

        Raises `UnstorableError` for values that do not fit, `DatabaseUnavailableError` for
        everything else that Postgres or the way to it may do.
        """
        with self._noted():
            async with self._engine.begin() as connection:
                yield connection

    async def check(self) -> None:
        """Whether the schema can be used. Raises `DatabaseUnavailableError` when Postgres is away
        or not yet migrated, `SchemaError` when it is newer than this program."""
        with self._noted():
            async with self._engine.begin() as connection:
                if not await connection.run_sync(_is_current):
                    raise DatabaseUnavailableError(
                        "the database is not migrated yet; db_loader does that when it starts"
                    )

    async def upgrade(self) -> None:
        """Bring the schema to this program's version, in one transaction; whoever comes second
        waits for the first. Raises `SchemaError` when it is newer, `DatabaseUnavailableError`."""
        patient = replace(self._options, pool_size=1, statement_timeout=_MIGRATION_TIMEOUT)
        engine = self._new_engine(patient)
        try:
            with self._noted():
                async with engine.begin() as connection:
                    lock = text("SELECT pg_advisory_xact_lock(:key)")
                    await connection.execute(lock, {"key": _MIGRATION_LOCK})
                    await connection.run_sync(_upgrade)
        finally:
            await engine.dispose()

    async def close(self) -> None:
        await self._engine.dispose()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Say once when Postgres goes away and once when it is back."""
        try:
            with _in_our_words():
                yield
        except DatabaseUnavailableError as error:
            if self.trouble in (None, _NOT_USED_YET):
                log.warning("database_unavailable", error=str(error))
            self.trouble = str(error)
            raise
        if self.trouble not in (None, _NOT_USED_YET):
            log.info("database_back")
        self.trouble = None


async def upgrade(url: str) -> None:
    """`Database.upgrade`, for whoever needs nothing else."""
    database = Database(url, DatabaseOptions("ratestream-upgrade"))
    try:
        await database.upgrade()
    finally:
        await database.close()


async def _connect(dsn: str, options: DatabaseOptions) -> asyncpg.Connection:
    return await asyncpg.connect(
        dsn,
        timeout=options.connect_timeout,
        # The server ends a slow statement; this notices a server that has vanished.
        command_timeout=options.statement_timeout + options.connect_timeout,
        server_settings={
            "application_name": options.application_name,
            "timezone": "UTC",
            "statement_timeout": f"{options.statement_timeout * 1000:.0f}",
            "default_transaction_read_only": "on" if options.read_only else "off",
        },
    )


def _upgrade(connection: Connection) -> None:
    if not _is_current(connection):
        config = _alembic_config()
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "head")


def _is_current(connection: Connection) -> bool:
    found = MigrationContext.configure(connection).get_current_revision()
    known = ScriptDirectory.from_config(_alembic_config())
    head = known.get_current_head()
    if found and found not in {each.revision for each in known.walk_revisions()}:
        raise SchemaError(
            f"the database's schema has version {found} and this ratestream knows none after "
            f"{head}: run the newer ratestream that made it, or give postgres.url another database"
        )
    return found == head


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%")
    )
    return config


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig else None
        if _is_about_the_data(cause):
            raise UnstorableError(_one_line(cause)) from error
        raise DatabaseUnavailableError(_one_line(cause or error)) from error
    except OSError as error:
        raise DatabaseUnavailableError(f"no connection to Postgres: {_one_line(error)}") from error
    except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise DatabaseUnavailableError(_one_line(error)) from error


def _is_about_the_data(error: BaseException | None) -> bool:
    """asyncpg checks values before it sends them; what it finds is a `ValueError` too."""
    code = str(getattr(error, "sqlstate", None))
    return isinstance(error, ValueError) or code.startswith(_DATA_ERRORS)


def _one_line(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__
