"""Answers that are given more than once: whoever asks what was asked a moment ago gets the answer
that is there, or on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_AS_OF = "as-of"
HEADERS: dict[str, Any] = {
    _AS_OF: {
        "description": "From when it is. For a moment an answer is given to all who ask the same.",
        "schema": {"type": "string", "format": "date-time"},
    }
}
"""What `Recent` adds to an answer, for OpenAPI."""

_KEPT_BYTES = 32 * 1024 * 1024
_KEPT_QUESTIONS = 10_000

_Question = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Answer:
    """What was sent, and by which route."""

    start: Message
    body: bytes
    route: Any


@dataclass(slots=True)
class Asked:
    """A question that was put at `at` (monotonic seconds). Its answer is None when there was none,
    because of an error that was not made an answer."""

    at: float
    answer: asyncio.Future[Answer | None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    bytes: int = 0


class Recent:
    """Around an ASGI application: a GET of one of `paths` is answered anew only when the same path
    and query were not asked within the last `max_age` seconds; never, with 0. So no answer is
    older than that, not counting the time that it takes. Others than 200 are given only to those
    who asked while they were made. What is kept is bounded, in number and in bytes."""

    def __init__(self, inner: ASGIApp, paths: Collection[str], max_age: float) -> None:
        self._inner = inner
        self._paths = frozenset(paths)
        self._max_age = max_age
        self._asked: dict[_Question, Asked] = {}  # the oldest first
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] not in self._paths:
            await self._inner(scope, receive, send)
            return
        question = (scope["path"], scope["query_string"])
        now = time.monotonic()
        asked = self._asked.get(question)
        if asked is None or now - asked.at >= self._max_age:
            answer: Answer | None = await self._ask(question, now, scope, receive)
        elif asked.answer.done():
            answer = asked.answer.result()
        else:
            answer = await asyncio.shield(asked.answer)
        if answer is None:
            await self._inner(scope, receive, send)
            return
        scope["route"] = answer.route
        await send(dict(answer.start))  # whoever is outside may change it
        await send({"type": "http.response.body", "body": answer.body})

    async def _ask(self, question: _Question, now: float, scope: Scope, receive: Receive) -> Answer:
        self._forget(question)
        self._forget_old(now)
        asked = self._asked[question] = Asked(now)
        answer: Answer | None = None
        try:
            answer = await self._answer(scope, receive)
            return answer
        finally:
            asked.answer.set_result(answer)
            if self._asked.get(question) is asked:
                self._keep(question, asked, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        as_of = datetime.now(UTC).isoformat(timespec="milliseconds")
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (_AS_OF.encode(), as_of.encode())]
                start.update(message, headers=headers)
            else:
                parts.append(message.get("body", b""))

        await self._inner(scope, receive, collect)
        return Answer(start, b"".join(parts), scope.get("route"))

    def _keep(self, question: _Question, asked: Asked, answer: Answer | None) -> None:
        if answer is None or answer.start["status"] != 200:
            self._forget(question)
            return
        asked.bytes = len(answer.body)
        self._bytes += asked.bytes
        while self._bytes > _KEPT_BYTES:
            self._forget(next(iter(self._asked)))

    def _forget_old(self, now: float) -> None:
        while self._asked:
            oldest = next(iter(self._asked))
            is_old = now - self._asked[oldest].at >= self._max_age
            if not is_old and len(self._asked) < _KEPT_QUESTIONS:
                return
            self._forget(oldest)

    def _forget(self, question: _Question) -> None:
        if (asked := self._asked.pop(question, None)) is not None:
            self._bytes -= asked.bytes
