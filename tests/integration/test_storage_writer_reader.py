"""Writing and reading on a real Postgres."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from ratestream.events import Average, Origin, Quote
from ratestream.storage.database import Database
from ratestream.storage.errors import (
    ClusterMismatchError,
    DatabaseUnavailableError,
    UnstorableError,
)
from ratestream.storage.reader import Reader, StoredQuote
from ratestream.storage.writer import Writer
from tests.support.postgres import fetch

NOW = datetime.now(UTC).replace(microsecond=123456)
WAITS_FOR_A_LOCK = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
END_WHO_WAITS = WAITS_FOR_A_LOCK.replace("FROM", "pg_terminate_backend(pid) FROM", 1)


def quote(
    offset: int,
    pair: str = "USDRUB",
    value: str = "27.8",
    source: str = "demo",
    received_at: datetime | None = None,
) -> Quote:
    received = received_at or NOW + timedelta(seconds=offset)
    origin = Origin("src-data", 0, offset)
    return Quote(pair, source, Decimal(value), NOW - timedelta(days=7000), received, origin)


def average(offset: int, pair: str = "USDRUB", value: str = "1.5", source: str = "demo") -> Average:
    of = quote(offset, pair, value, source)
    return Average(pair, source, of.value, 3, of.observed_at, of.received_at, of.origin)


@asynccontextmanager
async def storage(url: str) -> AsyncIterator[tuple[Writer, Reader]]:
    database = Database(url)
    try:
        yield Writer(database), Reader(database)
    finally:
        await database.close()


def run(url: str, test: Callable[[Writer, Reader], Awaitable[None]]) -> None:
    async def main() -> None:
        async with storage(url) as (writer, reader):
            await test(writer, reader)

    asyncio.run(main())


def values(found: list[StoredQuote]) -> list[str]:
    return [str(each.value) for each in found]


def test_a_batch_written_twice_changes_nothing(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        batch = [quote(1), quote(1, "EURRUB"), quote(2)]
        assert await writer.write_quotes(batch, []) == 3
        before = await reader.newest_quotes("USDRUB", 10)
        assert await writer.write_quotes(batch, []) == 0
        assert await reader.newest_quotes("USDRUB", 10) == before

    run(database_url, test)


@pytest.mark.parametrize("rows", [1_000, 1_001, 2_345])
def test_every_row_of_a_large_batch_is_written(database_url: str, rows: int) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        odd = rows - 1
        batch = [quote(each, source='a "b"' if each == odd else "demo") for each in range(rows)]
        assert await writer.write_quotes(batch, []) == rows
        stored = await fetch(database_url, "SELECT origin_offset, source FROM quotes ORDER BY 1")
        assert [row["origin_offset"] for row in stored] == list(range(rows))
        assert [row["source"] for row in stored][-2:] == ["demo", 'a "b"']

    run(database_url, test)


@pytest.mark.parametrize("there", [quote(0), quote(2_344)], ids=["first", "last"])
def test_one_row_that_is_there_keeps_none_of_a_large_batch_out(
    database_url: str, there: Quote
) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes([there], [])
        assert await writer.write_quotes([quote(each) for each in range(2_345)], []) == 2_344
        assert len(await fetch(database_url, "SELECT 1 FROM quotes")) == 2_345

    run(database_url, test)


@pytest.mark.parametrize("bad", [0, 1_500, 2_344])
def test_one_bad_row_keeps_all_of_a_large_batch_out(database_url: str, bad: int) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        values = ("-1" if each == bad else "1" for each in range(2_345))
        with pytest.raises(UnstorableError):
            await writer.write_quotes([quote(at, value=each) for at, each in enumerate(values)], [])
        assert await fetch(database_url, "SELECT 1 FROM quotes") == []
        assert await writer.write_quotes([quote(1)], []) == 1

    run(database_url, test)


def test_a_connection_lost_in_the_midst_of_a_batch_is_said(database_url: str) -> None:
    """While Postgres reads nothing of what waits for it."""

    async def test(writer: Writer, reader: Reader) -> None:
        batch = [quote(each) for each in range(20_000)]
        blocker = await asyncpg.connect(database_url)
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE quotes IN EXCLUSIVE MODE")
            writing = asyncio.create_task(writer.write_quotes(batch, []))
            while not await fetch(database_url, WAITS_FOR_A_LOCK):
                await asyncio.sleep(0.01)
            await blocker.execute(END_WHO_WAITS)
            ended, _ = await asyncio.wait({writing}, timeout=20.0)
            assert ended, "it waits for a connection that is lost"
            assert isinstance(writing.exception(), DatabaseUnavailableError)
        await blocker.close()
        assert await writer.write_quotes(batch, []) == len(batch)

    run(database_url, test)


def test_of_overlapping_batches_only_the_new_rows_are_written(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        assert await writer.write_averages([average(1), average(2)], []) == 2
        assert await writer.write_averages([average(2), average(3), average(3)], []) == 1
        assert len(await fetch(database_url, "SELECT 1 FROM averages")) == 3

    run(database_url, test)


@pytest.mark.parametrize(
    "value",
    ["0.000000000000000000000000000001", "123456789012345678901234567890", "27.8000", "1E+3"],
)
def test_values_keep_every_digit(database_url: str, value: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes([quote(1, value=value)], [])
        (stored,) = await reader.newest_quotes("USDRUB", 1)
        assert format(stored.value, "f") == format(Decimal(value), "f")

    run(database_url, test)


def test_all_of_a_quote_comes_back(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        sent = quote(7, source="ecb")
        await writer.write_quotes([sent], [])
        (stored,) = await reader.newest_quotes("USDRUB", 1)
        assert (stored.source, stored.observed_at, stored.received_at) == (
            *("ecb", sent.observed_at),
            sent.received_at,
        )
        assert abs(stored.stored_at - datetime.now(UTC)) < timedelta(minutes=1)

    run(database_url, test)


@pytest.mark.parametrize(
    "name", ['a "b"', "a\\b", "a\nb", "\\n", "a,b", "]\n[", "", "ünï", "NULL", "\\."]
)
def test_names_are_stored_as_they_are(database_url: str, name: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes([quote(1, source=name), quote(2, source="demo")], [])
        stored = await reader.newest_quotes("USDRUB", 2)
        assert [each.source for each in stored] == ["demo", name]

    run(database_url, test)


def test_repeated_rows_that_are_no_numbers_are_refused(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        with pytest.raises(UnstorableError, match="not a number"):
            await writer.write_quotes([quote(1, value="NaN"), quote(1, value="NaN")], [])

    run(database_url, test)


def test_an_empty_batch_is_nothing(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        assert await writer.write_quotes([], []) == 0

    run(database_url, test)


def test_two_writers_of_the_same_rows_write_each_once(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        rows = [quote(n, pair) for n in range(400) for pair in ("USDRUB", "EURRUB", "EURUSD")]

        async def write() -> int:
            shuffled = random.sample(rows, len(rows))
            parts = [shuffled[at : at + 150] for at in range(0, len(rows), 150)]
            return sum([await writer.write_quotes(part, []) for part in parts])

        assert sum(await asyncio.gather(write(), write(), write())) == len(rows)
        assert len(await fetch(database_url, "SELECT 1 FROM quotes")) == len(rows)

    run(database_url, test)


@pytest.mark.parametrize(
    "bad",
    [
        quote(2, pair="USD\0UB"),
        quote(2**63, received_at=NOW),
        quote(2, value="1E+131072"),
        quote(2, value="1E-16384"),
        quote(2, value="NaN"),
        quote(2, value="Infinity"),
        quote(2, value="-1"),
    ],
    ids=["zero byte", "offset", "large", "small", "not a number", "infinite", "negative"],
)
def test_a_value_that_cannot_be_stored_refuses_its_batch(database_url: str, bad: Quote) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        with pytest.raises(UnstorableError):
            await writer.write_quotes([quote(1), bad], [])
        assert await fetch(database_url, "SELECT 1 FROM quotes") == []

    run(database_url, test)


def test_newest_means_received_last(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        late = quote(9, value="1", received_at=NOW - timedelta(seconds=9))
        await writer.write_quotes([late, quote(1, value="2"), quote(2, value="3")], [])
        assert values(await reader.newest_quotes("USDRUB", 2)) == ["3", "2"]

    run(database_url, test)


def test_sources_are_read_together_or_alone(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes(
            [quote(1, value="1"), quote(2, value="2", source="ecb"), quote(3, value="3")], []
        )
        assert values(await reader.newest_quotes("USDRUB", 9)) == ["3", "2", "1"]
        assert values(await reader.newest_quotes("USDRUB", 9, source="ecb")) == ["2"]

    run(database_url, test)


def test_pages_have_neither_gaps_nor_repeats(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        at_once = dict.fromkeys(range(1, 50), NOW)
        rows = [
            quote(n, value=str(n), source=f"source-{n % 3}", received_at=at_once.get(n))
            for n in range(1, 100)
        ]
        await writer.write_quotes(rows, [])
        found: list[str] = []
        position = None
        while page := await reader.newest_quotes("USDRUB", 7, before=position):
            found += values(page)
            position = page[-1].position
            await writer.write_quotes([quote(1000 + len(found))], [])  # newer ones come meanwhile
        assert found == [str(n) for n in reversed(range(1, 100))]

    run(database_url, test)


def test_the_current_average_is_that_of_the_newest_quote(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_averages(
            [average(5, value="5"), average(3, value="3", source="ecb")], []
        )
        await writer.write_averages([average(4, value="4"), average(1, "EURRUB", "9")], [])
        found = await reader.current_averages(10)
        assert [(each.pair, each.source, str(each.value), each.count) for each in found] == [
            ("EURRUB", "demo", "9", 3),
            ("USDRUB", "demo", "5", 3),
            ("USDRUB", "ecb", "3", 3),
        ]
        assert await reader.current_averages(10, after=("EURRUB", "demo")) == found[1:]
        assert await reader.current_averages(10, pair="USDRUB", source="ecb") == found[2:]
        assert await reader.current_averages(1) == found[:1]

    run(database_url, test)


def test_pairs_know_their_first_and_last_quote(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes([quote(n) for n in (5, 3, 9)], [])
        await writer.write_quotes([quote(1, source="ecb"), quote(4, "EURRUB", "90")], [])
        euro, dollar = await reader.pairs(10)
        assert (euro.pair, values(list(euro.newest))) == ("EURRUB", ["90"])
        assert dollar.first_received_at == NOW + timedelta(seconds=1)
        assert dollar.last_received_at == NOW + timedelta(seconds=9)
        assert [each.source for each in dollar.newest] == ["demo", "ecb"]
        assert [each.pair for each in await reader.pairs(1, after="EURRUB")] == ["USDRUB"]

    run(database_url, test)


def test_an_empty_database_has_nothing(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        assert await reader.pairs(10) == []
        assert await reader.current_averages(10) == []
        assert await reader.newest_quotes("USDRUB", 10) == []
        assert not await reader.knows("USDRUB")

    run(database_url, test)


def test_retention_deletes_what_is_older_and_nothing_else(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        old = [quote(n, received_at=NOW - timedelta(days=30, minutes=n + 1)) for n in range(25)]
        older = [quote(n, "EURRUB", received_at=NOW - timedelta(days=90)) for n in range(5)]
        kept = [quote(n, received_at=NOW - timedelta(days=29)) for n in range(100, 105)]
        await writer.write_quotes([*old, *older, *kept], [])
        await writer.write_averages([average(1)], [])
        assert await writer.delete_older_than(30, batch_rows=7) == 30
        assert len(await reader.newest_quotes("USDRUB", 100)) == 5
        assert len(await reader.current_averages(10)) == 1
        assert [each.pair for each in await reader.pairs(1)] == ["USDRUB"]

    run(database_url, test)


def test_writers_that_delete_at_once_delete_each_row_once(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        old = [quote(n, received_at=NOW - timedelta(days=30, minutes=n + 1)) for n in range(100)]
        await writer.write_quotes(old, [])
        deleted = await asyncio.gather(*(writer.delete_older_than(30, 3) for _ in range(4)))
        assert sum(deleted) == 100
        assert await reader.newest_quotes("USDRUB", 10) == []

    run(database_url, test)


def test_a_writer_does_not_wait_for_another_that_deletes(database_url: str) -> None:
    old = [quote(n, received_at=NOW - timedelta(days=30, minutes=n + 1)) for n in range(9)]

    async def test(writer: Writer, reader: Reader) -> None:
        await writer.write_quotes(old, [])
        blocker = await asyncpg.connect(database_url)
        async with blocker.transaction():
            await blocker.execute("SELECT FROM quotes FOR UPDATE")
            deleting = asyncio.create_task(writer.delete_older_than(30))
            while not await fetch(database_url, WAITS_FOR_A_LOCK):
                await asyncio.sleep(0.01)
            assert await writer.delete_older_than(30) == 0
            assert not deleting.done()
        assert await deleting == len(old)
        await blocker.close()

    run(database_url, test)


def test_a_database_belongs_to_one_cluster(database_url: str) -> None:
    async def test(writer: Writer, reader: Reader) -> None:
        await writer.claim_cluster("first")
        await writer.claim_cluster("first")
        with pytest.raises(ClusterMismatchError, match=r"cluster first.*cluster second"):
            await writer.claim_cluster("second")

    run(database_url, test)
