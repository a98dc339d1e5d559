"""demo_server as it runs: the real worker, asked over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from decimal import Decimal
from typing import Any

import httpx
import pytest

from ratestream.services.demo_server import build
from ratestream.settings import DemoServerSettings, Settings
from ratestream.sources.config import DemoSource
from ratestream.sources.factory import make_source
from ratestream.streaming import ConfigurationError
from ratestream.streaming.testing import AppTester


@asynccontextmanager
async def demo_server(**section: Any) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(demo_server=DemoServerSettings(**section))
    async with (
        AppTester(build(settings)) as tester,
        httpx.AsyncClient(base_url=tester.worker.address, trust_env=False) as client,
    ):
        yield client


def answers(*paths: str, **section: Any) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        async with demo_server(**section) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(main())


def test_the_simple_form_is_pairs_and_rates_and_says_their_day_in_headers() -> None:
    (answer,) = answers("/pairs", tick_seconds=3600, pairs=("USDRUB", "EURRUB"))
    assert answer.json() == {"USDRUB": "27.8686627055", "EURRUB": "36.115"}
    assert answer.headers["X-Observed-Date"] == "2005-04-01"
    assert answer.headers["X-Observed-At"] == "2005-04-01T14:00:00+00:00"


def test_the_fuller_form_says_where_and_when_rates_are_from() -> None:
    (answer,) = answers("/pairs/full", tick_seconds=3600, start_date=date(2008, 1, 1))
    full = answer.json()
    assert full["mode"] == "replay"
    assert full["replayed_date"] == "2008-01-02"  # the first working day from then on
    assert full["observed_at"] == "2008-01-02T15:00:00Z"
    assert full["rates"]["EURUSD"] == "1.4688"
    assert "European Central Bank" in full["source"]


def test_a_day_can_be_asked_for() -> None:
    simple, full = answers("/pairs?date=2022-03-01", "/pairs/full?date=2022-03-01")
    assert simple.json() == full.json()["rates"]
    assert full.json()["replayed_date"] == "2022-03-01"
    assert full.json()["rates"]["EURRUB"] == "117.201"


def test_a_pair_is_left_out_on_days_without_a_rate() -> None:
    (answer,) = answers("/pairs?date=2022-03-02")
    assert "EURUSD" in answer.json()
    assert "EURRUB" not in answer.json()


def test_rates_agree_with_each_other_and_carry_no_exponent() -> None:
    (answer,) = answers("/pairs?date=2005-04-01", pairs=("USDIDR", "IDRUSD", "IDREUR"))
    rates = answer.json()
    assert abs(Decimal(rates["USDIDR"]) * Decimal(rates["IDRUSD"]) - 1) < Decimal("1e-10")
    assert rates["IDREUR"].startswith("0.0000")


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/pairs?date=2005-04-02", 404, "no rates of 2005-04-02: there are those of the ECB's"),
        ("/pairs/full?date=1999-01-04", 404, "from 2005-04-01 to"),
        ("/pairs?date=yesterday", 422, "query.date"),
        ("/pears", 404, "Not Found"),
    ],
)
def test_errors_are_problems(path: str, status: int, detail: str) -> None:
    (answer,) = answers(path)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code == status
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize("mode", ["random", "walk"])
def test_invented_rates_say_so_and_have_no_days(mode: str) -> None:
    full, of_day = answers("/pairs/full", "/pairs?date=2005-04-01", mode=mode, tick_seconds=3600)
    assert full.json()["mode"] == mode
    assert full.json()["replayed_date"] is None
    assert all(Decimal(rate) > 0 for rate in full.json()["rates"].values())
    assert of_day.status_code == 404


def test_days_pass_with_the_time_and_not_with_the_questions() -> None:
    async def main() -> list[str]:
        async with demo_server(tick_seconds=0.01) as client:
            days = [(await client.get("/pairs")).headers["X-Observed-Date"] for _ in range(3)]
            await asyncio.sleep(0.1)
            return [*days, (await client.get("/pairs")).headers["X-Observed-Date"]]

    days = asyncio.run(main())
    assert days == sorted(days)
    assert days[-1] > "2005-04-08"  # at least ten ticks, and working days only


def test_data_requester_can_read_it() -> None:
    async def main() -> dict[str, bytes]:
        async with demo_server(tick_seconds=3600) as client:
            source = make_source(DemoSource(url=str(client.base_url)))
            answer = await source.fetch(client)
            return {pair: bytes(rate) for pair, rate in answer.rates.items()}

    assert asyncio.run(main())["USDRUB"] == b'"27.8686627055"'


def test_the_api_page_shows_both_forms_with_examples() -> None:
    (answer,) = answers("/openapi.json")
    paths = answer.json()["paths"]
    assert set(paths) == {"/pairs", "/pairs/full"}
    simple = paths["/pairs"]["get"]["responses"]["200"]["content"]["application/json"]
    assert simple["example"]["USDRUB"] == "27.8686627055"


def test_a_start_after_the_last_day_stops_the_start() -> None:
    section = DemoServerSettings(start_date=date(2999, 1, 1))
    with pytest.raises(ConfigurationError, match=r"demo_server\.start_date 2999-01-01"):
        build(Settings(demo_server=section))
