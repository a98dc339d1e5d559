"""Twenty thousand replayed quotes go in; what the API answers is what a plain oracle computes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from ratestream.events import Snapshot
from ratestream.services import api_gateway, data_aggregator, data_processor, db_loader
from ratestream.settings import Settings
from ratestream.streaming import Broker
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester
from tests.support.kafka_servers import TansuBroker, start_kafka, start_tansu
from tests.support.postgres import fetch
from tests.support.replay import averages_of, by_pair, quotes_of, snapshots

SERVICES = (api_gateway, db_loader, data_aggregator, data_processor)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["local", "tansu", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, for topics that have their real names."""
    if request.param == "local":
        local = LocalBroker(tmp_path / "broker.sqlite")
        yield local
        local.close()
        return
    if request.param == "kafka" and "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with _address(request.param) as address:
        client = TansuBroker if request.param == "tansu" else KafkaBroker
        kafka = client(KafkaConfig(bootstrap_servers=address))
        yield kafka
        kafka.close()


@contextmanager
def _address(kind: str) -> Iterator[str]:
    if kind == "tansu":
        with start_tansu() as address:
            yield address
    else:
        with start_kafka() as cluster:
            yield cluster.bootstrap


class Api:
    """What api_gateway answers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def all(self, path: str, **query: str) -> list[dict[str, Any]]:
        """The items of every page."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self._page(path, query | ({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next"]
            if cursor is None:
                return items

    async def _page(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        answer = await self._client.get(path, params={"limit": "1000"} | query)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page


async def all_stored(url: str, quotes: int) -> None:
    """Each quote is stored, and the average that it made. Lag would tell too, but Tansu does not
    know its end offsets."""
    async with asyncio.timeout(120):
        for table in ("quotes", "averages"):
            while (await fetch(url, f"SELECT count(*) AS n FROM {table}"))[0]["n"] < quotes:
                await asyncio.sleep(0.2)


async def answers_after(
    made: list[Snapshot], broker: Broker, settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """The current averages, and each pair's quotes, newest first."""
    async with AsyncExitStack() as stack:
        testers = {}
        for service in SERVICES:
            name = service.__name__.rpartition(".")[2]
            tester = AppTester(service.build(settings), broker, settings.worker_config(name))
            testers[name] = await stack.enter_async_context(tester)
        processor = testers["data_processor"]
        topic = processor.app.topics["src-data"]
        await asyncio.to_thread(processor.write, [topic.encode("replay", each) for each in made])
        await all_stored(settings.postgres.url.get_secret_value(), len(quotes_of(made)))
        address = testers["api_gateway"].worker.address
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=address, timeout=30))
        api = Api(client)
        averages = await api.all("/pairs/average")
        pairs = [item["pair_name"] for item in await api.all("/pairs")]
        return averages, {
            pair: await api.all("/pairs/currencies", pair_name=pair) for pair in pairs
        }


def test_answers_equal_the_oracle_digit_by_digit(
    broker: Broker, empty_database: str, tmp_path: Path
) -> None:
    # Tansu shows what aborted transactions wrote, and is refused for exactly-once.
    guarantee = "at_least_once" if isinstance(broker, TansuBroker) else "exactly_once"
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path,
            "postgres": {"url": empty_database},
            "api_gateway": {"port": 0},
            "db_loader": {"port": 0},
            "data_processor": {"port": 0, "processing_guarantee": guarantee},
            "data_aggregator": {"port": 0, "processing_guarantee": guarantee},
        }
    )
    made = snapshots(20_000)
    averages, quotes = asyncio.run(answers_after(made, broker, settings))
    expected = by_pair(quotes_of(made))

    assert quotes.keys() == expected.keys()
    for pair, values in expected.items():
        assert [item["value"] for item in reversed(quotes[pair])] == [str(v) for v in values]
    assert {item["pair_name"]: Decimal(item["value"]) for item in averages} == {
        pair: averages_of(values)[-1] for pair, values in expected.items()
    }
    assert {item["count"] for item in averages} == {10}
