"""The dashboard in a real browser, over the real gateway and a real Postgres."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect
from pydantic import SecretStr

from ratestream.events import Average, Origin, Quote
from ratestream.services.api_gateway import build
from ratestream.settings import ApiGatewaySettings, PostgresSettings, Settings
from ratestream.storage.database import Database
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.storage.writer import Writer
from ratestream.streaming.testing import AppTester

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
REQUIRED = "browser" in os.environ.get("RATESTREAM_TEST_REQUIRE", "")
OBSERVED = datetime(2005, 4, 1, 14, 15, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _needs_chromium() -> None:
    if CHROMIUM.exists():
        return
    if REQUIRED:
        raise FileNotFoundError(f"RATESTREAM_TEST_REQUIRE asks for a browser: {CHROMIUM}")
    pytest.skip(f"no {CHROMIUM}")


class Site:
    """A gateway with a database that a test may write to, and a page that shows it."""

    def __init__(self, page: Page, writer: Writer, address: str) -> None:
        self.page = page
        self.address = address
        self._writer = writer
        self._offset = 0

    async def store(self, pair: str, value: str, average: str | None = None) -> None:
        self._offset += 1
        origin = Origin("src-data", 0, self._offset)
        now = datetime.now(UTC) - timedelta(milliseconds=1)
        quote = Quote(pair, "demo", Decimal(value), OBSERVED, now, origin)
        await self._writer.write_quotes([quote], [])
        if average is not None:
            mean = Average(pair, "demo", Decimal(average), 10, OBSERVED, now, origin)
            await self._writer.write_averages([mean], [])

    def row(self, pair: str) -> str:
        return f"tr:has(button:text-is('{pair}'))"


@asynccontextmanager
async def site(url: str, profile: Path, **options: Any) -> AsyncIterator[Site]:
    """Fails at the end when the page has asked another host for anything, or complained."""
    settings = Settings(
        postgres=PostgresSettings(url=SecretStr(url)), api_gateway=ApiGatewaySettings(port=0)
    )
    database = Database(url)
    async with AppTester(build(settings)) as tester, async_playwright() as playwright:
        browser = await playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=ARGUMENTS, **options
        )
        page = browser.pages[0]
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type == "error" else None,
        )
        address = tester.worker.address
        try:
            yield Site(page, Writer(database), address)
        finally:
            await browser.close()
            await database.close()
    assert [each for each in asked if not each.startswith(address)] == []
    assert [each for each in complaints if "Failed to load resource" not in each] == []


def show(url: str, profile: Path, test: Callable[[Site], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with site(url, profile, **options) as shown:
            await test(shown)

    asyncio.run(main())


def test_rates_and_averages_are_shown_and_follow(database_url: str, tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        page = site.page
        await page.goto(site.address)
        await expect(page.get_by_text("Waiting for the first quote")).to_be_visible()
        await site.store("USDRUB", "27.801900000000000000001", "27.8123400000")
        row = page.locator(site.row("USD/RUB"))
        await expect(row.locator(".rate")).to_have_text("27.801900000000000000001")
        await expect(row.locator(".average")).to_have_text("27.81234")
        await expect(row.locator(".source")).to_have_text("demo")
        await expect(row.locator(".observed")).to_have_text("2005-04-01")
        await expect(page.get_by_role("status")).to_have_text("Live")
        await site.store("USDRUB", "28", "28.5")
        await expect(row.locator(".rate")).to_have_text("28")
        await expect(row.locator(".average")).to_have_text("28.5")

    show(database_url, tmp_path, test)


def test_a_chosen_pair_is_drawn_as_a_chart(database_url: str, tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        page = site.page
        for value in ("36", "35", "37"):
            await site.store("EURRUB", value, "36")
            await site.store("USDRUB", "27.8", "27.8")
        await page.goto(site.address)
        await page.get_by_role("button", name="EUR/RUB").focus()
        await page.keyboard.press("Enter")
        chart = page.get_by_role("img", name="The newest 3 quotes of EUR/RUB: between 35 and 37")
        await expect(chart).to_be_visible()
        await expect(chart.locator(".line")).to_have_count(1)
        await expect(chart.locator(".average")).to_have_count(1)
        await site.store("EURRUB", "40", "37")
        name = "The newest 4 quotes of EUR/RUB: between 35 and 40, now 40"
        await expect(page.get_by_role("img", name=name)).to_be_visible()

    show(database_url, tmp_path, test)


def test_a_phone_shows_it_without_scrolling_sideways(database_url: str, tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        await site.store("USDRUB", "27.801912345678", "27.8123456789")
        await site.page.goto(site.address)
        await expect(site.page.locator("#rates")).to_be_visible()
        width = await site.page.evaluate("document.documentElement.scrollWidth")
        assert width == 360

    show(database_url, tmp_path, test, viewport={"width": 360, "height": 740})


def test_the_page_says_when_nothing_answers(tmp_path: Path) -> None:
    async def main(server: EmbeddedPostgres) -> None:
        database = Database(server.url)
        await database.upgrade()
        await database.close()
        async with site(server.url, tmp_path / "profile") as shown:
            await shown.store("USDRUB", "27.8")
            status = shown.page.get_by_role("status")
            await shown.page.goto(shown.address)
            await expect(status).to_have_text("Live")
            await asyncio.to_thread(server.stop)
            await expect(status).to_have_text("Database away")
            await shown.page.context.set_offline(True)
            await expect(status).to_have_text("API unreachable", timeout=20_000)
            await shown.page.context.set_offline(False)
            await asyncio.to_thread(server.start)
            await expect(status).to_have_text("Live", timeout=20_000)

    with EmbeddedPostgres(tmp_path / "pg") as server:
        asyncio.run(main(server))
