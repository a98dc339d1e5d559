"""Tables: dictionaries that survive, on the real worker and the local broker."""

from __future__ import annotations

import asyncio
import shutil
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
from ratestream.streaming.tables import Table
from ratestream.streaming.testing import AppTester
from ratestream.streaming.topics import Topic, Work, current_work
from ratestream.streaming.types import OutgoingRecord, Record, RecordRun, TopicSpec


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


class Owner:
    """A table of one partition, used as its worker and an agent do. Times are milliseconds."""

    def __init__(self, folder: Path, ttl: float | None = None) -> None:
        source = Topic(TopicSpec("words", 1), str, str)
        changelog = TopicSpec("changelog", 1)
        self.table: Table[str, int] = Table("t", changelog, source, (str, int), None, ttl)
        self.store = self.table.open(0, folder, "cluster/changelog")

    def __enter__(self) -> Owner:
        self.work = Work(None)  # type: ignore[arg-type]  # nothing is sent
        self.work.partition = 0
        self._token = current_work.set(self.work)
        return self

    def __exit__(self, *_: object) -> None:
        current_work.reset(self._token)
        self.table.close_all()

    def write(self, now: int, **entries: int) -> None:
        self.work.run = RecordRun([Record("words", 0, 0, None, None, now)])
        for key, value in entries.items():
            self.table[key] = value

    def read(self, now: int) -> dict[str, int]:
        self.work.run = RecordRun([Record("words", 0, 0, None, None, now)])
        found = {key: self.table[key] for key in sorted(self.table)}
        assert found == dict(sorted(self.table.items()))
        assert len(found) == len(self.table)
        return found

    def commit(self) -> list[OutgoingRecord]:
        """What goes to the changelog."""
        changes = self.table.take_changes()
        records = [record for each in changes for record in each.records()]
        for each in changes:
            self.table.commit(each, (self.store.checkpoint or 0) + len(each.changes))
        return records


@pytest.mark.parametrize("ttl", [None, 60.0])
def test_a_rollback_leaves_what_was_committed(tmp_path: Path, ttl: float | None) -> None:
    with Owner(tmp_path, ttl) as owner:
        owner.write(1_000, a=1, b=2)
        owner.commit()
        owner.write(2_000, a=10, c=3)
        owner.table.take_changes()  # being committed
        owner.write(3_000, a=11, d=4)
        del owner.table["b"]
        owner.table.rollback()
        assert owner.read(3_000) == {"a": 1, "b": 2}
        assert owner.commit() == []


def test_a_rollback_takes_back_what_was_changed_in_place(tmp_path: Path) -> None:
    source = Topic(TopicSpec("words", 1), str, str)
    types: tuple[type[str], type[list[int]]] = (str, list[int])
    table = Table("t", TopicSpec("changelog", 1), source, types, None)
    table.open(0, tmp_path, "cluster/changelog")
    work = Work(None)  # type: ignore[arg-type]  # nothing is sent
    work.partition = 0
    token = current_work.set(work)
    table["a"] = [1]
    [changes] = table.take_changes()
    table.commit(changes, 1)
    table["a"].append(2)
    table.rollback()
    assert table["a"] == [1]
    current_work.reset(token)
    table.close_all()


def test_an_entry_is_over_when_it_has_not_been_written_for_its_time_to_live(
    tmp_path: Path,
) -> None:
    with Owner(tmp_path, ttl=10) as owner:
        owner.write(1_000, a=1, b=2)
        assert owner.read(10_999) == {"a": 1, "b": 2}
        owner.write(5_000, b=3)
        assert owner.read(11_000) == {"b": 3}
        assert "a" not in owner.table
        with pytest.raises(KeyError):
            owner.table["a"]
        owner.commit()
        assert owner.read(14_999) == {"b": 3}
        assert owner.read(15_000) == {}


def test_a_late_record_writes_at_the_stream_time_of_its_partition(tmp_path: Path) -> None:
    """An old timestamp neither turns the time back nor is what it writes over at once."""
    with Owner(tmp_path, ttl=10) as owner:
        owner.write(1_000, a=1)
        owner.write(20_000, b=2)
        owner.write(500, c=3)
        assert owner.read(500) == {"b": 2, "c": 3}
        assert {each.key: each.timestamp for each in owner.commit()} == {
            b"a": 1_000,
            b"b": 20_000,
            b"c": 20_000,
        }


def test_time_does_not_go_back_with_a_new_owner(tmp_path: Path) -> None:
    with Owner(tmp_path, ttl=10) as owner:
        owner.write(1_000, a=1)
        owner.write(9_000, b=2)
        owner.commit()
        owner.write(30_000, c=3)
        del owner.table["c"]
        owner.commit()
    with Owner(tmp_path, ttl=10) as owner:
        assert owner.read(1_000) == {}


