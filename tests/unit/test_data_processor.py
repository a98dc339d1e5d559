"""data_processor: good rates become quotes, everything else becomes a dead letter with a reason."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from ratestream.events import Quote, Snapshot
from ratestream.services import data_processor
from ratestream.settings import DataProcessorSettings, Settings
from ratestream.streaming.testing import AppTester

GOOD: dict[str, Any] = {
    "source": "demo",
    "observed_at": "2005-04-01T14:00:00Z",
    "received_at": "2026-01-01T00:00:00Z",
    "rates": {"USDRUB": "27.8290"},
}


def process(*values: bytes) -> tuple[list[Quote], list[tuple[bytes | None, str]]]:
    """Quotes, and dead letters with their reasons."""

    async def scenario() -> tuple[list[Quote], list[tuple[bytes | None, str]]]:
        async with AppTester(data_processor.build(Settings())) as tester:
            for value in values:
                await tester.send("src-data", value, key="demo")
            await tester.settle()
            dead = tester.records("dead-letter")
            reasons = [(each.value, dict(each.headers)["reason"].decode()) for each in dead]
            return tester.received("processed-data"), reasons

    return asyncio.run(scenario())


def snapshot(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_a_good_rate_becomes_a_quote_with_all_its_digits() -> None:
    quotes, dead = process(snapshot())
    assert dead == []
    assert [(q.pair, str(q.value), q.source) for q in quotes] == [("USDRUB", "27.8290", "demo")]
    assert quotes[0].origin.topic == "src-data"


def test_quotes_are_keyed_by_pair_and_stamped_with_the_time_of_receipt() -> None:
    async def scenario() -> None:
        async with AppTester(data_processor.build(Settings())) as tester:
            await tester.send("src-data", snapshot(), key="demo")
            await tester.settle()
            (record,) = tester.records("processed-data")
            assert record.key == b"USDRUB"
            assert record.timestamp == 1_767_225_600_000

    asyncio.run(scenario())


def test_a_json_number_is_read_without_a_binary_float() -> None:
    body = snapshot().replace(b'"27.8290"', b"0.1000000000000000055")
    quotes, _ = process(body)
    assert [quote.value for quote in quotes] == [Decimal("0.1000000000000000055")]


@pytest.mark.parametrize(
    ("name", "rate", "reason"),
    [
        ("USDRUB", '"NaN"', "finite"),
        ("USDRUB", '"Infinity"', "finite"),
        ("USDRUB", '"-1"', "above zero"),
        ("USDRUB", '"0"', "above zero"),
        ("USDRUB", '"' + "9" * 400 + '"', "between"),
        ("USDRUB", '"1.' + "1" * 400 + '"', "401 digits"),
        ("USDRUB", "null", "no decimal"),
        ("USDRUB", "[1]", "no decimal"),
        ("USDXXX", '"1"', "unknown currency"),
        ("USDUSD", '"1"', "same currency"),
        ("usdrub", '"1"', "upper-case"),
    ],
)
def test_one_wrong_rate_is_refused_alone(name: str, rate: str, reason: str) -> None:
    body = snapshot(rates={}).replace(b"{}", f'{{"{name}": {rate}, "EURUSD": "1.1"}}'.encode())
    quotes, dead = process(body)
    assert [quote.pair for quote in quotes] == ["EURUSD"]
    assert len(dead) == 1
    assert reason in dead[0][1]
    assert json.loads(dead[0][0] or b"") == {**GOOD, "rates": {name: json.loads(rate)}}


def test_a_refused_rate_can_be_replayed_once_its_rule_allows_it() -> None:
    rate = "0." + "1" * 40
    _, dead = process(snapshot(rates={"USDRUB": rate, "EURUSD": "1.1"}))
    assert "40 digits" in dead[0][1]
    lenient = Settings(data_processor=DataProcessorSettings(max_digits=50))

    async def scenario() -> None:
        async with AppTester(data_processor.build(lenient)) as tester:
            await tester.send("src-data", dead[0][0], key="demo")
            await tester.settle()
            (quote,) = tester.received("processed-data")
            original = msgspec.json.decode(snapshot(), type=Snapshot)
            assert (quote.pair, str(quote.value), quote.source) == ("USDRUB", rate, "demo")
            assert (quote.observed_at, quote.received_at) == (
                original.observed_at,
                original.received_at,
            )

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"not json", "malformed"),
        (b"", "not as declared"),
        (b"\xff\xfe", "not as declared"),
        (snapshot(source=None), "source"),
        (snapshot(source="Evil\nname"), "source"),
        (snapshot(observed_at="yesterday"), "observed_at"),
        (snapshot(observed_at="2005-04-01T14:00:00"), "offset"),
        (snapshot(observed_at="2036-01-01T00:00:00+00:00"), "after"),
        (snapshot(rates={f"{n:06}": "1" for n in range(1001)}), "max_pairs_per_snapshot"),
        (b"[" * 100_000, "not as declared"),
    ],
)
def test_a_snapshot_that_cannot_be_believed_is_refused_whole(body: bytes, reason: str) -> None:
    quotes, dead = process(body, snapshot())
    assert [quote.pair for quote in quotes] == ["USDRUB"]
    assert dead[0][0] == body
    assert reason in dead[0][1]
    assert len(dead) == 1
