"""What db_loader writes: batches of quotes and averages, each row once, and retention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Insert,
    Table,
    bindparam,
    column,
    delete,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ratestream.events import Average, Quote
from ratestream.storage.database import Database
from ratestream.storage.errors import ClusterMismatchError
from ratestream.storage.roles import LOADER
from ratestream.storage.tables import averages, origin_cluster, quotes, series

RETENTION_BATCH_ROWS = 10_000

_RETENTION_LOCK = 1_281_033_905
"""Whoever deletes from a table holds this advisory lock on it; the number only has to be ours."""

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key, hashtext(:table))")

_Row = tuple[Any, ...]
_Event = TypeVar("_Event", Quote, Average)
_SERIES_COLUMNS = ("pair", "source")
_QUOTE_COLUMNS = (
    *("origin_topic", "origin_partition", "origin_offset"),
    *("pair", "source", "value", "observed_at", "received_at"),
)
_AVERAGE_COLUMNS = (*_QUOTE_COLUMNS, "window_fill")


class Writer:
    """Each call is one transaction. Any number of writers may write the same rows at once: every
    transaction locks rows in the order of their keys, so that none waits in a circle.

    All raise `DatabaseUnavailableError`; the write may then have happened or not, and writing
    the same again changes nothing.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self) -> None:
        """As `Database.check`, for everything below."""
        await self._database.check(LOADER)

    async def claim_cluster(self, cluster_id: str) -> None:
        """Tie the database to this Kafka cluster, whose offsets its ids are. Raises
        `ClusterMismatchError` when it is tied to another."""
        claim = insert(origin_cluster).values(cluster_id=cluster_id).on_conflict_do_nothing()
        async with self._database.transaction() as connection:
            await connection.execute(claim)
            owner = await connection.scalar(select(origin_cluster.c.cluster_id))
        if owner != cluster_id:
            raise ClusterMismatchError(
                f"the database holds rows of Kafka cluster {owner} and this is cluster "
                f"{cluster_id}, whose offsets would collide with them: connect to that cluster, "
                "give postgres.url an empty database, or, if the old rows may go, drop this one"
            )

    async def write_quotes(self, batch: Sequence[Quote]) -> int:
        """Returns how many of them were not there yet. Raises `UnstorableError`."""
        return await self._write(_INSERT_QUOTES, _QUOTE_COLUMNS, _quote_row, batch)

    async def write_averages(self, batch: Sequence[Average]) -> int:
        """Returns how many of them were not there yet. Raises `UnstorableError`."""
        return await self._write(_INSERT_AVERAGES, _AVERAGE_COLUMNS, _average_row, batch)

    async def _write(
        self,
        statement: Insert,
        columns: Sequence[str],
        to_row: Callable[[_Event], _Row],
        batch: Sequence[_Event],
    ) -> int:
        if not batch:
            return 0
        rows = sorted(map(to_row, batch), key=_origin_and_pair)
        names = sorted({(event.pair, event.source) for event in batch})
        async with self._database.transaction() as connection:
            await _insert_rows(connection, _INSERT_SERIES, _SERIES_COLUMNS, names)
            return await _insert_rows(connection, statement, columns, rows)

    async def delete_older_than(self, days: int, batch_rows: int = RETENTION_BATCH_ROWS) -> int:
        """Delete what was received before the last `days` days, `batch_rows` at a time, each in
        its own transaction, unless another writer is at it. Returns how many rows went."""
        before = datetime.now(UTC) - timedelta(days=days)
        return sum(
            [await self._delete_before(table, before, batch_rows) for table in (quotes, averages)]
        )

    async def _delete_before(self, table: Table, before: datetime, batch_rows: int) -> int:
        statement = _delete_oldest(table, before, batch_rows)
        total = 0
        while True:
            async with self._database.transaction() as connection:
                if not await connection.scalar(
                    _TRY_LOCK, {"key": _RETENTION_LOCK, "table": table.name}
                ):
                    return total
                deleted = (await connection.execute(statement)).rowcount
            total += deleted
            if deleted < batch_rows:
                return total


def _origin_and_pair(row: _Row) -> _Row:
    return row[:4]


def _quote_row(quote: Quote) -> _Row:
    origin = quote.origin
    return (
        *(origin.topic, origin.partition, origin.offset),
        *(quote.pair, quote.source, quote.value, quote.observed_at, quote.received_at),
    )


def _average_row(average: Average) -> _Row:
    origin = average.origin
    return (
        *(origin.topic, origin.partition, origin.offset),
        *(average.pair, average.source, average.value),
        *(average.observed_at, average.received_at, average.count),
    )


def _insert_many(table: Table, columns: Sequence[str]) -> Insert:
    """One statement for any number of rows: a parameter is a whole column."""
    arrays = [bindparam(name, type_=ARRAY(table.c[name].type)) for name in columns]
    batch = (
        func.unnest(*arrays)
        .table_valued(*(column(name, table.c[name].type) for name in columns))
        .render_derived(name="batch")
    )
    return insert(table).from_select(list(columns), select(batch)).on_conflict_do_nothing()


_INSERT_SERIES = _insert_many(series, _SERIES_COLUMNS)
_INSERT_QUOTES = _insert_many(quotes, _QUOTE_COLUMNS)
_INSERT_AVERAGES = _insert_many(averages, _AVERAGE_COLUMNS)


async def _insert_rows(
    connection: AsyncConnection, statement: Insert, columns: Sequence[str], rows: Iterable[_Row]
) -> int:
    values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    return (await connection.execute(statement, values)).rowcount


def _delete_oldest(table: Table, before: datetime, rows: int) -> Any:
    """Finds them series by series, by the index that readers use. Takes no row locks, since
    those need the right to change what is stored."""
    row_id: ColumnElement[Any] = literal_column(f"{table.name}.ctid")
    old = (
        select(row_id.label("row_id"))
        .select_from(table)
        .where(table.c.pair == series.c.pair, table.c.source == series.c.source)
        .where(table.c.received_at < before)
        .limit(rows)
        .lateral("old")
    )
    chosen = select(old.c.row_id).select_from(series.join(old, true())).limit(rows)
    return delete(table).where(row_id == func.any(func.array(chosen.scalar_subquery())))
