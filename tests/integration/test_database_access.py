"""What db_loader and api_gateway do when Postgres refuses them: end at the start, wait later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from ratestream.events import Origin, Quote
from ratestream.services import api_gateway, db_loader
from ratestream.settings import (
    ApiGatewaySettings,
    DbLoaderSettings,
    PostgresSettings,
    RuntimeSettings,
    Settings,
)
from ratestream.storage.database import check, upgrade
from ratestream.storage.errors import DatabaseAccessError
from ratestream.storage.roles import Roles
from ratestream.streaming import App
from ratestream.streaming.testing import AppTester
from tests.support.postgres import as_user, execute, fetch
from tests.support.processes import ServiceProcess

NOW = datetime.now(UTC)


def quote(offset: int) -> Quote:
    return Quote("USDRUB", "demo", Decimal("27.8"), NOW, NOW, Origin("src-data", 0, offset))


def settings(url: str, **postgres: Any) -> Settings:
    return Settings(
        postgres=PostgresSettings(url=SecretStr(url), **postgres),
        runtime=RuntimeSettings(retry_backoff_min=0.05, retry_backoff_max=0.2),
        db_loader=DbLoaderSettings(port=0, batch_seconds=0.02),
        api_gateway=ApiGatewaySettings(port=0),
    )


@pytest.fixture
def roles(empty_database: str) -> Iterator[Roles]:
    """That may log in and do nothing yet."""
    found = Roles("the_loader", "the_gateway")
    asyncio.run(
        execute(empty_database, "CREATE ROLE the_loader LOGIN; CREATE ROLE the_gateway LOGIN")
    )
    yield found
    asyncio.run(execute(empty_database, "DROP OWNED BY the_loader, the_gateway"))
    asyncio.run(execute(empty_database, "DROP ROLE the_loader, the_gateway"))


async def refuse_to_start(app: App, reason: str) -> None:
    tester = AppTester(app)
    for step in (tester.__aenter__, tester.__aexit__):
        with pytest.raises(DatabaseAccessError, match=reason):
            await step()


@pytest.mark.parametrize("service", [db_loader, api_gateway])
def test_a_refused_login_stops_the_start(database_url: str, service: Any) -> None:
    app = service.build(settings(as_user(database_url, "stranger")))
    asyncio.run(refuse_to_start(app, 'no access to Postgres: role "stranger" does not exist'))


@pytest.mark.parametrize(
    ("service", "user"), [(db_loader, "the_loader"), (api_gateway, "the_gateway")]
)
def test_a_role_without_privileges_stops_the_start(
    database_url: str, roles: Roles, service: Any, user: str
) -> None:
    app = service.build(settings(as_user(database_url, user), migrate=False))
    asyncio.run(refuse_to_start(app, "permission denied for table alembic_version"))


def test_a_loader_that_may_not_migrate_stops_the_start(empty_database: str, roles: Roles) -> None:
    app = db_loader.build(settings(as_user(empty_database, "the_loader")))
    asyncio.run(refuse_to_start(app, "permission denied for schema public"))


def test_the_services_run_as_their_roles(empty_database: str, roles: Roles) -> None:
    async def main() -> None:
        await upgrade(empty_database, roles)
        loader = db_loader.build(settings(as_user(empty_database, "the_loader"), migrate=False))
        gateway = api_gateway.build(settings(as_user(empty_database, "the_gateway")))
        async with AppTester(loader) as writing, AppTester(gateway) as reading:
            await writing.send("processed-data", quote(1), key="USDRUB")
            await writing.settle()
            async with httpx.AsyncClient(base_url=reading.worker.address) as client:
                answer = await client.get("/pairs/currencies", params={"pair_name": "USDRUB"})
                assert (answer.status_code, len(answer.json()["items"])) == (200, 1)

    asyncio.run(main())


def test_a_loader_that_migrates_grants_to_the_roles(empty_database: str, roles: Roles) -> None:
    async def main() -> None:
        app = db_loader.build(settings(empty_database, gateway_role="the_gateway"))
        async with AppTester(app):
            state = await check(empty_database, Roles(gateway=roles.gateway))
            assert (state.is_current, state.missing) == (True, ())

    asyncio.run(main())


def test_a_loader_that_does_not_migrate_waits_for_whoever_does(empty_database: str) -> None:
    async def main() -> None:
        tester = AppTester(db_loader.build(settings(empty_database, migrate=False)))
        starting = asyncio.create_task(tester.__aenter__())
        while "not migrated yet" not in str(tester.app.readiness_checks["postgres"]()):
            await asyncio.sleep(0.01)
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        assert await fetch(empty_database, tables) == []
        await upgrade(empty_database)
        await starting
        await tester.send("processed-data", quote(1), key="USDRUB")
        await tester.settle()
        assert len(await fetch(empty_database, "SELECT FROM quotes")) == 1
        await tester.__aexit__()

    asyncio.run(main())


def test_a_login_that_is_refused_later_is_waited_for(empty_database: str, roles: Roles) -> None:
    async def lock_out() -> None:
        await execute(
            empty_database, "ALTER ROLE the_loader NOLOGIN; ALTER ROLE the_gateway NOLOGIN"
        )
        await execute(
            empty_database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'the%'",
        )

    async def main() -> None:
        await upgrade(empty_database, roles)
        loader = db_loader.build(settings(as_user(empty_database, "the_loader"), migrate=False))
        gateway = api_gateway.build(settings(as_user(empty_database, "the_gateway")))
        async with AppTester(loader) as writing, AppTester(gateway) as reading:
            await lock_out()
            await writing.send("processed-data", quote(1), key="USDRUB")
            while "not permitted to log in" not in str(loader.readiness_checks["postgres"]()):
                await asyncio.sleep(0.01)
            async with httpx.AsyncClient(base_url=reading.worker.address) as client:
                assert (await client.get("/pairs")).status_code == 503
                await execute(
                    empty_database, "ALTER ROLE the_loader LOGIN; ALTER ROLE the_gateway LOGIN"
                )
                await writing.settle()
                assert len((await client.get("/pairs")).json()["items"]) == 1

    asyncio.run(main())


@pytest.mark.parametrize("service", ["db_loader", "api_gateway"])
def test_a_service_that_is_refused_ends_with_one_line(
    database_url: str, tansu_address: str, tmp_path: Path, service: str
) -> None:
    process = ServiceProcess(
        service,
        tansu_address,
        tmp_path,
        {"RATESTREAM_POSTGRES__URL": as_user(database_url, "stranger")},
    ).start()
    assert process.process is not None
    assert process.process.wait(timeout=60) == 1
    told = [line for line in process.output().splitlines() if "stranger" in line]
    assert told == [
        'ratestream: no access to Postgres: role "stranger" does not exist; check the user in '
        "postgres.url, and postgres.password"
    ]
    assert "Traceback" not in process.output()
