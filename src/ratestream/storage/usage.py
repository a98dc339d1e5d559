"""How much of Postgres is used: asked now and then, to be watched."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from ratestream.storage.database import Database

_QUERY = text(
    "SELECT pg_database_size(current_database()), "
    "(SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())"
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one database: bytes on its server's disk, and connections of all clients."""

    bytes: float
    connections: float


async def measure_usage(database: Database) -> Usage:
    """Raises `DatabaseUnavailableError`."""
    async with database.transaction() as connection:
        size, connections = (await connection.execute(_QUERY)).one()
    return Usage(size, connections)
