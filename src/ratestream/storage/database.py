"""The way to Postgres: a bounded pool, errors in our own words, and the schema's version."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import asyncpg
import msgspec
import structlog
from sqlalchemy import Connection, Select, Table, select, text
from sqlalchemy.dialects.postgresql.asyncpg import dialect as AsyncpgDialect  # noqa: N812 - a class
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ratestream.storage import schema
from ratestream.storage.errors import (
    DatabaseAccessError,
    DatabaseUnavailableError,
    LockTimeoutError,
    RepeatedRowsError,
    StorageError,
    UnstorableError,
)
from ratestream.storage.roles import Grant, Roles, excess, grant, lacks, missing
from ratestream.storage.tables import origin_cluster

_MIGRATION_LOCK = 7_281_033_904
"""Whoever migrates holds this advisory lock; the number only has to be ours."""

_MIGRATION_TIMEOUT = 3600.0
_NOT_USED_YET = "not connected yet"
_DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a server that dies in the middle of a message
)

_DATA_ERRORS = ("22", "23")
"""SQLSTATE classes "data exception" and "integrity constraint violation"."""

_UNIQUE_VIOLATION = "23505"
_LOCK_NOT_AVAILABLE = "55P03"

_ACCESS_ERRORS = ("28", "3D000", "42501")
"""SQLSTATE class "invalid authorization specification", "invalid catalog name" (there is no such
database) and "insufficient privilege"."""

_CALL_FAILED = re.compile(r"\[Errno (\d+)\] Connect call failed \('([^']*)', (\d+)[^)]*\)")
_CHECK = {
    "28": "; check the user in postgres.url, and postgres.password",
    "3D000": "; check the database in postgres.url",
}
"""What to correct, where Postgres does not say it."""

_REFUSES_TLS = "rejected SSL upgrade"
"""What asyncpg says of a server that has no TLS, in a plain `ConnectionError`. Of one that answers
with an error, because it cannot start another process for example, it says something else."""

_GRANT_IT = "name it as postgres.loader_role or postgres.gateway_role to `ratestream db upgrade`"

_FILES = {
    "sslrootcert": "postgres.ssl_ca_location",
    "sslcert": "postgres.ssl_certificate_location",
    "sslkey": "postgres.ssl_key_location",
}
"""Parameters of the URL that name files, and the settings that give them."""

_encode_lines = msgspec.json.Encoder(decimal_format="string").encode_lines

log = structlog.get_logger("ratestream.storage")


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """How a service uses Postgres. Times are seconds; `pool_size` connections are the most that
    it ever opens, and a caller waits `pool_timeout` for one of them; a statement waits
    `lock_timeout` for other transactions, each time."""

    application_name: str = "ratestream"
    pool_size: int = 4
    pool_timeout: float = 10.0
    connect_timeout: float = 5.0
    statement_timeout: float = 30.0
    lock_timeout: float = 5.0
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What a database is like: the schema's version (None: never migrated) and the one that this
    program needs, the user that looked, the Kafka cluster whose rows it holds (None when it holds
    none, or unless `sees_cluster`: this user may know), what the named roles lack, and what they
    have beyond their need, a line for each."""

    found: str | None
    head: str
    user: str
    cluster_id: str | None = None
    sees_cluster: bool = False
    missing: tuple[str, ...] = ()
    excess: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        return self.found == self.head


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
            pool_pre_ping=not options.read_only,
            isolation_level="AUTOCOMMIT" if options.read_only else None,
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Committed at the end of the block, rolled back when it raises.

        Raises `UnstorableError` for values that do not fit, `RepeatedRowsError` for rows that are
        there already, `DatabaseUnavailableError` for everything else that Postgres or the way to
        it may do (`DatabaseAccessError`, when this user is refused).
        """
        with self._noted():
            async with self._engine.begin() as connection:
                yield connection

    async def check(self, grants: Sequence[Grant] = ()) -> None:
        """Whether the schema can be used. Raises `DatabaseUnavailableError` when Postgres is away
        or not yet migrated, `DatabaseAccessError` when this user lacks one of `grants`,
        `SchemaError` when the schema is newer than this program."""
        with self._noted():
            async with self._engine.begin() as connection:
                await connection.run_sync(_check, grants)

    async def rows(self, query: Query, **values: Any) -> list[asyncpg.Record]:
        """What one statement finds, alone in its transaction. Raises as `transaction`."""
        arguments = query.arguments(values)
        with self._noted():
            async with self._engine.connect() as connection:
                driver = await _driver(connection)
                try:
                    return list(await driver.fetch(query.sql, *arguments))
                except _DRIVER_ERRORS:
                    if not driver.is_closed():
                        raise
                # Found to have been closed meanwhile. Nobody asks each time whether it is alive.
                await connection.invalidate()
                return list(await (await _driver(connection)).fetch(query.sql, *arguments))

    async def upgrade(self, roles: Roles | None = None) -> SchemaState:
        """Bring the schema to this program's version and grant to `roles` exactly what they need,
        in one transaction; whoever comes second waits for the first. Returns what was found.
        Raises `SchemaError` when the schema is newer, `DatabaseUnavailableError`."""
        patient = replace(
            self._options,
            pool_size=1,
            statement_timeout=_MIGRATION_TIMEOUT,
            lock_timeout=_MIGRATION_TIMEOUT,
        )
        engine = self._new_engine(patient)
        try:
            with self._noted():
                async with engine.begin() as connection:
                    lock = text("SELECT pg_advisory_xact_lock(:key)")
                    await connection.execute(lock, {"key": _MIGRATION_LOCK})
                    return await connection.run_sync(_upgrade, roles or Roles())
        finally:
            await engine.dispose()

    async def state(self, roles: Roles | None = None) -> SchemaState:
        """What the database is like now. Raises as `check`."""
        with self._noted():
            async with self._engine.begin() as connection:
                return await connection.run_sync(_state, roles or Roles())

    async def close(self) -> None:
        await self._engine.dispose()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Say once when Postgres goes away and once when it is back. A refusal of the first use
        ends the caller, which says it."""
        try:
            with _in_our_words():
                yield
        except DatabaseUnavailableError as error:
            is_fatal = isinstance(error, DatabaseAccessError) and self.trouble == _NOT_USED_YET
            if self.trouble in (None, _NOT_USED_YET) and not is_fatal:
                log.warning("database_unavailable", error=str(error))
            self.trouble = str(error)
            raise
        if self.trouble not in (None, _NOT_USED_YET):
            log.info("database_back")
        self.trouble = None


