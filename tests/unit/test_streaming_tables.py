"""Tables: dictionaries that survive, on the real worker and the local broker."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ratestream.streaming import (
    AgentError,
    App,
    ConfigurationError,
    StateError,
    Stream,
    TopicError,
    WorkerConfig,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import TopicSpec


def counting_app() -> App:
    app = App("counter")
    words = app.topic("words", value_type=str)
    counts_out = app.topic("counts", value_type=int)
    counts = app.Table("counts", value_type=int, default=int, partitions_of=words)

    @app.agent(words)
    async def count(stream: Stream[str]) -> None:
        async for word in stream:
            if word == "forget":
                counts.pop("a", None)
                continue
            counts[word] += 1
            await counts_out.send(key=word, value=counts[word])

    return app


def config(folder: Path) -> WorkerConfig:
    return WorkerConfig(data_dir=str(folder), commit_interval=0.02)


async def count(broker: LocalBroker, folder: Path, *words: str) -> list[int]:
    async with AppTester(counting_app(), broker, config(folder)) as tester:
        for word in words:
            await tester.send("words", word, key="a")
        await tester.settle()
        received: list[int] = tester.received("counts")
        return received


def test_a_table_goes_on_from_its_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        await count(broker, tmp_path, "a", "a")
        assert await count(broker, tmp_path, "a") == [1, 2, 3]
        broker.close()

    asyncio.run(scenario())


def test_a_table_is_rebuilt_from_its_changelog_when_the_store_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        await count(broker, tmp_path / "one", "a", "a")
        assert await count(broker, tmp_path / "two", "a") == [1, 2, 3]
        broker.close()

    asyncio.run(scenario())


def test_deleted_keys_stay_deleted_after_a_restore(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        await count(broker, tmp_path / "one", "a", "a", "forget")
        assert await count(broker, tmp_path / "two", "a") == [1, 2, 1]
        broker.close()

    asyncio.run(scenario())


def test_the_changelog_holds_one_record_for_each_key_of_a_commit(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with AppTester(counting_app(), config=config(tmp_path)) as tester:
            producer_records = [tester.app.topics["words"].encode("a", "a") for _ in range(500)]
            tester.write(producer_records)
            await tester.settle()
            assert tester.received("counts")[-1] == 500
            changelog = tester.records("counter-counts-changelog")
            assert changelog[-1].value == b"500"
            assert len(changelog) < 500
            source = tester.records("words")[0].partition
            assert {record.partition for record in changelog} == {source}

    asyncio.run(scenario())


def test_a_store_of_another_cluster_stops_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        for _ in range(2):
            broker = LocalBroker(None)
            await count(broker, tmp_path, "a")
            broker.close()

    with pytest.raises(StateError, match="another cluster"):
        asyncio.run(scenario())


def test_a_changelog_of_another_size_than_its_source_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        broker.create_topics([TopicSpec("words", 3), TopicSpec("counter-counts-changelog", 8)])
        try:
            await count(broker, tmp_path, "a")
        finally:
            broker.close()

    with pytest.raises(TopicError, match=r"has 8 partitions and words has 3"):
        asyncio.run(scenario())


def test_a_changelog_gets_as_many_partitions_as_its_source_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        broker.create_topics([TopicSpec("words", 3)])
        await count(broker, tmp_path, "a")
        name = "counter-counts-changelog"
        assert broker.describe_topics([name])[name].partitions == 3
        broker.close()

    asyncio.run(scenario())


def test_only_agents_at_a_record_may_write(tmp_path: Path) -> None:
    app = App("writer")
    words = app.topic("words", value_type=str)
    table = app.Table("t", value_type=int, default=int, partitions_of=words)

    @app.agent(words)
    async def take(stream: Stream[str]) -> None:
        async for _ in stream.take(1, within=0):
            table["x"] = 1

    async def scenario() -> None:
        async with AppTester(app, config=config(tmp_path)) as tester:
            await tester.send("words", "a")
            await tester.settle()

    with pytest.raises(AgentError, match="iterates record by record"):
        asyncio.run(scenario())


def test_three_instances_count_like_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        names = [f"word-{number}" for number in range(40)]
        instances = [
            AppTester(counting_app(), broker, config(tmp_path / str(number))) for number in range(3)
        ]
        await instances[0].__aenter__()
        for instance in instances[1:]:
            for name in names:
                await instances[0].send("words", name, key=name)
            await instance.__aenter__()
        for name in names:
            await instances[0].send("words", name, key=name)
        await instances[0].settle()
        assert all(each.worker._pipeline is not None for each in instances)
        records = instances[0].records("counts")
        by_key: dict[bytes | None, list[bytes | None]] = {}
        for record in records:
            by_key.setdefault(record.key, []).append(record.value)
        assert len(by_key) == 40
        assert set(map(tuple, by_key.values())) == {(b"1", b"2", b"3")}
        for instance in instances:
            await instance.__aexit__()
        broker.close()

    asyncio.run(scenario())


def test_a_table_behaves_like_a_dictionary_of_its_partition(tmp_path: Path) -> None:
    app = App("dictionary")
    words = app.topic("words", value_type=str)
    table = app.Table("t", value_type=int, default=int, partitions_of=words, key_type=str)
    found: list[object] = []

    @app.agent(words)
    async def use(stream: Stream[str]) -> None:
        async for _ in stream:
            found.append(table.pop("x", None))
            found.append(table.setdefault("x", 7))
            found.append(sorted(table.items()))
            found.append(("x" in table, "y" in table, len(table)))
            found.append(table.pop("x"))
            found.append(list(table.values()))

    async def scenario() -> None:
        async with AppTester(app, config=config(tmp_path)) as tester:
            await tester.send("words", "a")
            await tester.settle()

    asyncio.run(scenario())
    assert found == [None, 7, [("x", 7)], (True, False, 1), 7, []]


def test_reading_much_does_not_fill_the_cache(tmp_path: Path) -> None:
    app = counting_app()

    async def scenario() -> None:
        small = replace(config(tmp_path), table_cache_entries=10)
        async with AppTester(app, config=small) as tester:
            tester.write([app.topics["words"].encode(str(n), str(n)) for n in range(500)])
            await tester.settle()
            counts = app.tables["counts"]
            assert len(counts.items()) == 500
            cached = sum(len(each.cache) for each in counts._partitions.values())
            assert cached <= 10 * 8
            with pytest.raises(ConfigurationError, match="only an agent"):
                counts["x"] = 1

    asyncio.run(scenario())
