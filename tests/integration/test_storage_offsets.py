"""Rows and offsets in one transaction, on a real Postgres: both, or neither, and by one writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import alembic.command
import asyncpg
import pytest
from alembic.config import Config
from sqlalchemy import Connection
from structlog.testing import capture_logs

import ratestream.storage.migrations
from ratestream.events import Average, Origin, Quote
from ratestream.storage import writer as writer_module
from ratestream.storage.database import Database, DatabaseOptions, upgrade
from ratestream.storage.errors import (
    DatabaseUnavailableError,
    StorageError,
    TopicMismatchError,
    UnstorableError,
)
from ratestream.storage.reader import Reader
from ratestream.storage.writer import Writer
from ratestream.streaming import ConfigurationError, FencedError, Move, TopicPartition
from tests.support.postgres import execute, fetch

NOW = datetime.now(UTC)
TOPIC = "processed-data"
IDS = {TOPIC: "cluster/topic"}
ZERO, ONE, TWO = (TopicPartition(TOPIC, number) for number in range(3))
WAITS_FOR_A_LOCK = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
INSERT_USDRUB = (
    "INSERT INTO quotes (pair, source, value, observed_at, received_at, "
    "origin_topic, origin_partition, origin_offset) "
    "VALUES ('USDRUB', 'demo', 27.8, now(), now(), 'src-data', 0, {offset})"
)


def quote(offset: int, partition: int = 0, value: str = "27.8", source: str = "demo") -> Quote:
    origin = Origin("src-data", partition, offset)
    return Quote("USDRUB", source, Decimal(value), NOW, NOW, origin)


def average(offset: int) -> Average:
    return Average("USDRUB", "demo", Decimal(1), 10, NOW, NOW, Origin("src-data", 0, offset))


def run(url: str, test: Callable[[Writer], Awaitable[None]], lock_timeout: float = 5.0) -> None:
    async def main() -> None:
        database = Database(url, DatabaseOptions("db_loader", lock_timeout=lock_timeout))
        try:
            await test(Writer(database))
        finally:
            await database.close()

    asyncio.run(main())


async def positions(writer: Writer) -> dict[TopicPartition, int]:
    return await writer.positions([ZERO, ONE, TWO], IDS)


async def positions_in_the_end(writer: Writer) -> dict[TopicPartition, int]:
    async with asyncio.timeout(20):
        while True:
            try:
                return await positions(writer)
            except DatabaseUnavailableError:  # as db_loader does
                await asyncio.sleep(0.05)


async def count(url: str, table: str = "quotes") -> int:
    return len(await fetch(url, f"SELECT FROM {table}"))


async def until_one_waits(url: str) -> int:
    async with asyncio.timeout(20):
        while not (waiting := await fetch(url, WAITS_FOR_A_LOCK)):
            await asyncio.sleep(0.01)
    return int(waiting[0]["pid"])


def test_offsets_move_with_the_rows(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        assert await positions(writer) == {}
        moves = [Move(ONE, None, 7), Move(ZERO, None, 5)]
        assert await writer.write_quotes([quote(1), quote(2)], moves) == 2
        assert await positions(writer) == {ZERO: 5, ONE: 7}
        assert await writer.write_averages([average(1)], [Move(ZERO, 5, 9)]) == 1
        assert await positions(writer) == {ZERO: 9, ONE: 7}

    run(database_url, test)


@pytest.mark.parametrize("start", [None, 4, 6])
def test_whoever_expects_another_offset_writes_nothing(
    database_url: str, start: int | None
) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        await writer.write_quotes([quote(1)], [Move(ZERO, None, 5), Move(ONE, None, 7)])
        refusal = rf"processed-data\[0\] stands at 5 and the batch starts at {start}:"
        with pytest.raises(FencedError, match=refusal):
            await writer.write_quotes([quote(2)], [Move(ONE, 7, 8), Move(ZERO, start, 6)])
        assert await positions(writer) == {ZERO: 5, ONE: 7}
        assert await count(database_url) == 1

    run(database_url, test)


def test_a_partition_that_was_never_asked_for_cannot_be_moved(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        with pytest.raises(FencedError):
            await writer.write_quotes([quote(1)], [Move(ZERO, None, 5)])
        assert await count(database_url) == 0

    run(database_url, test)


def test_of_two_at_the_same_offsets_one_writes_and_the_other_writes_nothing(
    database_url: str,
) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)

        async def write(source: str, at: int) -> int:
            moves = [Move(each, at or None, at + 1) for each in (ZERO, ONE)]
            random.shuffle(moves)
            return await writer.write_quotes([quote(at, source=source)], moves)

        for at in range(50):
            answers = await asyncio.gather(
                write("one", at), write("other", at), return_exceptions=True
            )
            assert sorted(map(str, map(type, answers))) == sorted(map(str, [int, FencedError]))
        assert await positions(writer) == {ZERO: 50, ONE: 50}
        assert await count(database_url) == 50

    run(database_url, test)


def test_under_load_every_row_is_written_by_one(database_url: str) -> None:
    """Not even tried twice: that the rows' key would refuse a second one does not count."""
    end, partitions = 300, (ZERO, ONE, TWO)

    async def test(writer: Writer) -> None:
        async def load() -> int:
            written = 0
            while True:
                stands = dict.fromkeys(partitions, 0) | await positions(writer)
                left = [each for each in partitions if stands[each] < end]
                if not left:
                    return written
                try:
                    while left:
                        moves = []
                        for each in random.sample(left, random.randint(1, len(left))):
                            start, to = stands[each], min(end, stands[each] + random.randint(1, 9))
                            moves.append(Move(each, start or None, to))
                        rows = [
                            quote(offset, move.partition.partition)
                            for move in moves
                            for offset in range(move.start or 0, move.next)
                        ]
                        assert await writer.write_quotes(rows, moves) == len(rows)
                        written += len(rows)
                        stands |= {move.partition: move.next for move in moves}
                        left = [each for each in partitions if stands[each] < end]
                except FencedError:
                    continue

        assert sum(await asyncio.gather(*(load() for _ in range(4)))) == end * len(partitions)
        assert await count(database_url) == end * len(partitions)

    run(database_url, test)


