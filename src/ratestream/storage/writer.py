"""What db_loader writes: quotes and averages, together with the offsets up to which they were read,
and retention.

The offsets make every row come once, so that rows go in by plain COPY. Rows that are there
nevertheless (a topic that was written at least once, a database from before offsets were kept, a
backup) are recognised by their key and left as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import structlog
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Insert,
    Select,
    Table,
    bindparam,
    column,
    delete,
    func,
    literal_column,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from ratestream.events import Average, Quote
from ratestream.storage.database import Database, copy_rows
from ratestream.storage.errors import (
    ClusterMismatchError,
    LockTimeoutError,
    RepeatedRowsError,
    TopicMismatchError,
    UnstorableError,
)
from ratestream.storage.roles import LOADER
from ratestream.storage.tables import averages, consumer_offsets, origin_cluster, quotes, series
from ratestream.streaming import FencedError, Move, TopicPartition

RETENTION_BATCH_ROWS = 10_000

_RETENTION_LOCK = 1_281_033_905
"""Whoever deletes from a table holds this advisory lock on it; the number only has to be ours."""

_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:key, hashtext(:table))")

_STALLED_SECONDS = 5.0
"""A transaction whose client has said nothing for this long is ended by whoever takes over."""

_END_STALLED = text(
    """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
        AND application_name = current_setting('application_name')
        AND state IN ('active', 'idle in transaction') AND wait_event = 'ClientRead'
        AND state_change < clock_timestamp() - make_interval(secs => :seconds)
    """
)

_MOVE = text(
    """
    WITH moves AS (
        SELECT * FROM unnest(
            CAST(:topics AS text[]), CAST(:partitions AS int[]),
            CAST(:starts AS bigint[]), CAST(:nexts AS bigint[])
        ) AS moves (topic, partition, start, next)
    ), held AS (
        SELECT topic, partition, next
        FROM consumer_offsets JOIN moves USING (topic, partition)
        WHERE next_offset IS NOT DISTINCT FROM start
        ORDER BY topic, partition
        FOR UPDATE OF consumer_offsets
    )
    UPDATE consumer_offsets SET next_offset = held.next, updated_at = clock_timestamp()
    FROM held
    WHERE consumer_offsets.topic = held.topic AND consumer_offsets.partition = held.partition
    """
)
"""Waits for another transaction that moves the same partitions, and then sees what it did."""

_Row = tuple[Any, ...]
_Event = TypeVar("_Event", Quote, Average)
_OFFSET_COLUMNS = ("topic", "partition", "topic_id")
_SERIES_COLUMNS = ("pair", "source")
_ROW_COLUMNS = (
    *("origin_topic", "origin_partition", "origin_offset"),
    *("pair", "source", "value", "observed_at", "received_at"),
)

log = structlog.get_logger("ratestream.storage")


class Writer:
    """Any number of writers may be at work at once: every transaction locks rows in the order of
    their keys, so that none waits in a circle.

    All raise `DatabaseUnavailableError`; what was asked for may then have happened or not.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known_series: set[_Row] = set()
        self._has_said_repeated = False

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

    async def positions(
        self, partitions: Sequence[TopicPartition], topic_ids: Mapping[str, str]
    ) -> dict[TopicPartition, int]:
        """Where reading goes on; partitions of which nothing was written are absent. `topic_ids`
        names cluster and topic for ever, by topic name. Waits for a transaction that still moves
        one of them; one whose loader has stopped in the middle of it is ended, here or in the
        next attempt after a `LockTimeoutError`. Raises `TopicMismatchError`."""
        rows = [(*each, topic_ids[each.topic]) for each in sorted(partitions)]
        self._known_series.clear()  # a backup may have been restored
        async with self._database.transaction() as connection:
            ended = (await connection.execute(_END_STALLED, {"seconds": _STALLED_SECONDS})).all()
            if ended:
                log.warning("stalled_transactions_ended", count=len(ended))
            await _insert_rows(connection, _INSERT_OFFSETS, _OFFSET_COLUMNS, rows)
            offsets = _offsets(partitions).with_for_update()
            found = {TopicPartition(*row[:2]): row[2:] for row in await connection.execute(offsets)}
            for partition, (topic_id, _) in found.items():
                _check_topic_id(partition.topic, topic_id, topic_ids[partition.topic])
        return {each: at for each, (_, at) in found.items() if at is not None}

    async def write_quotes(self, batch: Sequence[Quote], moves: Sequence[Move]) -> int:
        """Add the rows and move the offsets, in one transaction: both happen, or neither.
        Returns how many of the rows were not there yet. Raises `FencedError` when a partition
        does not stand where its move starts, and `UnstorableError`; nothing has happened then."""
        return await self._write(_QUOTES, batch, moves)

    async def write_averages(self, batch: Sequence[Average], moves: Sequence[Move]) -> int:
        """As `write_quotes`."""
        return await self._write(_AVERAGES, batch, moves)

    async def _write(
        self, history: _History[_Event], batch: Sequence[_Event], moves: Sequence[Move]
    ) -> int:
        rows = _sorted(map(history.row, batch))
        names = {(event.pair, event.source) for event in batch}
        try:
            return await self._write_rows(history.copy, rows, names, moves)
        except RepeatedRowsError as error:
            if not self._has_said_repeated:
                log.warning("rows_repeated", table=history.table.name, error=str(error))
                self._has_said_repeated = True
            return await self._write_rows(history.insert_new, rows, names, moves)

    async def _write_rows(
        self, add: _Add, rows: Sequence[_Row], names: set[_Row], moves: Sequence[Move]
    ) -> int:
        new_names = sorted(names - self._known_series)
        try:
            async with self._database.transaction() as connection:
                await _move(connection, moves)
                if new_names:
                    await _insert_rows(connection, _INSERT_SERIES, _SERIES_COLUMNS, new_names)
                added = await add(connection, rows) if rows else 0
        except LockTimeoutError as error:
            raise FencedError(f"Postgres: {error}: another loader may be at it") from error
        self._known_series.update(new_names)
        return added

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


