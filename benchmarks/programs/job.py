"""What all programs do, apart from how they read, keep and send: pure functions, and nothing that
a peer's environment would have to have.

Stateful: a quote comes in, the mean of the last `WINDOW` prices of its pair goes out. Stateless: a
snapshot of many pairs comes in, a quote for each pair goes out. A price is a decimal in a JSON
string, and no program may make a binary float of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from ratestream.rates.averages import decimal_text, mean, push

WINDOW = 10
PARTITIONS = 8

Json = dict[str, Any]


def average(quote: Json, window: Sequence[str]) -> tuple[Json, list[str]]:
    """For programs whose messages and state are plain JSON: the message to be sent and the window
    to be kept, of the quote and the window before it."""
    prices = push([Decimal(price) for price in window], Decimal(quote["price"]), WINDOW)
    return average_of(quote, prices), [str(price) for price in prices]


def average_of(quote: Json, prices: Sequence[Decimal]) -> Json:
    """The message to be sent, when the window is kept as it is."""
    return {
        "pair": quote["pair"],
        "source": quote["source"],
        "mean": decimal_text(mean(prices)),
        "count": len(prices),
        "observed_at": quote["observed_at"],
        "received_at": quote["received_at"],
    }


def split(snapshot: Json) -> Iterator[Json]:
    """A quote for each pair. Raises `decimal.InvalidOperation` for what is no number."""
    for pair, price in snapshot["rates"].items():
        yield {
            "pair": pair,
            "source": snapshot["source"],
            "price": str(Decimal(price)),
            "observed_at": snapshot["observed_at"],
            "received_at": snapshot["received_at"],
        }
