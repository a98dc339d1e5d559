"""`ratestream db`: bring the schema up to date, and say how it is."""

from __future__ import annotations

import msgspec

from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity
from ratestream.settings import PostgresSettings
from ratestream.storage.database import SchemaState, check, upgrade
from ratestream.storage.errors import SchemaError


class Upgraded(msgspec.Struct, frozen=True):
    """The schema's version before (None for an empty database) and after, and the roles that were
    granted what they need."""

    before: str | None
    after: str
    roles: list[str]


class UpgradeDatabase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Bring the schema to this program's version, and grant to the roles of the settings exactly
    what they need. Safe to repeat, and to run twice at once."""

    async def run(self, deployment: Deployment) -> Upgraded:
        postgres = deployment.settings.postgres
        before = await upgrade(postgres.dsn(), postgres.roles())
        granted = [role for role in (postgres.loader_role, postgres.gateway_role) if role]
        return Upgraded(before.found, before.head, granted)


class CheckDatabase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The schema's version, the grants of the settings' roles, and whose rows there are."""

    async def run(self, deployment: Deployment) -> list[Finding]:
        postgres = deployment.settings.postgres
        try:
            state = await check(postgres.dsn(), postgres.roles())
        except SchemaError as error:
            return [Finding("schema", Severity.WRONG, str(error))]
        return [_version(state), *_grants(state, postgres), *_owner(state)]


def _version(state: SchemaState) -> Finding:
    if state.is_current:
        return Finding("schema", Severity.OK, f"has version {state.head}, the newest")
    found = f"has version {state.found}" if state.found else "is not there yet"
    return Finding(
        "schema",
        Severity.WRONG,
        f"{found}, this ratestream needs {state.head}",
        "run ratestream db upgrade",
    )


def _grants(state: SchemaState, postgres: PostgresSettings) -> list[Finding]:
    if state.missing:
        return [
            Finding("grants", Severity.WRONG, each, "run ratestream db upgrade")
            for each in state.missing
        ]
    roles = [role for role in (postgres.loader_role, postgres.gateway_role) if role]
    if not (roles and state.is_current):
        return []
    return [Finding("grants", Severity.OK, f"{' and '.join(roles)} may do what they need")]


def _owner(state: SchemaState) -> list[Finding]:
    if state.cluster_id is None:
        return []
    text = f"the rows are those of Kafka cluster {state.cluster_id}"
    return [Finding("cluster", Severity.OK, text)]
