"""What api_gateway answers: items and pages, as models that OpenAPI shows with examples, and the
cursors by which a page says where the next one starts."""

import base64
import binascii
from datetime import datetime
from typing import Any, TypeVar

import msgspec
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from ratestream.storage.reader import PairSummary, StoredAverage, StoredQuote

QUOTE: JsonDict = {
    "pair_name": "USDRUB",
    "source": "demo",
    "value": "27.8019",
    "observed_at": "2005-04-01T14:15:00Z",
    "received_at": "2026-03-02T09:30:00.125000Z",
    "stored_at": "2026-03-02T09:30:00.310000Z",
}
AVERAGE: JsonDict = {**QUOTE, "value": "27.8123400000", "count": 10}
PLACE = ("2026-03-02T09:30:00.125000Z", "src-data", 3, 1_204)
PAIR: JsonDict = {
    "pair_name": "USDRUB",
    "first_received_at": "2026-03-01T09:30:00Z",
    "last_received_at": "2026-03-02T09:30:00.125000Z",
    "newest": [QUOTE],
}


class Item(BaseModel):
    """Values are exact decimals, as strings. Times are UTC."""

    model_config = ConfigDict(frozen=True)

    pair_name: str
    source: str
    value: str = Field(pattern=r"^\d+(\.\d+)?$")
    observed_at: datetime = Field(description="When the source says the rate held.")
    received_at: datetime = Field(description="When it was received; newest means received last.")
    stored_at: datetime = Field(description="When it was written to the database.")


class QuoteItem(Item):
    """The price of one unit of the pair's first currency in units of its second."""

    model_config = ConfigDict(json_schema_extra={"example": QUOTE})


class AverageItem(Item):
    """The mean of the last `count` quotes of one pair from one source, with the times of the last
    of them; rounded half-even to 12 significant digits."""

    model_config = ConfigDict(json_schema_extra={"example": AVERAGE})
    count: int = Field(ge=1)


class PairItem(BaseModel):
    """One pair: when its first and last quote were received, and the newest of each source."""

    model_config = ConfigDict(frozen=True, json_schema_extra={"example": PAIR})
    pair_name: str
    first_received_at: datetime
    last_received_at: datetime
    newest: list[QuoteItem]


class Page(BaseModel):
    next: str | None = Field(
        description="The `cursor` that asks for what follows; null at the end.",
        examples=["WyJVU0RSVUIiXQ"],
    )


class Quotes(Page):
    items: list[QuoteItem]


class Averages(Page):
    items: list[AverageItem]


class Pairs(Page):
    items: list[PairItem]


# The models above describe; what is sent is encoded without them, which takes a tenth of the time.


def page(items: list[dict[str, Any]], following: str | None) -> Response:
    """One of the pages above."""
    return Response(
        msgspec.json.encode({"next": following, "items": items}), media_type="application/json"
    )


def quote_item(quote: StoredQuote) -> dict[str, Any]:
    """A `QuoteItem`."""
    return _common(quote)


def average_item(average: StoredAverage) -> dict[str, Any]:
    """An `AverageItem`."""
    return {**_common(average), "count": average.count}


def _common(stored: StoredQuote | StoredAverage) -> dict[str, Any]:
    return {
        "pair_name": stored.pair,
        "source": stored.source,
        "value": format(stored.value, "f"),
        "observed_at": stored.observed_at,
        "received_at": stored.received_at,
        "stored_at": stored.stored_at,
    }


def pair_item(pair: PairSummary) -> dict[str, Any]:
    """A `PairItem`."""
    return {
        "pair_name": pair.pair,
        "first_received_at": pair.first_received_at,
        "last_received_at": pair.last_received_at,
        "newest": [quote_item(quote) for quote in pair.newest],
    }


def example_of(
    item: JsonDict, following: str | None, headers: JsonDict
) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI shows as an answer with one item, and with these headers."""
    example = {"items": [item], "next": following}
    return {200: {"content": {"application/json": {"example": example}}, "headers": headers}}


# Cursors: the place of the last item, as JSON in base64url. Opaque, so that it may change.

_Place = TypeVar("_Place", bound=tuple[Any, ...])


def to_cursor(place: tuple[Any, ...]) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(tuple(place))).rstrip(b"=").decode()


def from_cursor(cursor: str | None, place: type[_Place]) -> _Place | None:
    """What `to_cursor` was given. Raises `RequestValidationError`."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        found: _Place = msgspec.json.decode(text, type=place)
    except (UnicodeEncodeError, binascii.Error, msgspec.MsgspecError) as error:
        allowed = "must be `next` as given"
        where = ("query", "cursor")
        detail = {"type": "cursor", "loc": where, "input": cursor, "msg": allowed}
        raise RequestValidationError([detail]) from error
    return found
