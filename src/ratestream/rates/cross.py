"""Rates of pairs out of one table of rates that all have the same pivot currency.

All of a table's pairs agree with each other: each is one exact division of two published numbers,
rounded once, so that A→B times B→A is 1 up to that rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from ratestream.rates.averages import divide
from ratestream.rates.pair import Pair

_ONE = Decimal(1)


def cross_rate(pair: Pair, pivot: str, per_pivot: Mapping[str, Decimal]) -> Decimal:
    """Units of the pair's quote currency for one of its base currency.

    `per_pivot` has the units of each currency for one `pivot`, as published. A pair whose base is
    the pivot keeps the published digits; any other is rounded half-even to 12 significant digits.
    Raises `KeyError` for a currency without a rate.
    """
    if pair.base == pivot:
        return per_pivot[pair.quote]
    of_quote = _ONE if pair.quote == pivot else per_pivot[pair.quote]
    return divide(of_quote, per_pivot[pair.base])


def cross_rates(
    pairs: Iterable[Pair], pivot: str, per_pivot: Mapping[str, Decimal]
) -> dict[str, Decimal]:
    """Rates by pair name, in the order of `pairs`; without those that have a currency unknown to
    `per_pivot`."""
    known = per_pivot.keys() | {pivot}
    return {pair.name: cross_rate(pair, pivot, per_pivot) for pair in pairs if known >= set(pair)}
