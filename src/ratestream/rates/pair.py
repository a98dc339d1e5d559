"""A pair of currencies and its name.

`USDRUB` reads "how many RUB for one USD": USD is the base, RUB the quote currency.
"""

from __future__ import annotations

from typing import NamedTuple

from ratestream.rates.currencies import KNOWN


class InvalidPair(ValueError):  # noqa: N818 - named as the thing it says about the input
    """A text that names no pair. The message is the reason, and says what is allowed."""


class Pair(NamedTuple):
    """Two different known currencies. Make one with `parse_pair` or `make_pair`, which check."""

    base: str
    quote: str

    @property
    def name(self) -> str:
        return self.base + self.quote

    @property
    def inverse(self) -> Pair:
        return Pair(self.quote, self.base)

    def __str__(self) -> str:
        return self.name


def parse_pair(name: str) -> Pair:
    """The pair that `name` names. Raises `InvalidPair`.

    No leniency: lower case, separators and blanks are refused, so that one pair has one name.
    """
    if not (len(name) == 6 and name.isascii() and name.isalpha() and name.isupper()):
        raise InvalidPair(
            f"pair {_shown(name)} must be six upper-case letters, base then quote currency,"
            " such as USDRUB"
        )
    return make_pair(name[:3], name[3:])


def make_pair(base: str, quote: str) -> Pair:
    """The pair of two currency codes. Raises `InvalidPair`."""
    for code in (base, quote):
        if code not in KNOWN:
            raise InvalidPair(f"pair {_shown(base + quote)} has unknown currency {_shown(code)}")
    if base == quote:
        raise InvalidPair(f"pair {_shown(base + quote)} has the same currency on both sides")
    return Pair(base, quote)


def _shown(text: str) -> str:
    """Foreign text for a message: quoted, escaped and short."""
    return ascii(text if len(text) <= 20 else text[:20] + "…")
