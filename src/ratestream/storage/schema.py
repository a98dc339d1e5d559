"""The schema's version: what the database has, what this program knows, and the way from one to
the other."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, text

from ratestream.storage.errors import SchemaError

_MIGRATIONS = Path(__file__).with_name("migrations")
_MODULE = re.compile(r"v(\d{4})_\w+")


def head() -> str:
    """The newest version that this program knows."""
    return max(versions())


def versions() -> set[str]:
    """Those that there are migrations to, by the names of their modules."""
    names = (_MODULE.fullmatch(file.stem) for file in (_MIGRATIONS / "versions").glob("*.py"))
    return {name[1] for name in names if name}


def found(connection: Connection) -> str | None:
    """The database's version; None when it was never migrated. Raises `SchemaError` when it is
    newer than `head`."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if version and version not in versions():
        raise SchemaError(
            f"the database's schema has version {version} and this ratestream knows none after "
            f"{head()}: run the newer ratestream that made it, or give postgres.url another "
            "database"
        )
    return version


def upgrade(connection: Connection) -> None:
    """Bring the schema to `head`, within the connection's transaction."""
    # Takes a sixth of a service's imports, and is needed once for each new version.
    import alembic.command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")
