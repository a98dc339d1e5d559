"""`ratestream db`: bring the schema up to date, and say how it is."""

from __future__ import annotations

import msgspec

from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity
from ratestream.settings import PostgresSettings
from ratestream.storage.database import SchemaState, check, upgrade
from ratestream.storage.errors import SchemaError

_UPGRADE = "run ratestream db upgrade"
_TAKE_AWAY = "run ratestream db upgrade; what it leaves comes from another role: take it away there"


class Upgraded(msgspec.Struct, frozen=True):
    """The schema's version before (None for an empty database) and after, the roles that were
    granted what they need, and what these have beyond it from others, a line for each."""

    before: str | None
    after: str
    roles: list[str]
    excess: list[str]


class UpgradeDatabase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Bring the schema to this program's version, and grant to the roles of the settings exactly
    what they need. Safe to repeat, and to run twice at once."""

    async def run(self, deployment: Deployment) -> Upgraded:
        postgres = deployment.settings.postgres
        before = await upgrade(postgres.dsn(), postgres.roles())
        after = await check(postgres.dsn(), postgres.roles())
        return Upgraded(before.found, after.head, _named(postgres), list(after.excess))


class CheckDatabase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """The schema's version, the grants of the settings' roles, and whose rows there are."""

    async def run(self, deployment: Deployment) -> list[Finding]:
        return [*await schema(deployment), await cluster(deployment)]


async def schema(deployment: Deployment) -> list[Finding]:
    """The schema's version and the grants of the settings' roles. Raises `StorageError`."""
    postgres = deployment.settings.postgres
    try:
        state = await check(postgres.dsn(), postgres.roles())
    except SchemaError as error:
        return [Finding("schema", Severity.WRONG, str(error))]
    return [_version(state), *_grants(state, postgres)]


async def cluster(deployment: Deployment, ours: str | None = None) -> Finding:
    """Whose rows there are, and whether they are those of our Kafka cluster, when that is known.
    Raises `StorageError`."""
    try:
        state = await check(deployment.settings.postgres.dsn())
    except SchemaError:
        return Finding("cluster", Severity.SKIPPED, "see schema")
    if not state.is_current:
        return Finding("cluster", Severity.SKIPPED, "see schema")
    if not state.sees_cluster:
        text = f"the Postgres user {state.user} may not read origin_cluster"
        advice = "ask as the user that upgrades the schema"
        return Finding("cluster", Severity.SKIPPED, text, advice)
    if state.cluster_id is None:
        text = "there are no rows of any Kafka cluster yet"
        return Finding("cluster", Severity.OK, text)
    if ours in (None, state.cluster_id):
        text = f"the rows are those of Kafka cluster {state.cluster_id}"
        return Finding("cluster", Severity.OK, text)
    return Finding(
        "cluster",
        Severity.WRONG,
        f"the rows in Postgres are of Kafka cluster {state.cluster_id}, and this is {ours}",
        "connect to that cluster, or give postgres.url an empty database",
    )


def _version(state: SchemaState) -> Finding:
    if state.is_current:
        return Finding("schema", Severity.OK, f"has version {state.head}, the newest")
    found = f"has version {state.found}" if state.found else "is not there yet"
    return Finding(
        "schema",
        Severity.WRONG,
        f"{found}, this ratestream needs {state.head}",
        _UPGRADE,
    )


def _grants(state: SchemaState, postgres: PostgresSettings) -> list[Finding]:
    findings = [
        *(Finding("grants", Severity.WRONG, each, _UPGRADE) for each in state.missing),
        *(Finding("grants", Severity.WARNING, each, _TAKE_AWAY) for each in state.excess),
    ]
    roles = _named(postgres)
    if findings or not (roles and state.is_current):
        return findings
    text = f"{' and '.join(roles)} may do what they need, and nothing else"
    return [Finding("grants", Severity.OK, text)]


def _named(postgres: PostgresSettings) -> list[str]:
    return [role for role in (postgres.loader_role, postgres.gateway_role) if role]
