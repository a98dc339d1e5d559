"""What a rate source is, and how one can fail.

SourceError
├── UnreachableError         nothing, or not everything, came back in time
├── RefusedError             an answer with a status other than 200
├── TooLargeError            more bytes than the source's `max_response_bytes`
└── UnusableDocumentError    a document, but not the one that is specified
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import httpx
import msgspec


@dataclass(frozen=True, slots=True)
class Answer:
    """What a source said once.

    `observed_at` is when the source says the rates held, UTC, or None when it does not say.
    `rates` has, by pair name, the price of one base in quote units: the JSON text of a number or
    string exactly as received, not checked, and never a binary float. `skipped` counts entries
    left out because their key names no known currency.
    """

    observed_at: datetime | None
    rates: Mapping[str, msgspec.Raw]
    skipped: int = 0


class Source(Protocol):
    """Something that can be asked for rates, again and again, one question at a time."""

    @property
    def name(self) -> str:
        """What quotes, averages and metrics call this source."""
        ...

    async def fetch(self, client: httpx.AsyncClient) -> Answer:
        """Ask once, without retries. The answer has at least one rate. Raises `SourceError`."""
        ...


FAILURE_REASONS = (
    *("unreachable", "timeout", "rate_limited", "redirected", "server_error", "refused"),
    *("too_large", "unusable"),
)
"""What `SourceError.reason` may be."""


class SourceError(Exception):
    """A source could not be used this time.

    `reason` is one of `FAILURE_REASONS`, fit to be a metric's label. `is_worth_retrying` says
    whether asking again at once may help; if so, not before `retry_after` seconds, when the
    source named a time.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        is_worth_retrying: bool,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.is_worth_retrying = is_worth_retrying
        self.retry_after = retry_after


class UnreachableError(SourceError):
    """No connection, no answer, or only a part of one. The reason is `unreachable`, or `timeout`
    when the time allowed had passed."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(
            message, reason="timeout" if timed_out else "unreachable", is_worth_retrying=True
        )


class RefusedError(SourceError):
    """An HTTP status other than 200. The reason is `rate_limited` (418, 429), `redirected`
    (3xx), `server_error` (5xx) or `refused`."""

    def __init__(self, message: str, *, status: int, retry_after: float | None = None) -> None:
        is_limit = status in (418, 429)
        if is_limit:
            reason = "rate_limited"
        elif status >= 500:
            reason = "server_error"
        else:
            reason = "redirected" if 300 <= status < 400 else "refused"
        super().__init__(
            message,
            reason=reason,
            is_worth_retrying=is_limit or status >= 500,
            retry_after=retry_after,
        )


class TooLargeError(SourceError):
    """A longer answer than `max_response_bytes`; the rest of it was not read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="too_large", is_worth_retrying=False)


class UnusableDocumentError(SourceError):
    """An answer that is not the document specified: another format, another base, no rates."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="unusable", is_worth_retrying=False)


def rate_text(text: str) -> msgspec.Raw:
    """A rate written as text, as `Answer.rates` holds it."""
    return msgspec.Raw(msgspec.json.encode(text))


def shown(text: str, limit: int = 60) -> str:
    """Foreign text for a message: quoted, escaped and short."""
    return ascii(text if len(text) <= limit else text[:limit] + "…")
