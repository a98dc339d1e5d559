"""ratestream's own demo_server, in its fuller form.

Format: the server's OpenAPI page, `GET /pairs/full`. JSON with `observed_at` (RFC 3339) and `rates`
(pair name to decimal string), and more that is of no use here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import httpx
import msgspec

from ratestream.sources.base import Answer, UnusableDocumentError
from ratestream.sources.config import DemoSource
from ratestream.sources.http import get


class _Document(msgspec.Struct):
    observed_at: Annotated[datetime, msgspec.Meta(tz=True)]
    rates: Annotated[dict[str, msgspec.Raw], msgspec.Meta(min_length=1)]


class DemoRates:
    """Pairs are whatever the server was told to serve; their names are not looked at here."""

    def __init__(self, settings: DemoSource) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/") + "/pairs/full"

    @property
    def name(self) -> str:
        return self._settings.name

    async def fetch(self, client: httpx.AsyncClient) -> Answer:
        return parse(await get(client, self._settings, url=self._url))


def parse(body: bytes) -> Answer:
    """Raises `UnusableDocumentError`."""
    try:
        document = msgspec.json.decode(body, type=_Document)
    except (ValueError, RecursionError) as error:
        raise UnusableDocumentError(f"not demo_server's answer: {error}") from None
    return Answer(document.observed_at.astimezone(UTC), document.rates)