def test_what_is_over_leaves_store_and_changelog(tmp_path: Path) -> None:
    """A stream of ever new keys, of which 1,000 live at a time."""
    changelog: dict[bytes | None, bytes | None] = {}
    with Owner(tmp_path, ttl=10) as owner:
        sizes = []
        for number in range(0, 20_000, 50):
            for key in range(number, number + 50):
                owner.write(key * 10, **{f"key-{key}": key})
            changelog.update((each.key, each.value) for each in owner.commit())
            sizes.append(len(owner.store.all_keys()))
        assert 1_000 <= max(sizes) < 2_000
        living = {key for key, value in changelog.items() if value is not None}
        assert living == set(owner.store.all_keys())
        for _ in range(20):  # nothing is written any more
            owner.commit()
        assert len(owner.store.all_keys()) < 1_200


def test_a_sweep_spares_what_is_written_again_in_the_same_commit(tmp_path: Path) -> None:
    with Owner(tmp_path, ttl=10) as owner:
        owner.write(1_000, a=1, b=1)
        owner.commit()
        owner.write(60_000, a=2)
        swept = {each.key: (each.value, each.timestamp) for each in owner.commit()}
        assert swept == {b"a": (b"2", 60_000), b"b": (None, 60_000)}
        assert owner.read(60_000) == {"a": 2}
        assert owner.store.all_keys() == [b"a"]


def test_what_a_sweep_found_is_found_again_after_a_rollback(tmp_path: Path) -> None:
    with Owner(tmp_path, ttl=10) as owner:
        owner.write(1_000, a=1)
        owner.commit()
        owner.write(60_000, b=2)
        owner.table.take_changes()
        owner.table.rollback()
        owner.write(60_000, b=2)
        assert {each.key for each in owner.commit()} == {b"a", b"b"}


@pytest.mark.parametrize("ttl", [0, -1.0, float("nan")])
def test_a_time_to_live_of_nothing_is_refused(ttl: float) -> None:
    app = App("expiring")
    words = app.topic("words", value_type=str)
    with pytest.raises(ConfigurationError, match=f"table t: ttl={ttl}, allowed is more than 0"):
        app.Table("t", value_type=int, partitions_of=words, ttl=ttl)


def expiring_app() -> App:
    """Counts each word; a word not seen for ten seconds is forgotten."""
    app = App("expiring")
    words = app.topic("words", value_type=str, partitions=1)
    out = app.topic("counted", value_type=int, partitions=1)
    counts = app.Table("counts", value_type=int, default=int, partitions_of=words, ttl=10)

    @app.agent(words)
    async def count(stream: Stream[str]) -> None:
        async for word in stream:
            counts[word] += 1
            await out.send(key=word, value=counts[word])

    return app


async def count_at(broker: LocalBroker, folder: Path, *said: tuple[int, str]) -> list[int]:
    app = expiring_app()
    async with AppTester(app, broker, config(folder)) as tester:
        words = app.topics["words"]
        tester.write([words.encode(word, word, seconds * 1_000) for seconds, word in said])
        await tester.settle()
        received: list[int] = tester.received("counted")
        return received


def test_a_restored_entry_is_as_old_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        assert await count_at(broker, tmp_path / "1", (100, "a"), (105, "b")) == [1, 1]
        rest = [(111, "a"), (114, "b"), (123, "b"), (133, "b")]
        assert await count_at(broker, tmp_path / "2", *rest) == [1, 1, 1, 2, 3, 1]
        broker.close()

    asyncio.run(scenario())


def test_the_same_records_expire_the_same_entries_however_they_are_read(tmp_path: Path) -> None:
    """At once, one by one, and with the tables lost in between."""
    said = [(100 + number * 7 % 60, "abcd"[number % 4]) for number in range(40)]

    async def scenario() -> None:
        at_once = LocalBroker(None)
        expected = await count_at(at_once, tmp_path / "once", *said)
        at_once.close()
        broker = LocalBroker(None)
        found: list[int] = []
        for number in range(0, 40, 8):
            folder = tmp_path / "parts"
            found = await count_at(broker, folder, *said[number : number + 8])
            shutil.rmtree(folder)
        broker.close()
        assert found == expected
        assert len(set(found)) > 2

    asyncio.run(scenario())


def test_a_table_that_is_given_a_time_to_live_is_rebuilt_with_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        await count_at(broker, tmp_path, (100, "a"))
        app = expiring_app()
        app.tables["counts"]._ttl_ms = None  # as it was declared before
        async with AppTester(app, broker, config(tmp_path)):
            pass
        assert await count_at(broker, tmp_path, (109, "a")) == [1, 2]
        assert await count_at(broker, tmp_path, (119, "a")) == [1, 2, 1]
        broker.close()

    asyncio.run(scenario())
