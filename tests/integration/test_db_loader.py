"""db_loader on a real Postgres, fed by the local broker."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from ratestream.storage.database import upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.errors import ClusterMismatchError, TopicMismatchError
from ratestream.streaming import (
    App,
    ConsumerConfig,
    ProducerConfig,
    TopicPartition,
    TopicSpec,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester, running
from tests.support.postgres import execute, fetch

NOW = datetime.now(UTC)
QUOTES = TopicPartition("processed-data", 0)
SUM_OF_OFFSETS = "SELECT sum(next_offset) FROM consumer_offsets WHERE topic = 'processed-data'"


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


async def offsets_of_quotes(url: str) -> list[int]:
    rows = await fetch(url, "SELECT origin_offset FROM quotes ORDER BY origin_offset")
    return [row["origin_offset"] for row in rows]


def broker_with(quotes: int) -> LocalBroker:
    """One whose quotes are in one partition, and so have the offsets of their snapshots."""
    broker = LocalBroker(None)
    broker.create_topics([TopicSpec("processed-data", partitions=1)])
    write(broker, range(quotes))
    return broker


def write(broker: LocalBroker, offsets: range) -> None:
    encode = loader("postgresql://nobody@127.0.0.1:1/nowhere").topics["processed-data"].encode
    producer = broker.producer(ProducerConfig())
    producer.send([encode("USDRUB", quote(each)) for each in offsets])
    producer.flush()
    producer.close()


def topic_id(broker: LocalBroker) -> str:
    topic = broker.describe_topics(["processed-data"])["processed-data"]
    return f"{broker.cluster_id()}/{topic.topic_id}"


async def stand_at(url: str, broker: LocalBroker, offset: int) -> None:
    """Postgres, as if everything before had been written."""
    await upgrade(url)
    insert = "INSERT INTO consumer_offsets VALUES ('processed-data', 0, '{}', {})"
    await execute(url, insert.format(topic_id(broker), offset))


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
            (stands,) = await fetch(empty_database, SUM_OF_OFFSETS)
            assert stands["sum"] == 20  # past the rejected ones, too

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


@pytest.mark.parametrize("committed", [None, 0, 1, 5])
def test_it_starts_where_postgres_stands_whatever_the_group_has_committed(
    empty_database: str, committed: int | None
) -> None:
    async def main() -> None:
        broker = broker_with(quotes=5)
        if committed is not None:
            consumer = broker.consumer(ConsumerConfig(group="db_loader"))
            consumer.commit({QUOTES: committed})
            consumer.close()
        await stand_at(empty_database, broker, 3)
        async with AppTester(loader(empty_database), broker):
            async with asyncio.timeout(20):
                while await count(empty_database, "quotes") < 2:
                    await asyncio.sleep(0.01)
        assert await offsets_of_quotes(empty_database) == [3, 4]
        broker.close()

    asyncio.run(main())


def test_a_restart_goes_on_where_the_last_one_stopped(empty_database: str) -> None:
    async def main() -> None:
        broker = broker_with(quotes=5)
        for end in (5, 8):
            async with AppTester(loader(empty_database), broker) as tester:
                await tester.settle()
                assert metric(tester.app, "ratestream_rows_repeated_total", table="quotes") == 0
            assert await offsets_of_quotes(empty_database) == list(range(end))
            write(broker, range(5, 8))
        broker.close()

    asyncio.run(main())


def test_rows_from_before_offsets_were_kept_stay_as_they_are(empty_database: str) -> None:
    async def main() -> None:
        broker = broker_with(quotes=5)
        async with AppTester(loader(empty_database), broker) as tester:
            await tester.settle()
        before = await fetch(empty_database, "SELECT * FROM quotes ORDER BY origin_offset")
        await execute(empty_database, "DELETE FROM consumer_offsets")
        consumer = broker.consumer(ConsumerConfig(group="db_loader"))
        consumer.commit({QUOTES: 2})
        consumer.close()
        write(broker, range(5, 7))
        async with AppTester(loader(empty_database), broker) as tester:
            await tester.settle()
            assert metric(tester.app, "ratestream_rows_repeated_total", table="quotes") == 3
            assert metric(tester.app, "ratestream_rows_written_total", table="quotes") == 2
        after = await fetch(empty_database, "SELECT * FROM quotes ORDER BY origin_offset")
        assert after[:5] == before
        assert len(after) == 7
        broker.close()

    asyncio.run(main())


def test_whoever_finds_that_another_was_there_goes_on_behind_it(empty_database: str) -> None:
    async def main() -> None:
        broker = broker_with(quotes=3)
        async with AppTester(loader(empty_database), broker) as tester:
            await tester.settle()
            await execute(
                empty_database,
                "UPDATE consumer_offsets SET next_offset = 5 WHERE topic = 'processed-data'",
            )
            write(broker, range(3, 7))
            await tester.settle()
        assert await offsets_of_quotes(empty_database) == [0, 1, 2, 5, 6]
        broker.close()

    asyncio.run(main())


def test_offsets_of_another_topic_of_the_name_stop_the_start(empty_database: str) -> None:
    async def main() -> None:
        broker = broker_with(quotes=1)
        await stand_at(empty_database, broker, 1)
        await execute(empty_database, "UPDATE consumer_offsets SET topic_id = 'deleted'")
        with pytest.raises(TopicMismatchError, match="keeps offsets of processed-data as topic de"):
            async with AppTester(loader(empty_database), broker) as tester:
                await tester.settle()
        broker.close()

    asyncio.run(main())


@asynccontextmanager
async def loses_answers(url: str, folder: Path, times: int) -> AsyncIterator[tuple[str, list[str]]]:
    """A way to Postgres that breaks `times` times, when rows have been committed and the answer
    is on its way; the list says how often it has."""
    lost: list[str] = []
    server_path = re.sub(r".*host=", "", url) + "/.s.PGSQL.5432"
    connections: set[asyncio.Task[None]] = set()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_unix_connection(server_path)
        has_copied = False

        async def ask() -> None:
            nonlocal has_copied
            while data := await reader.read(65536):
                has_copied |= b"COPY " in data
                to_writer.write(data)

        async def answer() -> None:
            while data := await to_reader.read(65536):
                if has_copied and b"COMMIT" in data and len(lost) < times:
                    lost.append("commit")
                    return
                writer.write(data)

        ways = [asyncio.create_task(each()) for each in (ask, answer)]
        connections.update(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in ways:
            each.cancel()
        writer.close()
        to_writer.close()

    server = await asyncio.start_unix_server(connect, folder / ".s.PGSQL.5432")
    yield re.sub(r"host=.*", f"host={folder}", url), lost
    server.close()
    for each in connections:
        each.cancel()


def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_repeated(
    empty_database: str, tmp_path: Path
) -> None:
    async def main() -> None:
        broker = broker_with(quotes=20)
        async with loses_answers(empty_database, tmp_path, times=3) as (url, lost):
            async with AppTester(loader(url, batch_max_rows=3), broker) as tester:
                await tester.settle()
                assert metric(tester.app, "ratestream_rows_repeated_total", table="quotes") == 0
            assert len(lost) == 3
        assert await offsets_of_quotes(empty_database) == list(range(20))
        broker.close()

    asyncio.run(main())
