"""data_aggregator: exact means of the last quotes, one pair and one source at a time."""

from __future__ import annotations

import asyncio

import msgspec

from ratestream.events import Average, Quote
from ratestream.services import data_aggregator
from ratestream.settings import Settings
from ratestream.streaming.testing import AppTester
from tests.support.replay import averages_of, by_pair, quotes_of, snapshots


def aggregate(quotes: list[Quote], window: int = 10) -> list[Average]:
    """The averages that these quotes make."""
    settings = Settings.model_validate({"data_aggregator": {"window": window}})

    async def scenario() -> list[Average]:
        async with AppTester(data_aggregator.build(settings)) as tester:
            topic = tester.app.topics["processed-data"]
            tester.write([topic.encode(quote.pair, quote) for quote in quotes])
            await tester.settle()
            received: list[Average] = tester.received("aggregated-data")
            return received

    return asyncio.run(scenario())


def test_every_average_of_every_prefix_is_exact() -> None:
    quotes = quotes_of(snapshots(1_000))
    averages = aggregate(quotes)
    for pair, of_pair in by_pair(quotes).items():
        assert [a.value for a in averages if a.pair == pair] == averages_of(of_pair)


def test_a_new_pair_says_how_many_quotes_its_average_has() -> None:
    averages = aggregate(quotes_of(snapshots(50)), window=3)
    counts = [average.count for average in averages if average.pair == "EURUSD"]
    assert counts == [1, 2, 3, 3, 3]


def test_sources_are_never_mixed() -> None:
    quotes = quotes_of(snapshots(200))
    tenfold = [
        msgspec.structs.replace(quote, source="other", value=quote.value * 10) for quote in quotes
    ]
    mixed = [quote for both in zip(quotes, tenfold, strict=True) for quote in both]
    averages = aggregate(mixed)
    for source, sent in (("replay", quotes), ("other", tenfold)):
        received = [a.value for a in averages if (a.pair, a.source) == ("EURUSD", source)]
        assert received == averages_of(by_pair(sent)["EURUSD"])
