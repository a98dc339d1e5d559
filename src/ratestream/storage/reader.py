"""What api_gateway reads. Every answer is bounded, and pages continue where the last one ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    select,
    true,
    tuple_,
)
from sqlalchemy.sql.selectable import LateralFromClause

from ratestream.storage.database import Database, Query
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
        return bool(await self._database.rows(_knows(), pair=pair))

    async def newest_quotes(
        self, pair: str, limit: int, source: str | None = None, before: Position | None = None
    ) -> list[StoredQuote]:
        """The newest `limit` quotes of one pair, newest first, of one source or of all; with
        `before`, of those that are older than that."""
        query = _newest_quotes(source is not None, before is not None)
        place = {} if before is None else before._asdict()
        found = await self._database.rows(query, pair=pair, source=source, limit=limit, **place)
        return [_quote(row) for row in found]

    async def current_averages(
        self,
        limit: int,
        pair: str | None = None,
        source: str | None = None,
        after: tuple[str, str] | None = None,
    ) -> list[StoredAverage]:
        """The newest average of each pair and source, in their order, at most `limit`; with
        `after`, of the pairs and sources behind that one."""
        query = _current_averages(pair is not None, source is not None, after is not None)
        after_pair, after_source = after or (None, None)
        found = await self._database.rows(
            query,
            pair=pair,
            source=source,
            limit=limit,
            after_pair=after_pair,
            after_source=after_source,
        )
        return [_average(row) for row in found]

    async def pairs(self, limit: int, after: str | None = None) -> list[PairSummary]:
        """The pairs there are, in alphabetical order, at most `limit`; with `after`, those behind
        that one."""
        query = _pairs(after is not None)
        return _summaries(await self._database.rows(query, limit=limit, after_pair=after))


# The statements, each made once in each of its few forms.

_LIMIT = bindparam("limit", type_=Integer)


@cache
def _knows() -> Query:
    return Query(select(true()).where(series.c.pair == bindparam("pair")).limit(1))


@cache
def _newest_quotes(of_a_source: bool, is_before: bool) -> Query:
    near: ColumnElement[bool] = true()
    older: ColumnElement[bool] = true()
    if is_before:
        place = [bindparam(each.name, type_=each.type) for each in _position_of(quotes)]
        older = tuple_(*_position_of(quotes)) < tuple_(*place)
        # Repeats a part of the other in the form that the index answers.
        near = quotes.c.received_at <= place[0]
    newest = _newest_of_series(quotes, _LIMIT, near, older)
    return Query(
        _of_each_series(newest, of_a_pair=True, of_a_source=of_a_source)
        .order_by(*(each.desc() for each in _position_of(newest)))
        .limit(_LIMIT)
    )


@cache
def _current_averages(of_a_pair: bool, of_a_source: bool, is_after: bool) -> Query:
    statement = (
        _of_each_series(_newest_of_series(averages, 1), of_a_pair, of_a_source)
        .order_by(series.c.pair, series.c.source)
        .limit(_LIMIT)
    )
    if is_after:
        place = [bindparam(name, type_=Text) for name in ("after_pair", "after_source")]
        statement = statement.where(tuple_(series.c.pair, series.c.source) > tuple_(*place))
    return Query(statement)


@cache
def _pairs(is_after: bool) -> Query:
    newest = _newest_of_series(quotes, 1)
    oldest = (
        select(quotes.c.received_at.label("first_received_at"))
        .where(quotes.c.pair == series.c.pair, quotes.c.source == series.c.source)
        .order_by(quotes.c.received_at)
        .limit(1)
        .lateral("oldest")
    )
    has_quotes = select(quotes.c.pair).where(quotes.c.pair == series.c.pair).exists()
    some = select(series.c.pair).distinct().where(has_quotes).order_by(series.c.pair).limit(_LIMIT)
    if is_after:
        some = some.where(series.c.pair > bindparam("after_pair"))
    return Query(
        select(newest, oldest.c.first_received_at)
        .select_from(series.join(newest, true()).join(oldest, true()))
        .where(series.c.pair.in_(some))
        .order_by(series.c.pair, series.c.source)
    )


def _position_of(table: Table | LateralFromClause) -> list[ColumnElement[Any]]:
    return [table.c[name] for name in ("received_at", *ORIGIN)]


def _newest_of_series(
    table: Table, limit: int | BindParameter[int], *conditions: ColumnElement[bool]
) -> LateralFromClause:
    """One probe of the index for each row of `series`."""
    return (
        select(table)
        .where(table.c.pair == series.c.pair, table.c.source == series.c.source, *conditions)
        .order_by(*(each.desc() for each in _position_of(table)))
        .limit(limit)
        .lateral("newest")
    )


def _of_each_series(newest: LateralFromClause, of_a_pair: bool, of_a_source: bool) -> Select[Any]:
    statement = select(newest).select_from(series.join(newest, true()))
    if of_a_pair:
        statement = statement.where(series.c.pair == bindparam("pair"))
    if of_a_source:
        statement = statement.where(series.c.source == bindparam("source"))
    return statement


def _quote(row: Mapping[str, Any]) -> StoredQuote:
    return StoredQuote(
        **{name: row[name] for name in _QUOTE},
        position=Position(*(row[name] for name in Position._fields)),
    )


def _average(row: Mapping[str, Any]) -> StoredAverage:
    return StoredAverage(**{name: row[name] for name in _QUOTE}, count=row["window_fill"])


_QUOTE = ("pair", "source", "value", "observed_at", "received_at", "stored_at")


def _summaries(rows: Sequence[Mapping[str, Any]]) -> list[PairSummary]:
    of_pair: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        of_pair.setdefault(row["pair"], []).append(row)
    return [
        PairSummary(
            pair=pair,
            first_received_at=min(row["first_received_at"] for row in group),
            last_received_at=max(row["received_at"] for row in group),
            newest=[_quote(row) for row in group],
        )
        for pair, group in of_pair.items()
    ]
