"""Real input for tests, and what must come of it, worked out the plain way."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, localcontext
from importlib.resources import files

import msgspec

from ratestream.events import Origin, Quote, Snapshot

_CURRENCIES = ("USD", "JPY", "GBP", "CHF", "SEK", "PLN", "RUB", "AUD", "CAD", "CZK")
_START = datetime(2026, 1, 1, tzinfo=UTC)


def snapshots(quotes: int) -> list[Snapshot]:
    """ECB reference rates, oldest first from 2005-04-01, as one source would have sent them, until
    there are at least this many quotes. Each is received a second after the one before it."""
    made: list[Snapshot] = []
    count = 0
    for number, (day, rates) in enumerate(_days()):
        if count >= quotes:
            return made
        observed_at = datetime.fromisoformat(f"{day}T15:00:00+00:00")
        received_at = _START + timedelta(seconds=number)
        raw = {pair: msgspec.Raw(msgspec.json.encode(rate)) for pair, rate in rates.items()}
        made.append(Snapshot("replay", observed_at, received_at, raw))
        count += len(rates)
    raise AssertionError(f"the data has only {count} quotes")


def _days() -> Iterator[tuple[str, dict[str, str]]]:
    archive = files("currency_converter") / "eurofxref-hist.zip"
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as opened:
        rows = list(csv.DictReader(io.StringIO(opened.read("eurofxref-hist.csv").decode())))
    for row in reversed(rows):
        if row["Date"] >= "2005-04-01":
            yield row["Date"], {f"EUR{c}": row[c] for c in _CURRENCIES if row[c] != "N/A"}


def quotes_of(made: list[Snapshot]) -> list[Quote]:
    """The quotes that data_processor would make of these snapshots."""
    return [
        Quote(
            pair=pair,
            source=snapshot.source,
            value=Decimal(msgspec.json.decode(rate)),
            observed_at=snapshot.observed_at,
            received_at=snapshot.received_at,
            origin=Origin("src-data", 0, offset),
        )
        for offset, snapshot in enumerate(made)
        for pair, rate in snapshot.rates.items()
    ]


def averages_of(values: list[Decimal], window: int = 10) -> list[Decimal]:
    """The oracle: the mean of each prefix's last values, exact, rounded once to 12 digits."""
    averages = []
    for end in range(1, len(values) + 1):
        last = values[max(0, end - window) : end]
        with localcontext(Context(prec=500)):
            total = sum(last, Decimal(0))
        averages.append(Context(prec=12).divide(total, Decimal(len(last))))
    return averages


def by_pair(quotes: list[Quote]) -> dict[str, list[Decimal]]:
    """Every value of each pair, in order."""
    values: dict[str, list[Decimal]] = {}
    for quote in quotes:
        values.setdefault(quote.pair, []).append(quote.value)
    return values
