"""db_loader on a real Postgres, fed by the local broker."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from ratestream.events import Average, Origin, Quote
from ratestream.services.db_loader import build
from ratestream.settings import DbLoaderSettings, PostgresSettings, RuntimeSettings, Settings
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.errors import ClusterMismatchError
from ratestream.streaming import App
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester, running
from tests.support.postgres import execute, fetch

NOW = datetime.now(UTC)


def quote(offset: int, pair: str = "USDRUB", value: str = "27.8") -> Quote:
    return Quote(pair, "demo", Decimal(value), NOW, NOW, Origin("src-data", 0, offset))


def average(offset: int, pair: str = "USDRUB", value: str = "27.8") -> Average:
    return Average(pair, "demo", Decimal(value), 10, NOW, NOW, Origin("src-data", 0, offset))


def loader(url: str, **options: Any) -> App:
    return build(
        Settings(
            postgres=PostgresSettings(url=SecretStr(url)),
            runtime=RuntimeSettings(retry_backoff_min=0.05, retry_backoff_max=0.2),
            db_loader=DbLoaderSettings(port=0, batch_seconds=0.02, **options),
        )
    )


async def count(url: str, table: str) -> int:
    return int((await fetch(url, f"SELECT count(*) AS n FROM {table}"))[0]["n"])


def metric(app: App, name: str, **labels: str) -> float:
    return app.registry.get_sample_value(name, labels) or 0.0


def test_quotes_and_averages_are_stored(empty_database: str) -> None:
    async def main() -> None:
        async with AppTester(loader(empty_database)) as tester:
            await tester.send("processed-data", quote(1, value="27.80"), key="USDRUB")
            await tester.send("aggregated-data", average(1, value="27.9"), key="USDRUB")
            await tester.settle()
            (stored,) = await fetch(empty_database, "SELECT * FROM quotes")
            assert (stored["pair"], str(stored["value"])) == ("USDRUB", "27.80")
            (stored,) = await fetch(empty_database, "SELECT * FROM averages")
            assert (str(stored["value"]), stored["window_fill"]) == ("27.9", 10)
            assert metric(tester.app, "ratestream_rows_written_total", table="quotes") == 1
            assert metric(tester.app, "ratestream_delay_seconds_count", table="averages") == 1
            assert metric(tester.app, "ratestream_database_up") == 1

    asyncio.run(main())


def test_the_size_of_the_database_and_its_connections_are_measured(empty_database: str) -> None:
    async def main() -> None:
        async with AppTester(loader(empty_database)) as tester:
            while math.isnan(metric(tester.app, "ratestream_database_size_bytes")):
                await asyncio.sleep(0.01)
            (row,) = await fetch(empty_database, "SELECT pg_database_size(current_database()) AS n")
            size = metric(tester.app, "ratestream_database_size_bytes")
            assert size == pytest.approx(row["n"], rel=0.2)
            assert metric(tester.app, "ratestream_database_connections") >= 1

    asyncio.run(main())


def test_a_database_that_was_not_measured_has_no_size() -> None:
    app = loader("postgresql://nobody@127.0.0.1:1/nowhere")
    assert math.isnan(metric(app, "ratestream_database_size_bytes"))
    assert math.isnan(metric(app, "ratestream_database_connections"))


def test_a_repeated_record_changes_nothing(empty_database: str) -> None:
    async def main() -> None:
        async with AppTester(loader(empty_database)) as tester:
            for _ in range(2):
                await tester.send("processed-data", quote(1), key="USDRUB")
                await tester.settle()
            assert await count(empty_database, "quotes") == 1
            assert metric(tester.app, "ratestream_rows_repeated_total", table="quotes") == 1

    asyncio.run(main())


def test_what_cannot_be_stored_goes_to_the_dead_letters_alone(empty_database: str) -> None:
    async def main() -> None:
        async with AppTester(loader(empty_database)) as tester:
            for offset in range(20):
                bad = offset in (3, 11)
                await tester.send("processed-data", quote(offset, value="-1" if bad else "27.8"))
            await tester.settle()
            assert await count(empty_database, "quotes") == 18
            rejected = tester.records("dead-letter")
            assert len(rejected) == 2
            headers = dict(rejected[0].headers)
            assert headers["topic"] == b"processed-data"
            assert b"value_is_a_rate" in headers["reason"]
            assert rejected[0].value is not None
            assert b'"value":"-1"' in rejected[0].value

    asyncio.run(main())


def test_two_loaders_store_each_quote_once(empty_database: str) -> None:
    async def main() -> None:
        broker = LocalBroker(None)
        async with running(loader(empty_database), loader(empty_database), broker=broker) as (
            one,
            other,
        ):
            for offset in range(200):
                await one.send("processed-data", quote(offset), key=f"PAIR{offset % 40:02}")
            await one.settle()
            await other.settle()
            assert await count(empty_database, "quotes") == 200
        broker.close()

    asyncio.run(main())


def test_a_restart_of_postgres_loses_nothing(tmp_path: Path) -> None:
    async def main(server: EmbeddedPostgres) -> None:
        async with AppTester(loader(server.url)) as tester:
            await tester.send("processed-data", quote(1), key="USDRUB")
            await tester.settle()
            while math.isnan(metric(tester.app, "ratestream_database_size_bytes")):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(server.stop)
            for offset in range(1, 50):
                await tester.send("processed-data", quote(offset), key="USDRUB")
            while metric(tester.app, "ratestream_database_up"):
                await asyncio.sleep(0.01)
            assert math.isnan(metric(tester.app, "ratestream_database_size_bytes"))
            assert math.isnan(metric(tester.app, "ratestream_database_connections"))
            async with httpx.AsyncClient(base_url=tester.worker.address) as client:
                answer = await client.get("/health/ready")
            assert answer.status_code == 503
            assert any("postgres" in reason for reason in answer.json()["reasons"])
            await asyncio.to_thread(server.start)
            await tester.settle()
            assert await count(server.url, "quotes") == 49
            assert metric(tester.app, "ratestream_database_up") == 1
            assert tester.worker.readiness() == []

    with EmbeddedPostgres(tmp_path / "pg") as server:
        asyncio.run(main(server))


def test_a_postgres_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    async def main(server: EmbeddedPostgres) -> None:
        await asyncio.to_thread(server.stop)
        tester = AppTester(loader(server.url))
        starting = asyncio.create_task(tester.__aenter__())
        while "connected yet" in str(tester.app.readiness_checks["postgres"]()):
            await asyncio.sleep(0.01)
        assert tester.app.readiness_checks["postgres"]() is not None
        await asyncio.to_thread(server.start)
        await starting
        await tester.send("processed-data", quote(1), key="USDRUB")
        await tester.settle()
        assert await count(server.url, "quotes") == 1
        await tester.__aexit__()

    with EmbeddedPostgres(tmp_path / "pg") as server:
        asyncio.run(main(server))


def test_a_database_of_another_cluster_stops_the_start(database_url: str) -> None:
    async def main() -> None:
        await execute(database_url, "INSERT INTO origin_cluster (cluster_id) VALUES ('other')")
        tester = AppTester(loader(database_url))
        for step in (tester.__aenter__, tester.__aexit__):
            with pytest.raises(ClusterMismatchError, match="cluster other"):
                await step()

    asyncio.run(main())