def test_whoever_dies_before_the_commit_has_written_neither(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        blocker = await asyncpg.connect(database_url)
        async with blocker.transaction():
            await blocker.execute(INSERT_USDRUB.format(offset=2))
            writing = asyncio.create_task(
                writer.write_quotes([quote(1), quote(2)], [Move(ZERO, None, 3)])
            )
            pid = await until_one_waits(database_url)  # the offset is moved, the rows half there
            await execute(database_url, f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(DatabaseUnavailableError, match="terminating connection"):
                await writing
        await blocker.close()
        assert await positions(writer) == {}
        assert [row["origin_offset"] for row in await fetch(database_url, "TABLE quotes")] == [2]

    run(database_url, test)


def test_a_second_attempt_waits_for_the_first_and_sees_what_became_of_it(
    database_url: str,
) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        blocker = await asyncpg.connect(database_url)
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute(INSERT_USDRUB.format(offset=2))
        attempts = [writer.write_quotes([quote(2)], [Move(ZERO, None, 3)]) for _ in range(2)]
        first = asyncio.create_task(attempts[0])
        await until_one_waits(database_url)
        second = asyncio.create_task(attempts[1])
        await transaction.rollback()
        answers = await asyncio.gather(first, second, return_exceptions=True)
        assert sorted(map(str, map(type, answers))) == sorted(map(str, [int, FencedError]))
        await blocker.close()
        assert await positions(writer) == {ZERO: 3}
        assert await count(database_url) == 1

    run(database_url, test)


def test_values_that_cannot_be_stored_leave_the_offsets(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        for bad in (quote(2, value="-1"), quote(2**63), quote(2, value="1E-16384")):
            with pytest.raises(UnstorableError):
                await writer.write_quotes([quote(1), bad], [Move(ZERO, None, 3)])
        assert await positions(writer) == {}
        assert await writer.write_quotes([], [Move(ZERO, None, 3)]) == 0
        assert await positions(writer) == {ZERO: 3}
        assert await count(database_url) == 0

    run(database_url, test)


def test_a_series_whose_first_rows_were_rolled_back_is_not_forgotten(database_url: str) -> None:
    async def main() -> None:
        database = Database(database_url)
        writer, reader = Writer(database), Reader(database)
        with pytest.raises(UnstorableError):
            await writer.write_quotes([quote(1), quote(2, value="-1")], [])
        await writer.write_quotes([quote(1)], [])
        assert len(await reader.newest_quotes("USDRUB", 10)) == 1
        await execute(database_url, "TRUNCATE series")  # as in a backup from before the first rows
        await positions(writer)
        await writer.write_quotes([quote(2)], [])
        assert len(await reader.newest_quotes("USDRUB", 10)) == 2
        await database.close()

    asyncio.run(main())


def test_rows_that_are_there_already_are_left_and_the_offsets_move(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        await writer.write_quotes([quote(1)], [])
        (before,) = await fetch(database_url, "TABLE quotes")
        with capture_logs() as logs:
            batch = [quote(1), quote(2), quote(2)]
            assert await writer.write_quotes(batch, [Move(ZERO, None, 3)]) == 1
            assert await writer.write_quotes([quote(2), quote(3)], [Move(ZERO, 3, 4)]) == 1
        assert [each["event"] for each in logs] == ["rows_repeated"]
        assert await positions(writer) == {ZERO: 4}
        after = await fetch(database_url, "SELECT * FROM quotes ORDER BY origin_offset")
        assert after[0] == before
        assert [row["origin_offset"] for row in after] == [1, 2, 3]

    run(database_url, test)


def test_offsets_of_a_topic_that_was_made_again_are_refused(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await writer.positions([ZERO], IDS)
        await writer.write_quotes([quote(1)], [Move(ZERO, None, 5)])
        with pytest.raises(TopicMismatchError, match=r"topic cluster/topic .* cluster/again") as it:
            await writer.positions([ZERO, ONE], {TOPIC: "cluster/again"})
        assert isinstance(it.value, StorageError)
        assert isinstance(it.value, ConfigurationError)
        assert await count(database_url, "consumer_offsets") == 1
        assert await writer.positions([ZERO], IDS) == {ZERO: 5}

    run(database_url, test)


async def stop_between_statements(stalled: asyncpg.Connection) -> None:
    await asyncio.Event().wait()


async def stop_in_a_copy(stalled: asyncpg.Connection) -> None:
    class Rows:
        """Comes to no end."""

        def __aiter__(self) -> Rows:
            return self

        async def __anext__(self) -> Sequence[str]:
            await asyncio.Event().wait()
            raise StopAsyncIteration

    await stalled.copy_records_to_table("series", records=Rows(), columns=["pair", "source"])


@pytest.mark.parametrize("stop", [stop_between_statements, stop_in_a_copy])
def test_whoever_takes_over_ends_the_transaction_of_one_that_has_stopped(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[asyncpg.Connection], Awaitable[None]],
) -> None:
    monkeypatch.setattr(writer_module, "_STALLED_SECONDS", 0.1)

    async def test(writer: Writer) -> None:
        await positions(writer)
        settings = {"application_name": "db_loader"}
        stalled = await asyncpg.connect(database_url, server_settings=settings)
        await stalled.execute("BEGIN")
        await stalled.execute("UPDATE consumer_offsets SET next_offset = 9")
        stopped = asyncio.ensure_future(stop(stalled))
        with pytest.raises(FencedError, match="lock timeout"):
            await writer.write_quotes([quote(1)], [Move(ZERO, None, 5)])
        with capture_logs() as logs:
            assert await positions_in_the_end(writer) == {}
        assert "stalled_transactions_ended" in [each["event"] for each in logs]
        assert await writer.write_quotes([quote(1)], [Move(ZERO, None, 5)]) == 1
        stopped.cancel()
        await asyncio.wait((stopped,))
        assert stalled.is_closed()

    run(database_url, test, lock_timeout=0.3)


def test_positions_are_those_after_a_transaction_that_is_still_open(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        other = await asyncpg.connect(database_url)
        async with other.transaction():
            await other.execute("UPDATE consumer_offsets SET next_offset = 9 WHERE partition = 1")
            asking = asyncio.create_task(positions(writer))
            await until_one_waits(database_url)
        assert await asking == {ONE: 9}
        await other.close()

    run(database_url, test)


def test_positions_do_not_wait_for_a_transaction_for_ever(database_url: str) -> None:
    async def test(writer: Writer) -> None:
        await positions(writer)
        other = await asyncpg.connect(database_url)
        async with other.transaction():
            await other.execute("UPDATE consumer_offsets SET next_offset = 9")
            with pytest.raises(DatabaseUnavailableError, match="lock timeout"):
                await positions(writer)
        await other.close()

    run(database_url, test, lock_timeout=0.1)


def test_others_that_stand_in_a_transaction_are_left_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "_STALLED_SECONDS", 0.0)

    async def test(writer: Writer) -> None:
        other = await asyncpg.connect(database_url, server_settings={"application_name": "psql"})
        async with other.transaction():
            await positions(writer)
            assert await other.fetchval("SELECT 1") == 1
        await other.close()

    run(database_url, test)


def test_a_database_from_before_offsets_were_kept_is_upgraded(empty_database: str) -> None:
    def make_the_old_one(connection: Connection) -> None:
        config = Config()
        folder = Path(ratestream.storage.migrations.__path__[0])
        config.set_main_option("script_location", str(folder))
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0001")

    async def test(writer: Writer) -> None:
        database = Database(empty_database)
        async with database.transaction() as connection:
            await connection.run_sync(make_the_old_one)
        await execute(empty_database, INSERT_USDRUB.format(offset=1))
        await execute(empty_database, "INSERT INTO series VALUES ('USDRUB', 'demo')")
        with pytest.raises(DatabaseUnavailableError, match="not migrated yet"):
            await writer.check()
        assert (await upgrade(empty_database)).found == "0001"
        await writer.check()
        assert await positions(writer) == {}
        assert await writer.write_quotes([quote(1), quote(2)], [Move(ZERO, None, 2)]) == 1
        assert len(await Reader(database).newest_quotes("USDRUB", 10)) == 2
        await database.close()

    run(empty_database, test)
