"""Reference rates of the European Central Bank.

Format: https://www.ecb.europa.eu/stats/policy_and_exchange_rates/euro_reference_exchange_rates/
("For developers"). XML with the root `gesmes:Envelope` and, in the namespace below, a `Cube` that
holds one `Cube time="YYYY-MM-DD"` per day, which holds one `Cube currency="USD" rate="1.1435"` per
currency: units of it for one euro, which is never listed itself. The daily document has one day,
the 90-day and the full one have many; the newest is taken.

Published around 16:00 Central European Time on TARGET working days: that hour of the document's
date is the observed time.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from xml.etree.ElementTree import Element
from zoneinfo import ZoneInfo

import msgspec

from ratestream.rates.pair import InvalidPair, make_pair
from ratestream.sources.base import Answer, UnusableDocumentError, rate_text, shown
from ratestream.sources.xml_document import parse_xml

_ROOT = "{http://www.gesmes.org/xml/2002-08-01}Envelope"
_CUBE = "{http://www.ecb.int/vocabulary/2002-08-01/eurofxref}Cube"
_PUBLISHED = time(16, tzinfo=ZoneInfo("Europe/Berlin"))


def parse(body: bytes) -> Answer:
    """The newest day of an ECB document. Pairs are EUR and another currency: EURUSD.

    Raises `UnusableDocumentError`.
    """
    days = parse_xml(body, _ROOT).findall(f"{_CUBE}/{_CUBE}[@time]")
    if not days:
        raise UnusableDocumentError("the document has no day of rates")
    newest = max(days, key=_date_of)
    rates: dict[str, msgspec.Raw] = {}
    skipped = 0
    for entry in newest.findall(_CUBE):
        try:
            pair = make_pair("EUR", entry.get("currency", ""))
        except InvalidPair:
            skipped += 1
            continue
        rates[pair.name] = rate_text(entry.get("rate", ""))
    if not rates:
        raise UnusableDocumentError(f"{newest.get('time')} has no rates")
    return Answer(published_at(_date_of(newest)), rates, skipped)


def published_at(day: date) -> datetime:
    """When the rates of `day` count as observed, UTC."""
    return datetime.combine(day, _PUBLISHED).astimezone(UTC)


def _date_of(day: Element) -> date:
    text = day.get("time", "")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UnusableDocumentError(f"{shown(text)} is no date like 2026-03-19") from None
