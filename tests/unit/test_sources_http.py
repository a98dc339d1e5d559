"""Asking over real HTTP: what comes back, and what each kind of failure is called."""

from __future__ import annotations

import asyncio
import gzip
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import TypeAdapter

from ratestream.sources.base import Answer, SourceError
from ratestream.sources.config import SourceSettings
from ratestream.sources.factory import make_source
from ratestream.sources.http import make_client, make_tls_context
from tests.support.http_site import DOCUMENTS, Reply, Site, http_site

TLS = make_tls_context()
ECB = (DOCUMENTS / "ecb-daily.xml").read_bytes()
HTML = (DOCUMENTS / "ddos-protection.html").read_bytes()


async def fetch(url: str, **settings: object) -> Answer:
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
    given = adapter.validate_python({"kind": "ecb", "timeout_seconds": 10, **settings, "url": url})
    async with make_client(given, TLS) as client:
        return await make_source(given).fetch(client)


def ask(reply: Reply, **settings: object) -> tuple[Site, Answer]:
    async def main() -> tuple[Site, Answer]:
        async with http_site(reply) as site:
            return site, await fetch(site.url, **settings)

    return asyncio.run(main())


def failure(reply: Reply, **settings: object) -> SourceError:
    with pytest.raises(SourceError) as caught:
        ask(reply, **settings)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "document", "pair", "more"),
    [
        ("ecb", "ecb-daily.xml", "EURUSD", {}),
        ("cbr", "cbr-daily.xml", "USDRUB", {}),
        ("json", "frankfurter-v1.json", "EURUSD", {"name": "frankfurter", "base": "EUR"}),
    ],
)
def test_each_kind_of_source_is_asked_over_http(
    kind: str, document: str, pair: str, more: dict[str, object]
) -> None:
    site, answer = ask(Reply((DOCUMENTS / document).read_bytes()), kind=kind, **more)
    assert pair in answer.rates
    assert site.requests[0].startswith("GET /rates HTTP/1.1\r\n")
    assert "User-Agent: ratestream/" in site.requests[0]


def test_demo_server_is_asked_for_its_fuller_form() -> None:
    body = b'{"observed_at":"2005-04-01T14:00:00Z","rates":{"USDRUB":"27.86"}}'
    site, answer = ask(Reply(body), kind="demo")
    assert site.requests[0].startswith("GET /rates/pairs/full HTTP/1.1\r\n")
    assert list(answer.rates) == ["USDRUB"]


def test_headers_of_a_json_source_are_sent_and_not_shown() -> None:
    headers = {"X-Api-Key": "hush-hush"}
    given = {"kind": "json", "name": "any", "base": "EUR", "headers": headers}
    site, _ = ask(Reply(b'{"rates":{"USD":1.1}}'), **given)
    assert "X-Api-Key: hush-hush\r\n" in site.requests[0]
    adapter: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
    assert "hush" not in repr(adapter.validate_python({**given, "url": site.url}))


@pytest.mark.parametrize(
    ("status", "reason", "is_worth_retrying"),
    [
        (204, "refused", False),
        (302, "redirected", False),
        (404, "refused", False),
        (418, "rate_limited", True),
        (429, "rate_limited", True),
        (500, "server_error", True),
        (503, "server_error", True),
    ],
)
def test_a_status_other_than_200_has_a_reason(
    status: int, reason: str, is_worth_retrying: bool
) -> None:
    error = failure(Reply(b"" if status == 204 else ECB, status))
    assert (error.reason, error.is_worth_retrying) == (reason, is_worth_retrying)
    assert f"status {status}" in str(error)


def test_a_redirect_is_not_followed_but_named() -> None:
    reply = Reply(status=301, headers=(("Location", "http://elsewhere.example/rates"),))
    assert "http://elsewhere.example/rates" in str(failure(reply))


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [("120", 120, 120), (timedelta(hours=1), 3000, 3600), (-timedelta(hours=1), 0, 0)],
)
def test_both_forms_of_retry_after_are_understood(
    given: str | timedelta, least: float, most: float
) -> None:
    if isinstance(given, timedelta):
        given = format_datetime(datetime.now(UTC) + given, usegmt=True)
    error = failure(Reply(status=429, headers=(("Retry-After", given),)))
    assert error.retry_after is not None
    assert least <= error.retry_after <= most


@pytest.mark.parametrize("given", ["soon", "-5", "1.5", "٣"])
def test_any_other_retry_after_is_none(given: str) -> None:
    header = given.encode().decode("latin-1")
    assert failure(Reply(status=503, headers=(("Retry-After", header),))).retry_after is None


def test_html_with_status_200_is_unusable() -> None:
    assert failure(Reply(HTML)).reason == "unusable"


def test_nothing_at_all_is_unusable() -> None:
    assert failure(Reply(b"")).reason == "unusable"


def test_an_answer_beyond_its_bound_is_too_large() -> None:
    error = failure(Reply(ECB + b" " * 5_000_000))
    assert error.reason == "too_large"
    assert "max_response_bytes (1048576)" in str(error)


def test_an_answer_that_unpacks_beyond_its_bound_is_too_large() -> None:
    packed = Reply(gzip.compress(b" " * 5_000_000), headers=(("Content-Encoding", "gzip"),))
    assert failure(packed).reason == "too_large"


def test_an_answer_that_does_not_unpack_is_unusable() -> None:
    assert failure(Reply(ECB, headers=(("Content-Encoding", "gzip"),))).reason == "unusable"


def test_an_answer_that_never_ends_is_a_timeout() -> None:
    error = failure(Reply(ECB, hangs=True), timeout_seconds=0.2)
    assert (error.reason, error.is_worth_retrying) == ("timeout", True)


def test_an_answer_in_drips_must_be_complete_in_time_too() -> None:
    assert failure(Reply(ECB, drips=True), timeout_seconds=0.3).reason == "timeout"


def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    assert failure(Reply(ECB, breaks=True)).reason == "unreachable"


def test_where_nobody_listens_a_source_is_unreachable() -> None:
    with socket.socket() as bound_not_listening:
        bound_not_listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound_not_listening.getsockname()[1]}/"
        with pytest.raises(SourceError, match="ConnectError") as caught:
            asyncio.run(fetch(url))
    assert caught.value.reason == "unreachable"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    _, answer = ask(Reply(ECB))
    assert "EURUSD" in answer.rates
