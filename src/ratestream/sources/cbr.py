"""Official rates of the Bank of Russia.

Format: https://www.cbr.ru/development/SXML/ (`XML_daily.asp`). XML in windows-1251 with the root
`ValCurs Date="dd.mm.yyyy"` and one `Valute` per currency with, among others, `CharCode`, `Nominal`
and `Value`: so many roubles, with a decimal comma, for `Nominal` units of the currency.

`Date` is the day from which the rates are in force, often tomorrow: its first moment in Moscow is
the observed time. A page of a DDoS protection can come in their place, in HTML with status 200.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from xml.etree.ElementTree import Element
from zoneinfo import ZoneInfo

import msgspec

from ratestream.rates.averages import decimal_text, divide
from ratestream.rates.pair import InvalidPair, make_pair
from ratestream.sources.base import Answer, UnusableDocumentError, rate_text, shown
from ratestream.sources.xml_document import parse_xml

_MOSCOW = ZoneInfo("Europe/Moscow")
_VALUE = re.compile(r"[0-9]{1,40}(\.[0-9]{1,40})?")
_POWER_OF_TEN = re.compile(r"10{0,15}")
_NOMINAL = re.compile(r"[1-9][0-9]{0,15}")


def parse(body: bytes) -> Answer:
    """The day that a Bank of Russia document describes. Pairs are a currency and RUB: USDRUB.

    Raises `UnusableDocumentError`.
    """
    root = parse_xml(body, "ValCurs")
    observed_at = _first_moment(root.get("Date", ""))
    rates: dict[str, msgspec.Raw] = {}
    skipped = 0
    for entry in root.findall("Valute"):
        try:
            pair = make_pair(_text(entry, "CharCode"), "RUB")
        except InvalidPair:
            skipped += 1
            continue
        rates[pair.name] = rate_text(price_of_one(_text(entry, "Value"), _text(entry, "Nominal")))
    if not rates:
        raise UnusableDocumentError("the document has no rates")
    return Answer(observed_at, rates, skipped)


def price_of_one(value: str, nominal: str) -> str:
    """`value` roubles for `nominal` units, as roubles for one.

    Exact, with the published digits, when the nominal is a power of ten, as all have been so far;
    otherwise rounded half-even to 12 significant digits. What is not a number stays as it is, to
    be refused alone where values are checked.
    """
    number = value.replace(",", ".")
    if not (_VALUE.fullmatch(number) and _NOMINAL.fullmatch(nominal)):
        return f"{value}/{nominal}"
    if _POWER_OF_TEN.fullmatch(nominal):
        sign, digits, exponent = Decimal(number).as_tuple()
        assert isinstance(exponent, int)  # the pattern has neither NaN nor Infinity
        return decimal_text(Decimal((sign, digits, exponent - len(nominal) + 1)))
    return decimal_text(divide(Decimal(number), Decimal(nominal)))


def _text(entry: Element, tag: str) -> str:
    return (entry.findtext(tag) or "").strip()


def _first_moment(text: str) -> datetime:
    try:
        day = datetime.strptime(text, "%d.%m.%Y")  # noqa: DTZ007 - Moscow's, on the next line
    except ValueError:
        raise UnusableDocumentError(f"{shown(text)} is no date like 19.03.2026") from None
    return day.replace(tzinfo=_MOSCOW).astimezone(UTC)
