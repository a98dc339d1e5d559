"""Any JSON over HTTP that has one object of rates, as the settings describe it.

Format: JSON (RFC 8259); where in it the rates, their base and their time are is said by
`JsonSource`. Fits, among others, Frankfurter v1, open.er-api.com, Coinbase's exchange
rates and fawazahmed0/currency-api. Numbers keep the digits that the document has: they are taken
out as text, and no float is made of them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

import httpx
import msgspec

from ratestream.rates.pair import InvalidPair, Pair, make_pair
from ratestream.sources.base import Answer, UnusableDocumentError, shown
from ratestream.sources.config import JsonSource, Path
from ratestream.sources.http import get

T = TypeVar("T")
_SEPARATORS = re.compile(r"[-/_: ]")


class JsonRates:
    """Pairs are what the document's keys say, in the settings' reading. Keys that name no known
    currency are left out and counted; so is the base itself."""

    def __init__(self, settings: JsonSource) -> None:
        self._settings = settings
        self._headers = {name: each.get_secret_value() for name, each in settings.headers.items()}

    @property
    def name(self) -> str:
        return self._settings.name

    async def fetch(self, client: httpx.AsyncClient) -> Answer:
        return parse(await get(client, self._settings, headers=self._headers), self._settings)


def parse(body: bytes, settings: JsonSource) -> Answer:
    """The rates of a document that `settings` describe. Raises `UnusableDocumentError`."""
    document = msgspec.Raw(body.removeprefix(codecs.BOM_UTF8))
    pair_of = _pair_reader(settings, document)
    rates: dict[str, msgspec.Raw] = {}
    skipped = 0
    for key, rate in _object(document, settings.rates_path).items():
        try:
            rates[pair_of(key).name] = rate
        except InvalidPair:
            skipped += 1
    if not rates:
        raise UnusableDocumentError(
            f"no rates of known currencies at {_shown(settings.rates_path)}"
        )
    return Answer(_observed_at(document, settings), rates, skipped)


def _pair_reader(settings: JsonSource, document: msgspec.Raw) -> Callable[[str], Pair]:
    """How a key of the document's rates names a pair. Raises `InvalidPair` when called."""
    aliases = {code.upper(): known for code, known in settings.aliases.items()}

    def known(code: str) -> str:
        return aliases.get(code, code)

    def from_pair(key: str) -> Pair:
        letters = _SEPARATORS.sub("", key.upper())
        return make_pair(known(letters[:3]), known(letters[3:]))

    if settings.keys == "pair":
        return from_pair
    base = _base(document, settings, known)

    def from_currency(key: str) -> Pair:
        pair = make_pair(base, known(key.upper()))
        return pair.inverse if settings.invert else pair

    return from_currency


def _base(document: msgspec.Raw, settings: JsonSource, known: Callable[[str], str]) -> str:
    if settings.base_path is None:
        assert settings.base is not None  # the settings' own check
        return settings.base
    found = known(_decode(_at(document, settings.base_path), str, settings.base_path).upper())
    if settings.base is not None and found != settings.base:
        raise UnusableDocumentError(f"the base is {shown(found)}, not {settings.base}")
    return found


def _observed_at(document: msgspec.Raw, settings: JsonSource) -> datetime | None:
    path = settings.observed_path
    if path is None:
        return None
    text = bytes(_at(document, path)).decode(errors="replace").strip().strip('"')
    try:
        return _READ_TIME[settings.observed_format](text)
    except (ValueError, ArithmeticError):
        raise UnusableDocumentError(
            f"{shown(text)} at {_shown(path)} is no time as {settings.observed_format}"
        ) from None


def _from_rfc3339(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("no offset")
    return moment.astimezone(UTC)


def _from_unix(text: str, per_second: int) -> datetime:
    seconds = Decimal(text) / per_second
    if not 0 <= seconds < 1 << 40:
        raise ValueError("out of range")
    return datetime.fromtimestamp(float(seconds), UTC)


_READ_TIME: dict[str, Callable[[str], datetime]] = {
    "rfc3339": _from_rfc3339,
    "date": lambda text: datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC),
    "unix_seconds": lambda text: _from_unix(text, 1),
    "unix_milliseconds": lambda text: _from_unix(text, 1000),
}


def _at(document: msgspec.Raw, path: Path) -> msgspec.Raw:
    """The JSON text at `path`. Raises `UnusableDocumentError`."""
    here = document
    for depth, key in enumerate(path):
        members = _decode(here, dict[str, msgspec.Raw], path[:depth])
        if key not in members:
            raise UnusableDocumentError(f"the document has nothing at {_shown(path[: depth + 1])}")
        here = members[key]
    return here


def _object(document: msgspec.Raw, path: Path) -> dict[str, msgspec.Raw]:
    return _decode(_at(document, path), dict[str, msgspec.Raw], path)


def _decode(text: msgspec.Raw, wanted: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(text, type=wanted)
    except (ValueError, RecursionError) as error:
        raise UnusableDocumentError(f"{_shown(path)} cannot be read: {error}") from None


def _shown(path: Path) -> str:
    return shown(".".join(path)) if path else "the document's root"
