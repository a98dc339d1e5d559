"""What an operator wants to know of a Postgres server before trusting it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from ratestream.storage.database import Database, DatabaseOptions

_VERSION = text(
    "SELECT current_setting('server_version'), current_setting('server_version_num')::int"
)
_CLOCK = text("SELECT clock_timestamp()")


@dataclass(frozen=True, slots=True)
class Inspection:
    """A server as it answered. `version_number` is 150004 for 15.4. `clock_ahead` is how far its
    clock is ahead of ours, `uncertainty` by how much that may be wrong."""

    version: str
    version_number: int
    clock_ahead: timedelta
    uncertainty: timedelta


async def inspect(url: str) -> Inspection:
    """Needs no privilege. Raises `DatabaseUnavailableError`."""
    database = Database(url, DatabaseOptions("ratestream-inspect", pool_size=1))
    try:
        async with database.transaction() as connection:
            version, number = (await connection.execute(_VERSION)).one()
            asked = datetime.now(UTC)
            theirs = (await connection.execute(_CLOCK)).scalar_one()
            uncertainty = (datetime.now(UTC) - asked) / 2
    finally:
        await database.close()
    return Inspection(version, number, theirs - (asked + uncertainty), uncertainty)
