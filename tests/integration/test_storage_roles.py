"""Three roles on a real Postgres: each can do all that its service does, and nothing else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from ratestream.events import Average, Origin, Quote
from ratestream.storage.database import Database, DatabaseOptions, check, upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.errors import DatabaseAccessError, DatabaseUnavailableError
from ratestream.storage.reader import Reader
from ratestream.storage.roles import Roles
from ratestream.storage.writer import Writer
from ratestream.streaming import Move, TopicPartition
from tests.support.postgres import as_user, execute, fetch, new_database

NOW = datetime.now(UTC)
_numbers = itertools.count()


def quote(offset: int, received_at: datetime = NOW) -> Quote:
    origin = Origin("src-data", 0, offset)
    return Quote("USDRUB", "demo", Decimal("27.8"), NOW, received_at, origin)


def average(offset: int, received_at: datetime = NOW) -> Average:
    origin = Origin("src-data", 0, offset)
    return Average("USDRUB", "demo", Decimal("27.8"), 10, NOW, received_at, origin)


@dataclass(frozen=True)
class Deployment:
    """An empty database, made as docs/security.md says, with its three roles."""

    admin_url: str
    owner: str
    loader: str
    gateway: str

    @property
    def roles(self) -> Roles:
        return Roles(self.loader, self.gateway)

    @property
    def as_owner(self) -> str:
        return self._url(self.owner)

    @property
    def as_loader(self) -> str:
        return self._url(self.loader)

    @property
    def as_gateway(self) -> str:
        return self._url(self.gateway)

    def _url(self, role: str) -> str:
        return as_user(self.admin_url, role.replace(" ", "%20"))


@pytest.fixture
def deployment(postgres: EmbeddedPostgres) -> Iterator[Deployment]:
    number = next(_numbers)
    made = Deployment(
        asyncio.run(new_database(postgres)),
        *(f"Role {each} {number}" for each in ("owner", "loader", "gateway")),
    )
    owner, loader, gateway = (f'"{name}"' for name in (made.owner, made.loader, made.gateway))
    database = made.admin_url.split("?")[0].rsplit("/", 1)[1]
    make = f"""
        CREATE ROLE {owner} LOGIN;
        CREATE ROLE {loader} LOGIN;
        CREATE ROLE {gateway} LOGIN;
        ALTER DATABASE {database} OWNER TO {owner};
        REVOKE ALL ON DATABASE {database} FROM PUBLIC;
        GRANT CONNECT ON DATABASE {database} TO {loader}, {gateway};
    """
    remove = f"""
        REASSIGN OWNED BY {owner} TO CURRENT_USER;
        DROP OWNED BY {owner}, {loader}, {gateway};
        DROP ROLE {owner}, {loader}, {gateway};
    """
    asyncio.run(execute(made.admin_url, make))
    yield made
    asyncio.run(execute(made.admin_url, remove))


@asynccontextmanager
async def opened(url: str, options: DatabaseOptions | None = None) -> AsyncIterator[Database]:
    database = Database(url, options)
    try:
        yield database
    finally:
        await database.close()


async def refused(url: str, *statements: str) -> None:
    """Each of them, alone, for want of a privilege."""
    for statement in statements:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(url, statement)


FOR_THE_OWNER_ONLY = (
    "CREATE TABLE other (id int)",
    "CREATE TEMPORARY TABLE other (id int)",
    "ALTER TABLE quotes ADD COLUMN note text",
    "DROP TABLE quotes",
    "TRUNCATE quotes",
    "CREATE TRIGGER t BEFORE INSERT ON quotes EXECUTE "
    "FUNCTION suppress_redundant_updates_trigger()",
    "UPDATE quotes SET value = 1",
    "UPDATE averages SET value = 1",
    "UPDATE quotes SET stored_at = now()",
    "UPDATE series SET source = 'other'",
    "UPDATE origin_cluster SET cluster_id = 'other'",
    "UPDATE alembic_version SET version_num = '0'",
    "DELETE FROM alembic_version",
    "DELETE FROM series",
    "DELETE FROM origin_cluster",
    "UPDATE consumer_offsets SET topic_id = 'other'",
    "DELETE FROM consumer_offsets",
    "SELECT FROM quotes FOR UPDATE",
)


def test_the_migrations_role_is_no_superuser_and_upgrades_from_nothing(
    deployment: Deployment,
) -> None:
    async def main() -> None:
        state = await upgrade(deployment.as_owner, deployment.roles)
        assert (state.found, state.is_current, state.user) == (
            None,
            False,
            deployment.owner,
        )
        state = await check(deployment.as_owner, deployment.roles)
        assert (state.found, state.missing, state.cluster_id) == (state.head, (), None)

    asyncio.run(main())


def test_the_loader_can_write_and_nothing_else(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner, deployment.roles)
        async with opened(deployment.as_loader) as database:
            writer = Writer(database)
            await writer.check()
            await writer.claim_cluster("one")
            await writer.claim_cluster("one")
            old = NOW - timedelta(days=2)
            quotes, averages = TopicPartition("quotes", 0), TopicPartition("averages", 0)
            ids = {"quotes": "one/quotes", "averages": "one/averages"}
            assert await writer.positions([quotes, averages], ids) == {}
            for start, end in ((None, 2), (2, 4)):
                moves = [Move(quotes, start, end)]
                await writer.write_quotes([quote(1), quote(2, old)], moves)
                moves = [Move(averages, start, end)]
                await writer.write_averages([average(1), average(2, old)], moves)
            assert await writer.positions([quotes, averages], ids) == {quotes: 4, averages: 4}
            assert await writer.delete_older_than(1) == 2
        await refused(
            deployment.as_loader,
            *FOR_THE_OWNER_ONLY,
            "SELECT value FROM quotes",
            "SELECT * FROM averages",
        )

    asyncio.run(main())


def test_the_gateway_can_read_and_nothing_else(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner, deployment.roles)
        async with opened(deployment.as_loader) as database:
            await Writer(database).write_quotes([quote(1)], [])
            await Writer(database).write_averages([average(1)], [])
        async with opened(deployment.as_gateway, DatabaseOptions(read_only=True)) as database:
            reader = Reader(database)
            await reader.check()
            assert len(await reader.newest_quotes("USDRUB", 10)) == 1
            assert len(await reader.current_averages(10)) == 1
            assert len(await reader.pairs(10)) == 1
            assert await reader.knows("USDRUB")
        await refused(
            deployment.as_gateway,
            *FOR_THE_OWNER_ONLY,
            "SELECT * FROM origin_cluster",
            "SELECT * FROM consumer_offsets",
            "UPDATE consumer_offsets SET next_offset = 0",
            "DELETE FROM quotes",
            "INSERT INTO series (pair, source) VALUES ('EURRUB', 'demo')",
        )

    asyncio.run(main())


def test_what_a_role_has_too_much_is_taken_from_it(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner)
        loader = deployment.loader
        await execute(
            deployment.as_owner,
            f'GRANT ALL ON quotes TO PUBLIC; GRANT ALL ON quotes TO "{loader}"',
        )
        await upgrade(deployment.as_owner, deployment.roles)
        await refused(
            deployment.as_loader,
            "UPDATE quotes SET value = 1",
            "SELECT value FROM quotes",
        )

    asyncio.run(main())


def test_what_a_role_lacks_is_named(deployment: Deployment) -> None:
    async def main() -> None:
        loader, gateway = deployment.loader, deployment.gateway
        await upgrade(deployment.as_owner, deployment.roles)
        await execute(
            deployment.as_owner,
            f'REVOKE INSERT ON averages FROM "{loader}";'
            f'REVOKE SELECT (ctid) ON quotes FROM "{loader}";'
            f'REVOKE SELECT ON series FROM "{gateway}"',
        )
        state = await check(deployment.as_owner, deployment.roles)
        assert state.missing == (
            f"postgres.loader_role: {loader} lacks INSERT on averages, SELECT on quotes.ctid",
            f"postgres.gateway_role: {gateway} lacks SELECT on series",
        )
        async with opened(deployment.as_loader) as database:
            with pytest.raises(DatabaseAccessError, match="lacks INSERT on averages, SELECT"):
                await Writer(database).check()
        async with opened(deployment.as_gateway) as database:
            with pytest.raises(DatabaseAccessError, match="lacks SELECT on series: name it as"):
                await Reader(database).check()
        await upgrade(deployment.as_owner, deployment.roles)
        assert (await check(deployment.as_owner, deployment.roles)).missing == ()

    asyncio.run(main())


def test_without_the_schema_a_role_is_told_so(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner, deployment.roles)
        await execute(deployment.as_owner, "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
        async with opened(deployment.as_loader) as database:
            await Writer(database).check()
        await execute(
            deployment.as_owner,
            f'REVOKE USAGE ON SCHEMA public FROM "{deployment.loader}"',
        )
        async with opened(deployment.as_loader) as database:
            with pytest.raises(DatabaseAccessError, match="may use no schema"):
                await Writer(database).check()

    asyncio.run(main())


def test_the_cluster_is_told_to_those_who_may_see_it(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner, deployment.roles)
        async with opened(deployment.as_loader) as database:
            await Writer(database).claim_cluster("one")
        state = await check(deployment.as_owner)
        assert (state.cluster_id, state.sees_cluster) == ("one", True)
        state = await check(deployment.as_gateway)
        assert (state.cluster_id, state.sees_cluster) == (None, False)

    asyncio.run(main())


@pytest.mark.parametrize("name", ["nobody here", "public"])
def test_a_role_that_does_not_exist_stops_the_upgrade(deployment: Deployment, name: str) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseAccessError, match=rf"gateway_role: there is no role {name};"):
            await upgrade(deployment.as_owner, Roles(gateway=name))
        assert (await check(deployment.as_owner)).found is None
        await upgrade(deployment.as_owner)
        state = await check(deployment.as_owner, Roles(gateway=name))
        assert len(state.missing) == 1

    asyncio.run(main())


def test_the_owner_is_not_restricted(deployment: Deployment) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseAccessError, match=r"loader_role: .* owns the tables"):
            await upgrade(deployment.as_owner, Roles(loader=deployment.owner))

    asyncio.run(main())


def test_whoever_does_not_own_the_tables_is_told_who_does(deployment: Deployment) -> None:
    async def main() -> None:
        roles = Roles(gateway=deployment.gateway)
        await upgrade(deployment.as_owner, deployment.roles)
        for grants in ("SELECT", f'GRANT DELETE ON quotes TO "{deployment.gateway}"'):
            await execute(deployment.as_owner, grants)
            with pytest.raises(
                DatabaseAccessError,
                match=f"{deployment.loader} does not own the tables .*: only {deployment.owner}",
            ):
                await upgrade(deployment.as_loader, roles)

    asyncio.run(main())


def test_what_a_role_has_beyond_its_need_is_named(deployment: Deployment) -> None:
    async def main() -> None:
        loader, gateway = deployment.loader, deployment.gateway
        await upgrade(deployment.as_owner, deployment.roles)
        assert (await check(deployment.as_owner, deployment.roles)).excess == ()
        await execute(
            deployment.as_owner,
            f'GRANT DELETE ON quotes TO "{gateway}"; GRANT CREATE ON SCHEMA public TO "{gateway}";'
            f'GRANT SELECT (value), UPDATE (value) ON quotes TO "{loader}"',
        )
        state = await check(deployment.as_owner, deployment.roles)
        assert state.excess == (
            f"postgres.loader_role: {loader} also has SELECT on quotes.value, "
            "UPDATE on quotes.value",
            f"postgres.gateway_role: {gateway} also has DELETE on quotes, CREATE on the schema",
        )
        await upgrade(deployment.as_owner, deployment.roles)
        assert (await check(deployment.as_owner, deployment.roles)).excess == ()

    asyncio.run(main())


def test_what_a_role_has_from_another_role_is_named_too(deployment: Deployment) -> None:
    async def main() -> None:
        await execute(deployment.admin_url, f'GRANT pg_write_all_data TO "{deployment.gateway}"')
        await upgrade(deployment.as_owner, deployment.roles)
        (line,) = (await check(deployment.as_owner, deployment.roles)).excess
        assert "UPDATE on quotes" in line

    asyncio.run(main())


def test_a_role_that_may_do_anything_is_named(deployment: Deployment) -> None:
    async def main() -> None:
        await upgrade(deployment.as_owner)
        state = await check(deployment.as_owner, Roles(loader=deployment.owner))
        assert state.excess == (
            f"postgres.loader_role: {deployment.owner} owns the tables, or is a superuser, and may "
            "do anything with them",
        )

    asyncio.run(main())


def test_a_role_may_not_upgrade(deployment: Deployment) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseAccessError, match="permission denied for schema public"):
            await upgrade(deployment.as_loader)
        async with opened(deployment.as_loader) as database:
            with pytest.raises(DatabaseUnavailableError, match="not migrated yet"):
                await Writer(database).check()
        tables = "SELECT FROM pg_tables WHERE tablename = 'quotes'"
        assert await fetch(deployment.admin_url, tables) == []

    asyncio.run(main())
