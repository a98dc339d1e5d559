"""Averages on Apache Kafka, with aggregators as processes that share, stop and die."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ratestream.events import Average, Quote
from ratestream.services import data_aggregator
from ratestream.settings import Settings
from ratestream.streaming.errors import BrokerError
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.testing import AppTester
from tests.support.kafka_servers import start_kafka
from tests.support.processes import ServiceProcess
from tests.support.replay import averages_of, by_pair, quotes_of, snapshots

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

# So many that none of them can be all.
SMALL_COMMITS = {
    "RATESTREAM_RUNTIME__BATCH_MAX_RECORDS": "50",
    "RATESTREAM_RUNTIME__COMMIT_MAX_RECORDS": "50",
}


class Topics:
    """The two ends of data_aggregator. They keep for ever: these quotes are old."""

    def __init__(self, bootstrap: str) -> None:
        self.broker = KafkaBroker(KafkaConfig(bootstrap_servers=bootstrap))
        settings = Settings.model_validate({"topics": {"retention_hours": 0}})
        self._tester = AppTester(data_aggregator.build(settings), self.broker)
        self.broker.create_topics(self._tester.app.topic_specs())

    def put(self, quotes: list[Quote]) -> None:
        topic = self._tester.app.topics["processed-data"]
        self._tester.write([topic.encode(quote.pair, quote) for quote in quotes])

    def wait_until_below(self, bound: int) -> int:
        """The lag, which is less. Kafka does not tell it while the group is only being made, nor
        while the transaction of a dead one is open."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            with suppress(BrokerError):
                if (lag := self._tester.lag(["processed-data"])) < bound:
                    return lag
            time.sleep(0.1)
        raise AssertionError("the aggregators do not get on")

    def wait_until_read(self) -> None:
        self.wait_until_below(1)

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


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_three_aggregators_give_the_averages_that_one_gives(
    topics: Topics, aggregators: list[ServiceProcess], protocol: str
) -> None:
    quotes = quotes_of(snapshots(6_000))
    for number, aggregator in enumerate(aggregators):
        aggregator.environment["RATESTREAM_KAFKA__GROUP_PROTOCOL"] = protocol
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


def test_killed_in_the_middle_every_quote_counts_once(
    topics: Topics, aggregators: list[ServiceProcess]
) -> None:
    quotes = quotes_of(snapshots(20_000))
    aggregator = aggregators[0]
    aggregator.environment |= SMALL_COMMITS
    topics.put(quotes[:10_000])
    lag = 10_000
    for _ in range(3):
        aggregator.start().wait_ready()
        lag = topics.wait_until_below(lag)
        aggregator.kill()
        assert lag > 0
    aggregator.start().wait_ready()
    topics.put(quotes[10_000:])
    topics.wait_until_read()
    assert_exact(topics.averages(), quotes)


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
