"""Averages on Apache Kafka, with aggregators as processes that share, stop and die."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ratestream.events import Average, Quote
from ratestream.services import data_aggregator
from ratestream.settings import Settings
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.testing import AppTester
from tests.support.kafka_servers import start_kafka
from tests.support.processes import ServiceProcess
from tests.support.replay import averages_of, by_pair, quotes_of, snapshots

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


class Topics:
    """The two ends of data_aggregator."""

    def __init__(self, bootstrap: str) -> None:
        self.broker = KafkaBroker(KafkaConfig(bootstrap_servers=bootstrap))
        self._tester = AppTester(data_aggregator.build(Settings()), self.broker)
        self.broker.create_topics(self._tester.app.topic_specs())

    def put(self, quotes: list[Quote]) -> None:
        topic = self._tester.app.topics["processed-data"]
        self._tester.write([topic.encode(quote.pair, quote) for quote in quotes])

    def wait_until_read(self) -> None:
        deadline = time.monotonic() + 90
        while self._tester.lag(["processed-data"]):
            assert time.monotonic() < deadline, "the aggregators do not get on"
            time.sleep(0.1)

    def averages(self) -> list[Average]:
        received: list[Average] = self._tester.received("aggregated-data")
        return received


@pytest.fixture
def bootstrap() -> Iterator[str]:
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with start_kafka() as cluster:
        yield cluster.bootstrap


@pytest.fixture
def topics(bootstrap: str) -> Iterator[Topics]:
    topics = Topics(bootstrap)
    yield topics
    topics.broker.close()


@pytest.fixture
def aggregators(bootstrap: str, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Each with a data folder of its own."""
    yield from stopped_afterwards(
        [ServiceProcess("data_aggregator", bootstrap, tmp_path / str(n)) for n in range(3)]
    )


@pytest.fixture
def neighbours(bootstrap: str, tmp_path: Path) -> Iterator[list[ServiceProcess]]:
    """Three on one data folder."""
    yield from stopped_afterwards(
        [ServiceProcess("data_aggregator", bootstrap, tmp_path) for _ in range(3)]
    )


def stopped_afterwards(services: list[ServiceProcess]) -> Iterator[list[ServiceProcess]]:
    yield services
    for service in services:
        if service.process is not None:
            service.stop()


def assert_exact(averages: list[Average], quotes: list[Quote]) -> None:
    for pair, values in by_pair(quotes).items():
        assert [a.value for a in averages if a.pair == pair] == averages_of(values), pair


def test_three_aggregators_give_the_averages_that_one_gives(
    topics: Topics, aggregators: list[ServiceProcess]
) -> None:
    quotes = quotes_of(snapshots(6_000))
    for number, aggregator in enumerate(aggregators):
        aggregator.start().wait_ready()
        topics.put(quotes[number * 1_500 : (number + 1) * 1_500])
    topics.put(quotes[4_500:])
    topics.wait_until_read()
    assert_exact(topics.averages(), quotes)
    assert [aggregator.stop() for aggregator in aggregators] == [0, 0, 0]


def test_a_killed_aggregator_goes_on_from_its_changelog(
    topics: Topics, aggregators: list[ServiceProcess]
) -> None:
    quotes = quotes_of(snapshots(3_000))
    first, second = aggregators[:2]
    first.start().wait_ready()
    topics.put(quotes[:1_500])
    topics.wait_until_read()
    first.kill()
    # Another folder: nothing but the changelog can tell it about the windows.
    second.start().wait_ready()
    topics.put(quotes[1_500:])
    topics.wait_until_read()
    assert_exact(topics.averages(), quotes)


def test_a_killed_aggregator_goes_on_from_its_own_store(
    topics: Topics, aggregators: list[ServiceProcess]
) -> None:
    quotes = quotes_of(snapshots(3_000))
    aggregator = aggregators[0]
    aggregator.start().wait_ready()
    topics.put(quotes[:1_500])
    topics.wait_until_read()
    aggregator.kill()
    aggregator.start().wait_ready()
    topics.put(quotes[1_500:])
    topics.wait_until_read()
    assert_exact(topics.averages(), quotes)


def test_killed_in_the_middle_nothing_is_lost_and_the_windows_live_on(
    topics: Topics, aggregators: list[ServiceProcess]
) -> None:
    """At least once: quotes under way may count twice, so only what the guarantee says is
    asserted: every quote has its average, and long after the kill all are exact again."""
    quotes = quotes_of(snapshots(20_000))
    aggregator = aggregators[0]
    aggregator.start().wait_ready()
    topics.put(quotes[:10_000])
    aggregator.kill()
    aggregator.start().wait_ready()
    topics.put(quotes[10_000:])
    topics.wait_until_read()
    averages = topics.averages()
    assert {(a.origin, a.pair) for a in averages} == {(q.origin, q.pair) for q in quotes}
    for pair, values in by_pair(quotes).items():
        received = [average.value for average in averages if average.pair == pair]
        assert received[-100:] == averages_of(values)[-100:], pair


def test_aggregators_on_one_data_folder_take_over_from_one_that_is_killed(
    topics: Topics, neighbours: list[ServiceProcess], tmp_path: Path
) -> None:
    quotes = quotes_of(snapshots(6_000))
    for neighbour in neighbours:
        neighbour.start().wait_ready()
    topics.put(quotes[:2_000])
    topics.wait_until_read()
    neighbours[1].kill()
    topics.put(quotes[2_000:4_000])
    topics.wait_until_read()
    neighbours[1].start().wait_ready()
    topics.put(quotes[4_000:])
    topics.wait_until_read()
    assert_exact(topics.averages(), quotes)
    folders = tmp_path / "state" / "data_aggregator"
    assert sorted(path.name for path in folders.iterdir()) == ["0", "1", "2"]
