"""The HTTP API over a real Postgres, through real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import schemathesis.core.result
from fastapi import FastAPI
from pydantic import SecretStr

from ratestream.events import Average, Origin, Quote
from ratestream.services.api_gateway import build, build_api
from ratestream.settings import ApiGatewaySettings, PostgresSettings, Settings
from ratestream.storage.database import Database
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.reader import Reader
from ratestream.storage.writer import Writer
from ratestream.streaming.testing import AppTester

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
OBSERVED = datetime(2005, 4, 1, 14, 15, tzinfo=UTC)


def quote(offset: int, pair: str = "USDRUB", value: str = "27.8", source: str = "demo") -> Quote:
    received_at = START + timedelta(seconds=offset)
    origin = Origin("src-data", 0, offset)
    return Quote(pair, source, Decimal(value), OBSERVED, received_at, origin)


def average(offset: int, pair: str = "USDRUB", value: str = "27.8") -> Average:
    of = quote(offset, pair, value)
    return Average(pair, "demo", of.value, 10, OBSERVED, of.received_at, of.origin)


@asynccontextmanager
async def gateway(url: str, *stored: Quote | Average) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway whose database holds these."""
    database = Database(url)
    writer = Writer(database)
    await writer.write_quotes([each for each in stored if isinstance(each, Quote)], [])
    await writer.write_averages([each for each in stored if isinstance(each, Average)], [])
    await database.close()
    settings = Settings(
        postgres=PostgresSettings(url=SecretStr(url)),
        api_gateway=ApiGatewaySettings(port=0, default_limit=3, max_limit=200),
    )
    async with (
        AppTester(build(settings)) as tester,
        httpx.AsyncClient(base_url=tester.worker.address) as client,
    ):
        yield client


def with_gateway(
    url: str, test: Callable[[httpx.AsyncClient], Awaitable[None]], *stored: Quote | Average
) -> None:
    async def main() -> None:
        async with gateway(url, *stored) as client:
            await test(client)

    asyncio.run(main())


