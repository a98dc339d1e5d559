"""Answers that are given again, around an application that counts how often it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from ratestream.services.api_gateway import recent as recent_module
from ratestream.services.api_gateway.browsers import Observed
from ratestream.services.api_gateway.recent import Recent

LONG = 60.0


class Counting:
    """Answers with the number of the request, when it may."""

    def __init__(self, status: int = 200, body: bytes = b"") -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.fails = False
        self._status = status
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        if self.fails and number == 1:
            raise RuntimeError("a mistake of ours")
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": str(number).encode() + self._body})


def run(
    test: Callable[[httpx.AsyncClient, Counting], Awaitable[None]],
    max_age: float = LONG,
    status: int = 200,
    body: bytes = b"",
) -> None:
    async def main() -> None:
        inner = Counting(status, body)
        web = Observed(Recent(inner, ["/rates"], max_age), CollectorRegistry())
        transport = httpx.ASGITransport(web, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            await test(client, inner)

    asyncio.run(main())


def test_the_same_question_is_answered_once_and_says_from_when() -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        first, second = [await client.get("/rates?limit=1") for _ in range(2)]
        assert (first.text, second.text) == ("1", "1")
        assert first.headers == second.headers
        assert first.headers["as-of"].endswith("+00:00")
        assert (await client.get("/rates?limit=2")).text == "2"
        assert (await client.get("/rates")).text == "3"

    run(test)


def test_other_paths_and_methods_are_passed_on() -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        answers = [await client.get("/other"), await client.get("/other")]
        answers += [await client.post("/rates"), await client.post("/rates")]
        assert [answer.text for answer in answers] == ["1", "2", "3", "4"]
        assert "as-of" not in answers[0].headers

    run(test)


@pytest.mark.parametrize("max_age", [0.0, 0.01])
def test_an_answer_is_not_given_again_when_it_is_too_old(max_age: float) -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        assert (await client.get("/rates")).text == "1"
        await asyncio.sleep(max_age)
        assert (await client.get("/rates")).text == "2"

    run(test, max_age)


def test_who_asks_meanwhile_gets_the_same_answer() -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        inner.may_answer.clear()
        asking = [asyncio.create_task(client.get("/rates")) for _ in range(5)]
        while not inner.asked:
            await asyncio.sleep(0)
        asking[2].cancel()
        inner.may_answer.set()
        done = await asyncio.gather(*asking, return_exceptions=True)
        assert [each.text for each in done if isinstance(each, httpx.Response)] == ["1"] * 4

    run(test)


def test_an_answer_that_takes_longer_is_not_waited_for() -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        inner.may_answer.clear()
        first = asyncio.create_task(client.get("/rates"))
        while inner.asked < 1:
            await asyncio.sleep(0)
        await asyncio.sleep(0.02)
        second = asyncio.create_task(client.get("/rates"))
        while inner.asked < 2:
            await asyncio.sleep(0)
        inner.may_answer.set()
        assert [(await each).text for each in (first, second)] == ["1", "2"]

    run(test, max_age=0.01)


@pytest.mark.parametrize("status", [404, 503])
def test_an_error_is_not_kept(status: int) -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        answers = [await client.get("/rates") for _ in range(2)]
        assert [(each.status_code, each.text) for each in answers] == [(status, "1"), (status, "2")]

    run(test, status=status)


def test_who_waited_for_an_answer_that_failed_asks_again() -> None:
    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        inner.fails = True
        inner.may_answer.clear()
        asking = [asyncio.create_task(client.get("/rates")) for _ in range(2)]
        while not inner.asked:
            await asyncio.sleep(0)
        inner.may_answer.set()
        assert sorted([(await each).status_code for each in asking]) == [200, 500]

    run(test)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "_KEPT_BYTES", 250)

    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        for number in (1, 2, 3):
            assert (await client.get(f"/rates?{number}")).text.startswith(str(number))
        assert (await client.get("/rates?3")).text.startswith("3")
        assert (await client.get("/rates?2")).text.startswith("2")
        assert (await client.get("/rates?1")).text.startswith("4")

    run(test, body=b"x" * 100)


def test_how_many_are_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_module, "_KEPT_QUESTIONS", 2)

    async def test(client: httpx.AsyncClient, inner: Counting) -> None:
        for number in (1, 2, 3):
            await client.get(f"/rates?{number}")
        assert (await client.get("/rates?2")).text == "2"
        assert (await client.get("/rates?1")).text == "4"

    run(test)
