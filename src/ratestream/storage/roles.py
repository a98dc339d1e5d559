"""Who may do what in the database: exactly what db_loader and api_gateway need, and no more.

The role that upgrades the schema owns the tables, and grants. Nobody else can change what is
stored: db_loader adds rows and removes old ones, api_gateway reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, text

from ratestream.storage.errors import DatabaseAccessError
from ratestream.storage.tables import averages, origin_cluster, quotes, series

_VERSION_TABLE = "alembic_version"
_TABLES = (_VERSION_TABLE, quotes.name, averages.name, series.name, origin_cluster.name)


class Grant(NamedTuple):
    """One privilege on a table, or on one column of it."""

    privilege: str
    table: str
    column: str | None = None

    def __str__(self) -> str:
        return f"{self.privilege} on {self.table}" + (f".{self.column}" if self.column else "")


_OF_RETENTION = ("pair", "source", "received_at", "ctid")

LOADER = (
    Grant("SELECT", _VERSION_TABLE),
    Grant("SELECT", origin_cluster.name),
    Grant("INSERT", origin_cluster.name),
    Grant("SELECT", series.name),
    Grant("INSERT", series.name),
    *(Grant(each, table.name) for table in (quotes, averages) for each in ("INSERT", "DELETE")),
    *(Grant("SELECT", table.name, each) for table in (quotes, averages) for each in _OF_RETENTION),
)
"""What `Writer` does."""

GATEWAY = tuple(
    Grant("SELECT", table) for table in (_VERSION_TABLE, quotes.name, averages.name, series.name)
)
"""What `Reader` does."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles as which db_loader and api_gateway log in; None where nothing is to be granted,
    because the role owns the tables or somebody else sees to it."""

    loader: str | None = None
    gateway: str | None = None

    def needs(self) -> list[tuple[str, str, Sequence[Grant]]]:
        """Setting, role and what it needs, of each role that is named."""
        every = (
            ("postgres.loader_role", self.loader, LOADER),
            ("postgres.gateway_role", self.gateway, GATEWAY),
        )
        return [(setting, role, grants) for setting, role, grants in every if role is not None]


def grant(connection: Connection, roles: Roles) -> None:
    """Give each role what it needs and take everything else on our tables from it and from
    PUBLIC, within the connection's transaction. Raises `DatabaseAccessError` for a role that does
    not exist or that owns the tables, and when this user may not grant."""
    needs = roles.needs()
    if not needs:
        return
    quote = connection.dialect.identifier_preparer.quote_identifier
    schema = quote(str(connection.scalar(text("SELECT current_schema()"))))
    tables = ", ".join(f"{schema}.{quote(each)}" for each in _TABLES)
    statements = [
        f"REVOKE ALL ON {tables} FROM PUBLIC",
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC",
    ]
    for setting, name, grants in needs:
        _check_role(connection, setting, name)
        role = quote(name)
        statements.append(f"REVOKE ALL ON {tables} FROM {role}")
        statements.append(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        for privilege, table, column in grants:
            columns = f" ({quote(column)})" if column else ""
            statements.append(f"GRANT {privilege}{columns} ON {schema}.{quote(table)} TO {role}")
    for statement in statements:
        connection.exec_driver_sql(statement)
    if still := missing(connection, roles):
        raise DatabaseAccessError(
            f"{'; '.join(still)}: the user of postgres.url may not grant it, so make it the owner "
            "of the database and of its tables"
        )


def missing(connection: Connection, roles: Roles) -> list[str]:
    """What the roles need and do not have, a line for each role. The tables must exist."""
    lines = []
    for setting, role, grants in roles.needs():
        if not _exists(connection, role):
            lines.append(_no_such_role(setting, role))
        elif lacking := lacks(connection, role, grants):
            lines.append(f"{setting}: {role} lacks {', '.join(lacking)}")
    return lines


def lacks(connection: Connection, role: str, grants: Sequence[Grant]) -> list[str]:
    """What this role needs and does not have. The role and the tables must exist."""
    privileges, tables, columns = map(list, zip(*grants, strict=True))
    needed = {"role": role, "privileges": privileges, "tables": tables, "columns": columns}
    rows = connection.execute(_LACKING, needed).all()
    has_schema = connection.scalar(_MAY_USE_SCHEMA, {"role": role})
    return [*([] if has_schema else ["USAGE on the schema"]), *(str(Grant(*row)) for row in rows)]


_LACKING = text(
    """
    SELECT privilege, table_name, column_name
    FROM unnest(CAST(:privileges AS text[]), CAST(:tables AS text[]), CAST(:columns AS text[]))
        AS needed(privilege, table_name, column_name)
    WHERE NOT CASE
        WHEN column_name IS NULL
        THEN has_table_privilege(CAST(:role AS name), table_name, privilege)
        ELSE has_column_privilege(CAST(:role AS name), table_name, column_name, privilege)
    END
    """
)
_MAY_USE_SCHEMA = text(
    "SELECT has_schema_privilege(CAST(:role AS name), current_schema(), 'USAGE')"
)
_EXISTS = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
_OWNS = text(
    "SELECT EXISTS (SELECT FROM pg_class WHERE oid = CAST(:table AS regclass)"
    " AND pg_has_role(CAST(:role AS name), relowner, 'MEMBER'))"
)


def _exists(connection: Connection, role: str) -> bool:
    return bool(connection.scalar(_EXISTS, {"role": role}))


def _no_such_role(setting: str, role: str) -> str:
    return f"{setting}: there is no role {role}; make it with CREATE ROLE, or correct the setting"


def _check_role(connection: Connection, setting: str, role: str) -> None:
    if not _exists(connection, role):
        raise DatabaseAccessError(_no_such_role(setting, role))
    if connection.scalar(_OWNS, {"role": role, "table": _VERSION_TABLE}):
        raise DatabaseAccessError(
            f"{setting}: {role} owns the tables, may do anything with them and is not to be "
            "restricted; name another role, or leave the setting out"
        )