def test_the_newest_quotes_of_a_pair(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.get("/pairs/currencies", params={"pair_name": "USDRUB", "limit": 2})
        assert answer.status_code == 200
        first, second = answer.json()["items"]
        assert first["stored_at"].startswith(datetime.now(UTC).strftime("%Y-"))
        del first["stored_at"]
        assert first == {
            "pair_name": "USDRUB",
            "source": "demo",
            "value": "0.000000000000000000000000000007",
            "observed_at": "2005-04-01T14:15:00Z",
            "received_at": "2026-03-02T09:30:07Z",
        }
        assert second["value"] == "27.80"

    with_gateway(
        database_url,
        test,
        *(quote(5), quote(7, value="7E-30"), quote(6, value="27.80"), quote(9, "EURRUB")),
    )


def test_current_averages(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        items = (await client.get("/pairs/average")).json()["items"]
        assert [(each["pair_name"], each["value"], each["count"]) for each in items] == [
            ("EURRUB", "36", 10),
            ("USDRUB", "28", 10),
        ]
        one = (await client.get("/pairs/average", params={"pair_name": "USDRUB"})).json()
        assert one == {"items": items[1:], "next": None}

    with_gateway(
        database_url,
        test,
        *(quote(1), quote(1, "EURRUB"), average(1), average(2, value="28")),
        average(1, "EURRUB", "36"),
    )


def test_pairs_with_their_times(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        (pair,) = (await client.get("/pairs")).json()["items"]
        assert pair["pair_name"] == "USDRUB"
        assert pair["first_received_at"] == "2026-03-02T09:30:01Z"
        assert pair["last_received_at"] == "2026-03-02T09:30:04Z"
        newest = {each["source"]: each["value"] for each in pair["newest"]}
        assert newest == {"demo": "3", "ecb": "4"}

    with_gateway(
        database_url,
        test,
        *(quote(1), quote(3, value="3"), quote(4, value="4", source="ecb")),
    )


def test_an_empty_database_answers_with_empty_lists(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for path in ("/pairs", "/pairs/average"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (200, {"items": [], "next": None})

    with_gateway(database_url, test)


@pytest.mark.parametrize("path", ["/pairs", "/pairs/average", "/pairs/currencies"])
def test_pages_hold_everything_once(database_url: str, path: str) -> None:
    names = [f"AA{chr(65 + n)}BBB" for n in range(10)]
    rows = [quote(n, "USDRUB", str(n + 1)) for n in range(10)] if "curr" in path else []
    rows += [quote(100, name) for name in names]
    means = [average(100, name) for name in names]

    async def test(client: httpx.AsyncClient) -> None:
        options = {"pair_name": "USDRUB"} if rows[0].pair == "USDRUB" else {}
        found: list[str] = []
        sizes: list[int] = []
        page: dict[str, Any] = {"next": None}
        while not sizes or page["next"]:
            cursor = {"cursor": page["next"]} if page["next"] else {}
            page = (await client.get(path, params=options | cursor)).json()
            found += [each["value"] if options else each["pair_name"] for each in page["items"]]
            sizes.append(len(page["items"]))
        assert found == ([str(n + 1) for n in reversed(range(10))] if options else names)
        assert sizes == [3, 3, 3, 1]

    with_gateway(database_url, test, *rows, *means)


@pytest.mark.parametrize("path", ["/pairs/currencies", "/pairs/average"])
def test_an_unknown_pair_is_named(database_url: str, path: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.get(path, params={"pair_name": "XAUXAG"})
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:ratestream:unknown-pair"
        assert "XAUXAG" in answer.json()["detail"]

    with_gateway(database_url, test, quote(1))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("limit", "0", "greater than or equal to 1"),
        ("limit", "201", "less than or equal to 200"),
        ("limit", "many", "valid integer"),
        ("pair_name", "usdrub", "pattern"),
        ("source", "", "at least 1 character"),
        ("cursor", "%%%", "as given"),
        ("cursor", "WyJVU0RSVUIiXQ", "as given"),  # a good one of another question
        ("cursor", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwWiIsIlx1MDAwMCIsMCwwXQ", "as given"),
    ],
)
def test_a_wrong_parameter_is_named(
    database_url: str, field: str, value: str, allowed: str
) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.get("/pairs/currencies", params={"pair_name": "USDRUB", field: value})
        assert (answer.status_code, answer.json()["status"]) == (422, 422)
        (error,) = answer.json()["errors"]
        assert (error["field"], error["value"]) == (field, value)
        assert allowed in error["allowed"]

    with_gateway(database_url, test, quote(1))


def test_a_missing_parameter_is_named(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.get("/pairs/currencies")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "pair_name"

    with_gateway(database_url, test)


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("POST", "/pairs", 405)]
)
def test_other_errors_are_problems_too(
    database_url: str, method: str, path: str, status: int
) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"

    with_gateway(database_url, test)


def test_while_postgres_is_away_answers_are_503(tmp_path: Path) -> None:
    async def test(client: httpx.AsyncClient, server: EmbeddedPostgres) -> None:
        await asyncio.to_thread(server.stop)
        answer = await client.get("/pairs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["type"] == "urn:ratestream:database-away"
        assert str(tmp_path) not in answer.text
        assert (await client.get("/health/ready")).status_code == 503
        await asyncio.to_thread(server.start)
        assert (await client.get("/pairs")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200

    async def main(server: EmbeddedPostgres) -> None:
        database = Database(server.url)
        await database.upgrade()
        await database.close()
        async with gateway(server.url, quote(1)) as client:
            await test(client, server)

    with EmbeddedPostgres(tmp_path / "pg") as server:
        asyncio.run(main(server))


def test_before_the_migration_answers_are_503(empty_database: str) -> None:
    async def main() -> None:
        database = Database(empty_database)
        transport = httpx.ASGITransport(build_api(Reader(database), ApiGatewaySettings()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            assert (await client.get("/pairs")).status_code == 503
        await database.close()

    asyncio.run(main())


def test_an_internal_error_shows_no_trace() -> None:
    async def main() -> None:
        broken: Any = object()  # stands for a mistake of ours
        transport = httpx.ASGITransport(
            build_api(broken, ApiGatewaySettings()), raise_app_exceptions=False
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            answer = await client.get("/pairs")
            assert answer.status_code == 500
            assert answer.json()["detail"] == "the error has been logged"

    asyncio.run(main())


def test_browsers_are_told_to_be_careful(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for path in ("/", "/static/app.js", "/pairs"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert "script-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"

    with_gateway(database_url, test)


def test_requests_are_measured_by_route(database_url: str) -> None:
    async def test(client: httpx.AsyncClient) -> None:
        for path in ("/pairs", "/pairs", "/anything", "/something"):
            await client.get(path)
        text = (await client.get("/metrics")).text
        assert 'ratestream_http_request_seconds_count{route="/pairs",status="200"} 2.0' in text
        assert 'ratestream_http_request_seconds_count{route="other",status="404"} 2.0' in text

    with_gateway(database_url, test)


def documented_answers(api: FastAPI) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, status, media)
        for path, operations in api.openapi()["paths"].items()
        for status, answer in operations["get"]["responses"].items()
        for media in answer["content"].values()
    ]


def test_every_documented_answer_has_an_example() -> None:
    api = build_api(Reader(Database("postgresql://nowhere")), ApiGatewaySettings())
    answers = documented_answers(api)
    assert {status for _, status, _ in answers} == {"200", "404", "422", "500", "503"}
    for path, status, media in answers:
        example = json.dumps(media["example"])
        assert ("USDRUB" in example) == (status == "200"), (path, status)


def test_the_api_is_as_it_is_described(database_url: str) -> None:
    async def main() -> None:
        async with gateway(database_url, quote(1), quote(2), average(1)) as client:
            await asyncio.to_thread(explore, str(client.base_url))

    asyncio.run(main())


def explore(url: str) -> None:
    """Call each operation with values, good and bad, made from its own description."""
    document = schemathesis.openapi.from_url(f"{url}/openapi.json")
    for result in document.get_all_operations():
        assert isinstance(result, schemathesis.core.result.Ok)
        for mode in schemathesis.GenerationMode:
            call_with_made_up_values(result.ok(), mode)


def call_with_made_up_values(operation: Any, mode: schemathesis.GenerationMode) -> None:
    @hypothesis.settings(
        max_examples=15,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        # No description can say which cursors are good: only bad ones are made here.
        if case.query and mode.is_positive:
            case.query.pop("cursor", None)
        case.call_and_validate()

    check()