class Query:
    """A statement that only reads, compiled once: that takes many times as long as to run it."""

    def __init__(self, statement: Select[Any]) -> None:
        compiled = statement.compile(dialect=AsyncpgDialect())  # type: ignore[no-untyped-call]
        self.sql = str(compiled)
        self._names = tuple(compiled.positiontup or ())
        self._constants = compiled.params

    def arguments(self, values: Mapping[str, Any]) -> list[Any]:
        """In the driver's order, from the values of its parameters by name."""
        given = {**self._constants, **values}
        return [given[name] for name in self._names]


async def _driver(connection: AsyncConnection) -> asyncpg.Connection:
    driver = (await connection.get_raw_connection()).driver_connection
    assert driver is not None
    return driver


async def copy_rows(
    connection: AsyncConnection,
    table: Table,
    columns: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
) -> None:
    """Add rows, at least one, by COPY, in the transaction of `connection`, which something executed
    before has begun. No value may be None. One row that is there already refuses them all. Raises
    as `Database.transaction`."""
    driver = await _driver(connection)
    try:
        if (lines := _as_csv(rows)) is not None:
            await driver.copy_to_table(table.name, source=lines, columns=columns, format="csv")
        else:
            await driver.copy_records_to_table(table.name, records=rows, columns=columns)
    except (ValueError, OverflowError) as error:  # what asyncpg cannot encode
        raise UnstorableError(_one_line(error)) from error
    except _DRIVER_ERRORS as error:
        if driver.is_closed() or isinstance(error, asyncpg.InternalClientError):
            await connection.invalidate()  # otherwise the rollback fails, and hides why
        raise


def _as_csv(rows: Sequence[tuple[Any, ...]]) -> memoryview | None:
    """What COPY reads, made by msgspec without a step of Python for each value: a JSON array is a
    line of CSV but for its brackets. None when a string has something that JSON escapes."""
    lines = _encode_lines(rows)
    if b"\\" in lines:
        return None
    # No string has a raw newline. To asyncpg `bytes` would be the name of a file.
    return memoryview(lines[1:-2].replace(b"]\n[", b"\n"))


async def upgrade(url: str, roles: Roles | None = None) -> SchemaState:
    """`Database.upgrade`, for whoever needs nothing else."""
    async with _opened(url, "ratestream-upgrade") as database:
        return await database.upgrade(roles)


async def check(url: str, roles: Roles | None = None) -> SchemaState:
    """`Database.state`, for whoever needs nothing else."""
    async with _opened(url, "ratestream-check") as database:
        return await database.state(roles)


@asynccontextmanager
async def _opened(url: str, name: str) -> AsyncIterator[Database]:
    database = Database(url, DatabaseOptions(name, pool_size=1))
    try:
        yield database
    finally:
        await database.close()


async def _connect(dsn: str, options: DatabaseOptions) -> asyncpg.Connection:
    _check_files(dsn)
    return await asyncpg.connect(
        dsn,
        timeout=options.connect_timeout,
        # The server ends a slow statement; this notices a server that has vanished.
        command_timeout=options.statement_timeout + options.connect_timeout,
        server_settings={
            "application_name": options.application_name,
            "timezone": "UTC",
            "statement_timeout": f"{options.statement_timeout * 1000:.0f}",
            "lock_timeout": f"{options.lock_timeout * 1000:.0f}",
            "default_transaction_read_only": "on" if options.read_only else "off",
        },
    )


