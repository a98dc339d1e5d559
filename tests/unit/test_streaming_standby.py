"""Standby copies: kept up to date, handed over, and never in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from ratestream.streaming.local import LocalBroker
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.restoring import Restorer
from ratestream.streaming.standby import Standby
from ratestream.streaming.store import Store
from ratestream.streaming.tables import Table
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import OutgoingRecord, ProducerConfig, TopicSpec

STEPS = 2_000
HOUR_MS = 3_600_000


class Bench:
    """One changelog of two partitions, its table, and a standby of an instance."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broker = LocalBroker(None)
        changelog = TopicSpec("changelog", 2, retention_ms=HOUR_MS)
        self.broker.create_topics([changelog])
        source = Topic(TopicSpec("words", 2), str, str)
        self.table: Table[str, str] = Table("t", changelog, source, (str, str), None)
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry, folder)
        self.standby = Standby(self.broker, "app", self.metrics, pause=0.0)

    def log(self, entries: Mapping[str, str], partition: int = 0, at: int | None = None) -> None:
        with closing(self.broker.producer(ProducerConfig())) as producer:
            producer.send(
                [
                    OutgoingRecord("changelog", key.encode(), value.encode(), partition, at)
                    for key, value in entries.items()
                ]
            )
            producer.flush()

    def follow(self, *partitions: int) -> None:
        for partition in partitions:
            self.standby.follow(self.table, partition, self.folder, "cluster/changelog")

    def catch_up(self, copies: int = 1, max_records: int = 1_000) -> None:
        for _ in range(STEPS):
            self.standby.step(max_records)
            if len(self.standby._follower.copies) == copies and self.standby.lag() == 0:
                return
        raise AssertionError(f"{self.standby.lag()} records behind")

    def take_over(self, partition: int = 0) -> tuple[Store, int]:
        """The store as its new owner has it, and how many records it had to restore."""
        self.standby.release(self.table, partition)
        store = self.table.open(partition, self.folder, "cluster/changelog")
        before = self.count("ratestream_restored_records_total")
        with closing(Restorer(self.broker, "app", self.metrics)) as restorer:
            restorer.add(self.table, partition, store)
            while restorer.active:
                restorer.step(0.05)
        return store, int(self.count("ratestream_restored_records_total") - before)

    def count(self, metric: str) -> float:
        return self.registry.get_sample_value(metric, {"table": "t"}) or 0.0

    def store_of(self, partition: int = 0) -> Path:
        return self.folder / "t" / str(partition)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.standby.close()
    bench.table.close_all()
    bench.broker.close()


def numbered(count: int, value: str = "value") -> dict[str, str]:
    return {f"key-{number}": value for number in range(count)}


def test_a_takeover_restores_only_what_the_copy_does_not_have(bench: Bench) -> None:
    bench.follow(0, 1)
    bench.log(numbered(500))
    bench.catch_up(copies=2)
    bench.log(numbered(3, "newer"))
    store, restored = bench.take_over()
    assert restored == 3
    assert (len(store.all_keys()), store.get(b"key-0")) == (500, b"newer")


def test_what_is_given_away_is_followed_again(bench: Bench) -> None:
    bench.log(numbered(10))
    bench.follow(0)
    bench.catch_up()
    store, _ = bench.take_over()
    bench.log(numbered(10, "own"))
    store.write(dict.fromkeys(store.all_keys(), b"own"), 20)
    bench.table.close(0)
    bench.follow(0)
    bench.log({"key-3": "others"})
    bench.catch_up()
    store, restored = bench.take_over()
    assert restored == 0
    assert (store.get(b"key-2"), store.get(b"key-3")) == (b"own", b"others")


def test_a_step_is_bounded(bench: Bench) -> None:
    bench.log(numbered(100))
    bench.follow(0)
    bench.standby.step(10)  # opens
    bench.standby.step(10)
    assert bench.standby.lag() == 90
    bench.catch_up(max_records=10)


def test_nothing_happens_before_a_step(bench: Bench) -> None:
    """`follow` is called during a rebalance, when nobody may wait for a broker or a disk."""
    bench.broker.close()
    bench.follow(0)
    assert not bench.store_of().exists()


def test_what_is_released_before_it_was_opened_is_forgotten(bench: Bench) -> None:
    bench.follow(0)
    bench.standby.release(bench.table, 0)
    bench.standby.release(bench.table, 0)
    bench.standby.step(10)
    assert not bench.store_of().exists()


def test_a_damaged_copy_is_made_anew(bench: Bench) -> None:
    bench.log(numbered(5))
    bench.follow(0)
    bench.catch_up()
    bench.standby.release(bench.table, 0)
    (bench.store_of() / "CURRENT").write_bytes(b"")
    bench.follow(0)
    bench.catch_up()
    store, restored = bench.take_over()
    assert (len(store.all_keys()), restored) == (5, 0)
    assert bench.count("ratestream_table_rebuilds_total") == 1


def test_a_copy_that_retention_has_left_behind_is_made_anew(bench: Bench) -> None:
    bench.log(numbered(5), at=1)
    bench.follow(0)
    bench.standby.step(1)
    bench.standby.step(1)
    assert bench.standby.lag() == 4
    bench.standby.release(bench.table, 0)
    while bench.broker.run_maintenance():
        pass
    bench.log({"new": "1"})
    bench.follow(0)
    bench.catch_up()
    store, _ = bench.take_over()
    assert store.all_keys() == [b"new"]


def lock(bench: Bench) -> Callable[[], None]:
    """As an owner that has not let go yet."""
    return Store(bench.store_of(), "cluster/changelog").close


def take_the_place(bench: Bench) -> Callable[[], None]:
    bench.store_of().parent.mkdir()
    bench.store_of().write_bytes(b"a file")
    return bench.store_of().unlink


def belong_elsewhere(bench: Bench) -> Callable[[], None]:
    Store(bench.store_of(), "cluster/other").close()
    return lambda: shutil.rmtree(bench.store_of())


@pytest.mark.parametrize("obstruct", [lock, take_the_place, belong_elsewhere])
def test_a_copy_that_cannot_be_opened_waits_and_disturbs_nobody(
    bench: Bench, obstruct: Callable[[Bench], Callable[[], None]]
) -> None:
    bench.log(numbered(5))
    clear = obstruct(bench)
    bench.follow(0)
    for _ in range(3):
        bench.standby.step(10)
    assert bench.standby.lag() == 0  # of what is open
    clear()
    bench.catch_up()


def test_a_copy_that_cannot_be_written_waits_and_loses_nothing(bench: Bench) -> None:
    bench.log(numbered(5))
    bench.follow(0)
    bench.standby.step(10)
    [copy] = bench.standby._follower.copies.values()
    copy.store.close()  # every write to it fails from now on
    bench.standby.step(10)
    bench.catch_up()
    store, restored = bench.take_over()
    assert (len(store.all_keys()), restored) == (5, 0)


def test_a_broker_that_is_away_is_waited_for(bench: Bench) -> None:
    bench.follow(0)
    bench.standby.step(10)
    bench.broker.close()
    for _ in range(3):
        bench.standby.step(10)
