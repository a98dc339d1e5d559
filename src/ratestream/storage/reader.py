"""What api_gateway reads. Every answer is bounded, and pages continue where the last one ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, Select, Table, select, true, tuple_
from sqlalchemy.sql.selectable import LateralFromClause

from ratestream.storage.database import Database
from ratestream.storage.roles import GATEWAY
from ratestream.storage.tables import ORIGIN, averages, quotes, series


class Position(NamedTuple):
    """Where a quote stands among those of its pair: the larger, the newer."""

    received_at: datetime
    origin_topic: str
    origin_partition: int
    origin_offset: int


@dataclass(frozen=True, slots=True)
class StoredQuote:
    """One quote as it was stored. All times are UTC."""

    pair: str
    source: str
    value: Decimal
    observed_at: datetime
    received_at: datetime
    stored_at: datetime
    position: Position


@dataclass(frozen=True, slots=True)
class StoredAverage:
    """One average as it was stored, of the last `count` quotes. All times are UTC."""

    pair: str
    source: str
    value: Decimal
    count: int
    observed_at: datetime
    received_at: datetime
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class PairSummary:
    """When the first and the last quote of a pair was received, and the newest of each source."""

    pair: str
    first_received_at: datetime
    last_received_at: datetime
    newest: Sequence[StoredQuote]


class Reader:
    """Each call is one statement. "Newest" means received last. All raise
    `DatabaseUnavailableError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self) -> None:
        """As `Database.check`, for everything below."""
        await self._database.check(GATEWAY)

    async def knows(self, pair: str) -> bool:
        """Whether there has ever been a quote of this pair."""
        found = await self._rows(select(true()).where(series.c.pair == pair).limit(1))
        return bool(found)

    async def newest_quotes(
        self, pair: str, limit: int, source: str | None = None, before: Position | None = None
    ) -> list[StoredQuote]:
        """The newest `limit` quotes of one pair, newest first, of one source or of all; with
        `before`, of those that are older than that."""
        older = tuple_(*_position_of(quotes)) < tuple_(*before) if before else true()
        # The first condition repeats a part of the second in the form that the index answers.
        near = quotes.c.received_at <= before.received_at if before else true()
        newest = _newest_of_series(quotes, limit, near, older)
        statement = (
            _of_each_series(newest, pair, source)
            .order_by(*(each.desc() for each in _position_of(newest)))
            .limit(limit)
        )
        return [_quote(row) for row in await self._rows(statement)]

    async def current_averages(
        self,
        limit: int,
        pair: str | None = None,
        source: str | None = None,
        after: tuple[str, str] | None = None,
    ) -> list[StoredAverage]:
        """The newest average of each pair and source, in their order, at most `limit`; with
        `after`, of the pairs and sources behind that one."""
        statement = (
            _of_each_series(_newest_of_series(averages, 1), pair, source)
            .order_by(series.c.pair, series.c.source)
            .limit(limit)
        )
        if after:
            statement = statement.where(tuple_(series.c.pair, series.c.source) > tuple_(*after))
        return [_average(row) for row in await self._rows(statement)]

    async def pairs(self, limit: int, after: str | None = None) -> list[PairSummary]:
        """The pairs there are, in alphabetical order, at most `limit`; with `after`, those behind
        that one."""
        newest = _newest_of_series(quotes, 1)
        oldest = (
            select(quotes.c.received_at.label("first_received_at"))
            .where(quotes.c.pair == series.c.pair, quotes.c.source == series.c.source)
            .order_by(quotes.c.received_at)
            .limit(1)
            .lateral("oldest")
        )
        has_quotes = select(quotes.c.pair).where(quotes.c.pair == series.c.pair).exists()
        some = (
            select(series.c.pair).distinct().where(has_quotes).order_by(series.c.pair).limit(limit)
        )
        if after is not None:
            some = some.where(series.c.pair > after)
        statement = (
            select(newest, oldest.c.first_received_at)
            .select_from(series.join(newest, true()).join(oldest, true()))
            .where(series.c.pair.in_(some))
            .order_by(series.c.pair, series.c.source)
        )
        return _summaries(await self._rows(statement))

    async def _rows(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        return await self._database.rows(statement)


def _position_of(table: Table | LateralFromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in ("received_at", *ORIGIN)]


def _newest_of_series(
    table: Table, limit: int, *conditions: ColumnElement[bool]
) -> LateralFromClause:
    """One probe of the index for each row of `series`."""
    return (
        select(table)
        .where(table.c.pair == series.c.pair, table.c.source == series.c.source, *conditions)
        .order_by(*(each.desc() for each in _position_of(table)))
        .limit(limit)
        .lateral("newest")
    )


def _of_each_series(newest: LateralFromClause, pair: str | None, source: str | None) -> Select[Any]:
    statement = select(newest).select_from(series.join(newest, true()))
    if pair is not None:
        statement = statement.where(series.c.pair == pair)
    if source is not None:
        statement = statement.where(series.c.source == source)
    return statement


def _quote(row: Row[Any]) -> StoredQuote:
    return StoredQuote(
        pair=row.pair,
        source=row.source,
        value=row.value,
        observed_at=row.observed_at,
        received_at=row.received_at,
        stored_at=row.stored_at,
        position=Position(
            row.received_at, row.origin_topic, row.origin_partition, row.origin_offset
        ),
    )


def _average(row: Row[Any]) -> StoredAverage:
    return StoredAverage(
        pair=row.pair,
        source=row.source,
        value=row.value,
        count=row.window_fill,
        observed_at=row.observed_at,
        received_at=row.received_at,
        stored_at=row.stored_at,
    )


def _summaries(rows: Sequence[Row[Any]]) -> list[PairSummary]:
    of_pair: dict[str, list[Row[Any]]] = {}
    for row in rows:
        of_pair.setdefault(row.pair, []).append(row)
    return [
        PairSummary(
            pair=pair,
            first_received_at=min(row.first_received_at for row in group),
            last_received_at=max(row.received_at for row in group),
            newest=[_quote(row) for row in group],
        )
        for pair, group in of_pair.items()
    ]