def _check_files(dsn: str) -> None:
    """What OpenSSL says of a file that it cannot use does not say which file."""
    query = dict(parse_qsl(urlsplit(dsn).query))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, certificate, key = (query.get(name) for name in _FILES)
    if authority is not None:
        with _named(authority, _FILES["sslrootcert"]):
            context.load_verify_locations(authority)
    if certificate is not None:
        with _named(f"{certificate} or {key}", _FILES["sslcert"]):
            context.load_cert_chain(certificate, key, query.get("sslpassword", ""))


@contextmanager
def _named(file: str, setting: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise DatabaseAccessError(f"{setting}: {file} is of no use: {_one_line(error)}") from error
    except OSError as error:
        raise DatabaseAccessError(f"{setting}: {file} cannot be read: {error.strerror}") from error


def _upgrade(connection: Connection, roles: Roles) -> SchemaState:
    before = _state(connection, Roles())
    if not before.is_current:
        schema.upgrade(connection)
    grant(connection, roles)
    return before


def _check(connection: Connection, grants: Sequence[Grant]) -> None:
    found, user = schema.found(connection), _user(connection)
    if found is None and connection.scalar(text("SELECT current_schema()")) is None:
        raise DatabaseAccessError(
            f"the Postgres user {user} may use no schema of this database: {_GRANT_IT}"
        )
    if found != schema.head():
        raise DatabaseUnavailableError(
            f"the database is not migrated yet: its schema has version {found or 'none'} and this "
            f"ratestream needs {schema.head()}; run `ratestream db upgrade`, or leave it to "
            "db_loader (postgres.migrate)"
        )
    if grants and (lacking := lacks(connection, user, grants)):
        raise DatabaseAccessError(
            f"the Postgres user {user} lacks {', '.join(lacking)}: {_GRANT_IT}"
        )


def _state(connection: Connection, roles: Roles) -> SchemaState:
    state = SchemaState(schema.found(connection), schema.head(), _user(connection))
    if not state.is_current:
        return state
    sees_cluster = not lacks(connection, state.user, [Grant("SELECT", origin_cluster.name)])
    owner = select(origin_cluster.c.cluster_id)
    return replace(
        state,
        sees_cluster=sees_cluster,
        cluster_id=connection.scalar(owner) if sees_cluster else None,
        missing=tuple(missing(connection, roles)),
        excess=tuple(excess(connection, roles)),
    )


def _user(connection: Connection) -> str:
    return str(connection.scalar(text("SELECT current_user")))


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig else None
        raise _in_our_tree(cause or error) from error
    except (SQLAlchemyError, *_DRIVER_ERRORS) as error:
        raise _in_our_tree(error) from error


def _in_our_tree(error: BaseException) -> StorageError:
    if (reason := _why_refused(error)) is not None:
        return DatabaseAccessError(f"no access to Postgres: {reason}")
    if _sqlstate(error) == _UNIQUE_VIOLATION:
        return RepeatedRowsError(_one_line(error))
    if _sqlstate(error) == _LOCK_NOT_AVAILABLE:
        return LockTimeoutError(_one_line(error))
    if _is_about_the_data(error):
        return UnstorableError(_one_line(error))
    if isinstance(error, OSError):
        return DatabaseUnavailableError(f"no connection to Postgres: {_why_away(error)}")
    return DatabaseUnavailableError(_one_line(error))


def _why_refused(error: BaseException) -> str | None:
    """What has to be changed by somebody; None for what may pass by itself."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not trusted: {error.verify_message}"
        case ssl.SSLEOFError() | ssl.SSLSyscallError() | ssl.SSLZeroReturnError():
            return None
        case ssl.SSLError():
            return f"no TLS connection: {_one_line(error)}"
        case ConnectionError() if _REFUSES_TLS in str(error):
            return (
                "the server has no TLS, or is no Postgres; postgres.ssl_mode or the url's sslmode "
                "asks for TLS"
            )
        case asyncpg.ClientConfigurationError():
            return _one_line(error)
        case asyncpg.ConnectionDoesNotExistError(__cause__=ssl.SSLError() as cause):
            return _why_refused(cause)  # a client certificate is refused after the handshake
    if (code := _sqlstate(error)).startswith(_ACCESS_ERRORS):
        return _one_line(error) + next(
            (advice for start, advice in _CHECK.items() if code.startswith(start)), ""
        )
    return None


def _why_away(error: OSError) -> str:
    """asyncio's words for a refused connection hide where and why in a tuple and a number."""
    return _CALL_FAILED.sub(
        lambda found: f"{found[2]}:{found[3]}: {os.strerror(int(found[1]))}", _one_line(error)
    )


def _is_about_the_data(error: BaseException) -> bool:
    """asyncpg checks values before it sends them; what it finds is a `ValueError` too."""
    return isinstance(error, ValueError) or _sqlstate(error).startswith(_DATA_ERRORS)


def _sqlstate(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", ""))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
