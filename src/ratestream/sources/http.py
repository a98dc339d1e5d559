"""Asking over HTTP within bounds: of time, of bytes, and of where an answer may come from."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from ratestream import __version__
from ratestream.sources.base import (
    Answer,
    RefusedError,
    TooLargeError,
    UnreachableError,
    UnusableDocumentError,
    shown,
)
from ratestream.sources.config import HttpSource

USER_AGENT = f"ratestream/{__version__}"

# A source is asked one question at a time; the second connection replaces a dying one.
_CONNECTIONS = httpx.Limits(max_connections=2, max_keepalive_connections=1)


def make_tls_context() -> ssl.SSLContext:
    """Trusts the authorities that certifi lists. Costs some 20 ms: one is enough for all."""
    return httpx.create_ssl_context(trust_env=False)


def make_client(settings: HttpSource, tls: ssl.SSLContext) -> httpx.AsyncClient:
    """A client for one source. It follows no redirects and reads no environment: what it talks
    to is what the settings name."""
    return httpx.AsyncClient(
        headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
        verify=tls,
        proxy=settings.proxy,
        trust_env=False,
        follow_redirects=False,
        limits=_CONNECTIONS,
        timeout=settings.timeout_seconds,
    )


async def get(
    client: httpx.AsyncClient,
    settings: HttpSource,
    *,
    url: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The body of a 200 answer from `url` (else the source's own), of at most
    `max_response_bytes`, all of it within `timeout_seconds`. Raises `SourceError`."""
    try:
        async with (
            asyncio.timeout(settings.timeout_seconds),
            client.stream("GET", url or settings.url, headers=headers) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise _refusal(response)
            return await _read(response, settings.max_response_bytes)
    except (TimeoutError, httpx.TimeoutException):
        raise UnreachableError(
            f"no complete answer within {settings.timeout_seconds} s", timed_out=True
        ) from None
    except httpx.DecodingError as error:
        raise UnusableDocumentError(f"the answer cannot be unpacked: {error}") from None
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise UnreachableError(f"{type(error).__name__}: {error}") from None


async def _read(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise TooLargeError(f"the answer is longer than max_response_bytes ({limit})")
    return bytes(body)


class HttpDocument:
    """A source that is one document at one address; `parse` turns its bytes into rates."""

    def __init__(self, settings: HttpSource, parse: Callable[[bytes], Answer]) -> None:
        self._settings = settings
        self._parse = parse

    @property
    def name(self) -> str:
        return self._settings.name

    async def fetch(self, client: httpx.AsyncClient) -> Answer:
        return self._parse(await get(client, self._settings))


def _refusal(response: httpx.Response) -> RefusedError:
    message = f"status {response.status_code} {response.reason_phrase}".rstrip()
    if response.has_redirect_location:
        target = shown(response.headers["Location"], 200)
        message += f" to {target}: redirects are not followed; set 'url' if that is right"
    return RefusedError(
        message,
        status=response.status_code,
        retry_after=_retry_after(response.headers.get("Retry-After"), datetime.now(UTC)),
    )


def _retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds to wait, from either form that RFC 9110 (10.2.3) allows; None for any other."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return max(0.0, (moment - now).total_seconds())
