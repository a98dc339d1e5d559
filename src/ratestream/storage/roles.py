"""Who may do what in the database: exactly what db_loader and api_gateway need, and no more.

The role that upgrades the schema owns the tables, and grants. Nobody else can change what is
stored: db_loader adds rows, removes old ones and keeps its offsets, api_gateway reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, text

from ratestream.storage.errors import DatabaseAccessError
from ratestream.storage.tables import averages, consumer_offsets, origin_cluster, quotes, series

_VERSION_TABLE = "alembic_version"
_TABLES = (
    _VERSION_TABLE,
    *(each.name for each in (quotes, averages, series, origin_cluster, consumer_offsets)),
)


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
    *(Grant(each, consumer_offsets.name) for each in ("SELECT", "INSERT")),
    *(Grant("UPDATE", consumer_offsets.name, each) for each in ("next_offset", "updated_at")),
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
    PUBLIC, within the connection's transaction. What others have given to it stays: see `excess`.
    Raises `DatabaseAccessError` for a role that does not exist or that owns the tables, and when
    this user does not own them."""
    needs = roles.needs()
    if not needs:
        return
    _check_ownership(connection)
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
        statements.append(f"REVOKE CREATE ON SCHEMA {schema} FROM {role}")
        statements.append(f"GRANT USAGE ON SCHEMA {schema} TO {role}")
        for privilege, table, column in grants:
            columns = f" ({quote(column)})" if column else ""
            statements.append(f"GRANT {privilege}{columns} ON {schema}.{quote(table)} TO {role}")
    for statement in statements:
        connection.exec_driver_sql(statement)
    if still := missing(connection, roles):
        raise DatabaseAccessError(
            f"{'; '.join(still)}: the user of postgres.url may not grant it, so make it the owner "
            "of the database"
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


def excess(connection: Connection, roles: Roles) -> list[str]:
    """What the roles have beyond what they need, whoever gave it to them, a line for each role.
    The tables must exist."""
    lines = []
    for setting, role, grants in roles.needs():
        if not _exists(connection, role):
            continue
        if _owns(connection, role):
            lines.append(
                f"{setting}: {role} owns the tables, or is a superuser, and may do anything with "
                "them"
            )
        elif beyond := _beyond(connection, role, grants):
            lines.append(f"{setting}: {role} also has {', '.join(beyond)}")
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
_HELD_TABLES = text(
    """
    SELECT privilege, table_name, NULL
    FROM unnest(CAST(:tables AS text[])) AS table_name,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
            AS privilege
    WHERE has_table_privilege(CAST(:role AS name), table_name, privilege)
    """
)
_HELD_COLUMNS = text(
    """
    SELECT privilege, table_name, attname
    FROM unnest(CAST(:tables AS text[])) AS table_name,
        unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS privilege,
        pg_attribute
    WHERE attrelid = CAST(table_name AS regclass) AND NOT attisdropped
        AND NOT has_table_privilege(CAST(:role AS name), table_name, privilege)
        AND has_column_privilege(CAST(:role AS name), attrelid, attnum, privilege)
    ORDER BY table_name, attnum, privilege
    """
)
_MAY_USE_SCHEMA = text(
    "SELECT has_schema_privilege(CAST(:role AS name), current_schema(), 'USAGE')"
)
_MAY_CREATE = text("SELECT has_schema_privilege(CAST(:role AS name), current_schema(), 'CREATE')")
_EXISTS = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
_OWNS = text(
    "SELECT EXISTS (SELECT FROM pg_class WHERE oid = CAST(:table AS regclass)"
    " AND pg_has_role(CAST(:role AS name), relowner, 'MEMBER'))"
)
_OTHER_OWNERS = text(
    "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class"
    " WHERE oid = ANY (CAST(CAST(:tables AS text[]) AS regclass[]))"
    " AND NOT pg_has_role(relowner, 'USAGE')"
)


def _exists(connection: Connection, role: str) -> bool:
    return bool(connection.scalar(_EXISTS, {"role": role}))


def _owns(connection: Connection, role: str) -> bool:
    return bool(connection.scalar(_OWNS, {"role": role, "table": _VERSION_TABLE}))


def _beyond(connection: Connection, role: str, grants: Sequence[Grant]) -> list[str]:
    parameters = {"role": role, "tables": list(_TABLES)}
    held = [
        Grant(*row)
        for query in (_HELD_TABLES, _HELD_COLUMNS)
        for row in connection.execute(query, parameters)
    ]
    may_create = connection.scalar(_MAY_CREATE, {"role": role})
    beyond = [str(each) for each in held if each not in grants]
    return [*beyond, *(["CREATE on the schema"] if may_create else [])]


def _check_ownership(connection: Connection) -> None:
    """To others Postgres does not refuse a REVOKE: it warns, and does nothing."""
    if others := connection.scalars(_OTHER_OWNERS, {"tables": list(_TABLES)}).all():
        user = connection.scalar(text("SELECT current_user"))
        raise DatabaseAccessError(
            f"the Postgres user {user} does not own the tables and may not grant what is on them: "
            f"only {' and '.join(others)} may; name that user in postgres.url"
        )


def _no_such_role(setting: str, role: str) -> str:
    return f"{setting}: there is no role {role}; make it with CREATE ROLE, or correct the setting"


def _check_role(connection: Connection, setting: str, role: str) -> None:
    if not _exists(connection, role):
        raise DatabaseAccessError(_no_such_role(setting, role))
    if _owns(connection, role):
        raise DatabaseAccessError(
            f"{setting}: {role} owns the tables, may do anything with them and is not to be "
            "restricted; name another role, or leave the setting out"
        )