async def _move(connection: AsyncConnection, moves: Sequence[Move]) -> None:
    topics, partitions = [m.partition.topic for m in moves], [m.partition.partition for m in moves]
    starts, nexts = [m.start for m in moves], [m.next for m in moves]
    moved = await connection.execute(
        _MOVE, {"topics": topics, "partitions": partitions, "starts": starts, "nexts": nexts}
    )
    if moved.rowcount == len(moves):
        return
    stand = await connection.execute(_offsets([move.partition for move in moves]))
    found = {TopicPartition(*row[:2]): row.next_offset for row in stand}
    refused = [
        f"{partition.topic}[{partition.partition}] stands at {at} and the batch starts at {start}"
        for partition, start, _ in moves
        if (at := found.get(partition)) != start
    ]
    raise FencedError(
        f"Postgres: {', '.join(refused)}: it has been written, or another loader is at it"
    )


def _offsets(partitions: Sequence[TopicPartition]) -> Select[str, int, str, int | None]:
    table = consumer_offsets.c
    return (
        select(table.topic, table.partition, table.topic_id, table.next_offset)
        .where(tuple_(table.topic, table.partition).in_(partitions))
        .order_by(table.topic, table.partition)
    )


def _check_topic_id(topic: str, kept: str, found: str) -> None:
    if kept != found:
        raise TopicMismatchError(
            f"the database keeps offsets of {topic} as topic {kept} (cluster/topic) and this is "
            f"{found}, where they mean nothing: connect to that cluster, or give postgres.url an "
            "empty database. If only this topic was deleted and made again, and src-data was not, "
            "let the tables' owner delete its rows from consumer_offsets: it is then read from its "
            "start, and what is stored already stays as it is"
        )


def _sorted(rows: Iterable[_Row]) -> list[_Row]:
    """By their keys. The other columns are compared of repeated rows only; one whose value is no
    number cannot be, nor stored."""
    try:
        return sorted(rows)
    except ArithmeticError as error:
        raise UnstorableError(f"a value that is not a number: {error}") from error


def _quote_row(quote: Quote) -> _Row:
    origin = quote.origin
    return (
        origin.topic,
        origin.partition,
        origin.offset,
        quote.pair,
        quote.source,
        quote.value,
        quote.observed_at,
        quote.received_at,
    )


def _average_row(average: Average) -> _Row:
    origin = average.origin
    return (
        origin.topic,
        origin.partition,
        origin.offset,
        average.pair,
        average.source,
        average.value,
        average.observed_at,
        average.received_at,
        average.count,
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


_INSERT_OFFSETS = _insert_many(consumer_offsets, _OFFSET_COLUMNS)
_INSERT_SERIES = _insert_many(series, _SERIES_COLUMNS)


async def _insert_rows(
    connection: AsyncConnection, statement: Insert, columns: Sequence[str], rows: Sequence[_Row]
) -> int:
    values = {name: [row[at] for row in rows] for at, name in enumerate(columns)}
    return (await connection.execute(statement, values)).rowcount


@dataclass(frozen=True)
class _History(Generic[_Event]):
    """A table of rows, each made of one event, and the two ways to add to it."""

    table: Table
    columns: Sequence[str]
    row: Callable[[_Event], _Row]
    insert: Insert

    async def copy(self, connection: AsyncConnection, rows: Sequence[_Row]) -> int:
        await copy_rows(connection, self.table, self.columns, rows)
        return len(rows)

    async def insert_new(self, connection: AsyncConnection, rows: Sequence[_Row]) -> int:
        return await _insert_rows(connection, self.insert, self.columns, rows)


_Add = Callable[[AsyncConnection, Sequence[_Row]], Awaitable[int]]


def _history(table: Table, row: Callable[[_Event], _Row], *more_columns: str) -> _History[_Event]:
    columns = (*_ROW_COLUMNS, *more_columns)
    return _History(table, columns, row, _insert_many(table, columns))


_QUOTES = _history(quotes, _quote_row)
_AVERAGES = _history(averages, _average_row, "window_fill")


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
