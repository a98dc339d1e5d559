"""The schema's version: what the database has, what this program knows, and the way from one to
the other."""

from __future__ import annotations

from pathlib import Path

import alembic.command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ratestream.storage.errors import SchemaError


def head() -> str:
    """The newest version that this program knows."""
    return str(_scripts().get_current_head())


def found(connection: Connection) -> str | None:
    """The database's version; None when it was never migrated. Raises `SchemaError` when it is
    newer than `head`."""
    version = MigrationContext.configure(connection).get_current_revision()
    if version and version not in {each.revision for each in _scripts().walk_revisions()}:
        raise SchemaError(
            f"the database's schema has version {version} and this ratestream knows none after "
            f"{head()}: run the newer ratestream that made it, or give postgres.url another "
            "database"
        )
    return version


def upgrade(connection: Connection) -> None:
    """Bring the schema to `head`, within the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option(
        "script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%")
    )
    return config
