"""The messages of `job.py` with types, for programs that have msgspec. Times are milliseconds
since the epoch, UTC: an integer costs the same in every language."""

from __future__ import annotations

from decimal import Decimal

import msgspec


class Quote(msgspec.Struct, frozen=True, gc=False):
    """One price of one pair."""

    pair: str
    source: str
    price: Decimal
    observed_at: int
    received_at: int


class Average(msgspec.Struct, frozen=True, gc=False):
    """The mean of the last `count` prices of a pair; the rest is that of the last quote."""

    pair: str
    source: str
    mean: Decimal
    count: int
    observed_at: int
    received_at: int


class Snapshot(msgspec.Struct, frozen=True):
    """Prices of many pairs at once."""

    source: str
    observed_at: int
    received_at: int
    rates: dict[str, Decimal]
