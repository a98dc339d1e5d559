"""Bringing stores up to date with their changelogs, on the local broker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rocksdict import Options, Rdict

from ratestream.streaming import StateError
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.restoring import Restorer
from ratestream.streaming.store import Store
from ratestream.streaming.tables import Table
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import OutgoingRecord, ProducerConfig, TopicPartition, TopicSpec

STEPS = 200
ALL = 1_000
HALF_A_DAY = 12 * 3600


class Bench:
    """Changelogs of two partitions on a broker, and the stores that are to mirror them."""

    def __init__(self, folder: Path, *, retention_ms: int = -1) -> None:
        self.folder = folder
        self.broker = LocalBroker(None)
        source = Topic(TopicSpec("words", 2), str, str)
        changelog = TopicSpec("changelog", 2, retention_ms=retention_ms)
        self.broker.create_topics([changelog])
        self.table: Table[str, str] = Table("t", changelog, source, (str, str), None)
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry, folder)

    def log(self, entries: Mapping[str, str | None], partition: int = 0, at: int = 0) -> None:
        """Append to the changelog; `at` is the records' timestamp if it is not now."""
        with closing(self.broker.producer(ProducerConfig())) as producer:
            producer.send(
                [
                    OutgoingRecord(
                        "changelog",
                        key.encode(),
                        None if value is None else value.encode(),
                        partition,
                        at or None,
                    )
                    for key, value in entries.items()
                ]
            )
            producer.flush()

    def log_many(self, count: int = ALL, partition: int = 0) -> None:
        self.log({f"key-{number}": "value" for number in range(count)}, partition)

    def open(self, partition: int = 0) -> Store:
        return self.table.open(partition, self.folder, "cluster/changelog")

    def clean(self) -> None:
        while self.broker.run_maintenance():
            pass

    def restore(self, partition: int = 0) -> dict[bytes, bytes | None]:
        """What the store holds after a restore."""
        with closing(self.restorer()) as restorer:
            store = self.open(partition)
            restorer.add(self.table, partition, store)
            finish(restorer)
            found = {key: store.get(key) for key in store.all_keys()}
            self.table.close(partition)
            return found

    def restorer(self) -> Restorer:
        return Restorer(self.broker, "app", self.metrics)

    def count(self, metric: str) -> float:
        return self.registry.get_sample_value(metric, {"table": "t"}) or 0.0

    def gauge(self, metric: str) -> float | None:
        return self.registry.get_sample_value(metric)

    @contextmanager
    def known(self, partition: int = 0) -> Iterator[Rdict]:
        """What the store knows about itself, to be changed."""
        db = Rdict(str(self.folder / "t" / str(partition)), Options(raw_mode=True))
        yield db
        db.close()


def finish(restorer: Restorer) -> None:
    for _ in range(STEPS):
        restorer.step(0.05)
        if not restorer.active:
            return
    raise AssertionError("the restore does not end")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.table.close_all()
    bench.broker.close()


@pytest.fixture
def short_bench(tmp_path: Path) -> Iterator[Bench]:
    """Whose changelog is deleted from its beginning on."""
    bench = Bench(tmp_path, retention_ms=3_600_000)
    yield bench
    bench.table.close_all()
    bench.broker.close()


def test_an_empty_changelog_is_restored_at_once(bench: Bench) -> None:
    assert bench.restore() == {}
    with closing(bench.restorer()) as restorer:
        restorer.add(bench.table, 0, bench.open())
        assert restorer.waits_for(TopicPartition("words", 0))
        restorer.step(0.0)
        assert not restorer.active


def test_a_changelog_of_which_nothing_is_left_is_restored_at_once(short_bench: Bench) -> None:
    """Its first offset and its end are the same, and not 0."""
    short_bench.log({"a": "1", "b": "2"}, at=1)
    short_bench.clean()
    assert short_bench.restore() == {}
    store = short_bench.open()
    assert (store.checkpoint, store.wiped) == (2, None)


def test_a_store_reads_only_what_it_does_not_have(bench: Bench) -> None:
    bench.log({"a": "1", "b": "1"})
    bench.restore()
    bench.log({"b": None, "c": "2"})
    before = bench.count("ratestream_restored_records_total")
    assert bench.restore() == {b"a": b"1", b"c": b"2"}
    assert bench.count("ratestream_restored_records_total") - before == 2
    assert bench.count("ratestream_table_rebuilds_total") == 0


def test_what_is_overwritten_counts_as_restored(bench: Bench) -> None:
    for value in ("one", "two", "three"):
        bench.log({"key": value})
    assert bench.restore() == {b"key": b"three"}
    assert bench.count("ratestream_restored_records_total") == 3


def test_only_the_partitions_of_what_is_restored_wait(bench: Bench) -> None:
    bench.log_many(partition=1)
    with closing(bench.restorer()) as restorer:
        restorer.add(bench.table, 1, bench.open(1))
        assert restorer.waits_for(TopicPartition("words", 1))
        assert not restorer.waits_for(TopicPartition("words", 0))
        assert not restorer.waits_for(TopicPartition("other", 1))
        finish(restorer)
        assert not restorer.waits_for(TopicPartition("words", 1))


def test_progress_is_told(bench: Bench) -> None:
    bench.log_many(1_234)
    with closing(bench.restorer()) as restorer:
        assert (restorer.remaining(), restorer.progress()) == (0, None)
        restorer.add(bench.table, 0, bench.open())
        assert restorer.remaining() == 1_234
        assert restorer.progress() == "restoring tables: 1,234 records to go"
        finish(restorer)
        assert (restorer.remaining(), restorer.progress()) == (0, None)
        assert bench.gauge("ratestream_restore_remaining_records") == 0
        assert bench.gauge("ratestream_restoring_partitions") == 0


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_restore_can_be_dropped_at_any_step_and_starts_again_clean(
    bench: Bench, steps: int
) -> None:
    """The next rebalance may take the partition away, and the one after bring it back."""
    bench.log_many(25_000)
    bench.log_many(partition=1)
    with closing(bench.restorer()) as restorer:
        restorer.add(bench.table, 0, bench.open())
        restorer.add(bench.table, 1, bench.open(1))
        for _ in range(steps):
            restorer.step(0.05)
        restorer.drop({TopicPartition("words", 0)})
        bench.table.close(0)
        assert not restorer.waits_for(TopicPartition("words", 0))
        finish(restorer)
        assert len(bench.table._partitions[1].store.all_keys()) == ALL
        bench.log({"key-0": "new", "key-1": None})
        restorer.add(bench.table, 0, bench.open())
        finish(restorer)
        store = bench.table._partitions[0].store
        assert (len(store.all_keys()), store.get(b"key-0")) == (24_999, b"new")
        assert bench.count("ratestream_table_rebuilds_total") == 0


def test_a_store_that_needs_what_retention_deleted_is_rebuilt(short_bench: Bench) -> None:
    bench = short_bench
    bench.log({"a": "1"}, at=1)
    assert bench.restore() == {b"a": b"1"}
    bench.log({"b": "1"}, at=1)
    bench.clean()
    bench.log({"c": "2"})
    assert bench.restore() == {b"c": b"2"}
    assert bench.count("ratestream_table_rebuilds_total") == 1


def test_retention_that_deletes_during_a_restore_starts_it_over(short_bench: Bench) -> None:
    bench = short_bench
    bench.log({"a": "1", "b": "1"}, at=1)
    with closing(bench.restorer()) as restorer:
        store = bench.open()
        restorer.add(bench.table, 0, store)
        bench.clean()
        bench.log({"c": "2"})
        finish(restorer)
        assert (store.all_keys(), store.wiped) == ([b"c"], "the changelog begins later")
        assert bench.count("ratestream_table_rebuilds_total") == 1


def test_a_store_ahead_of_its_changelog_is_of_another_history(bench: Bench) -> None:
    bench.log({"a": "1"})
    store = bench.open()
    store.write({}, 7)
    with closing(bench.restorer()) as restorer:
        with pytest.raises(StateError, match=r"stands at offset 7 .* which ends at 1"):
            restorer.add(bench.table, 0, store)
        assert not restorer.active


def test_a_store_that_may_have_missed_deletions_is_rebuilt(bench: Bench) -> None:
    bench.log({"a": "1", "b": "1"})
    bench.restore()
    with bench.known() as db:
        db[b"d" + b"deleted long ago"] = b"1"
        db[b"mwritten"] = str(int(db[b"mwritten"] or 0) - HALF_A_DAY - 60).encode()
    bench.log({"b": "2"})
    assert bench.restore() == {b"a": b"1", b"b": b"2"}
    assert bench.count("ratestream_table_rebuilds_total") == 1


def test_an_old_store_that_has_everything_is_kept(bench: Bench) -> None:
    bench.log({"a": "1"})
    bench.restore()
    with bench.known() as db:
        db[b"mwritten"] = b"0"
    bench.restore()
    assert bench.count("ratestream_table_rebuilds_total") == 0


def test_a_restore_that_was_interrupted_half_a_day_ago_is_begun_again(bench: Bench) -> None:
    """What it had read may have been deleted since, and the deletion compacted away."""
    bench.log_many(25_000)
    with closing(bench.restorer()) as restorer:
        store = bench.open()
        store._db[b"mwritten"] = str(int(time.time()) - HALF_A_DAY - 60).encode()
        restorer.add(bench.table, 0, store)
        restorer.step(0.05)
        assert 0 < (store.checkpoint or 0) < 25_000
        bench.table.close(0)
    with bench.known() as db:
        db[b"d" + b"deleted long ago"] = b"1"
    assert len(bench.restore()) == 25_000
    assert bench.count("ratestream_table_rebuilds_total") == 1


def test_a_damaged_store_is_rebuilt_and_says_so(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.log({"a": "1"})
    bench.restore()
    (bench.folder / "t" / "0" / "CURRENT").write_bytes(b"")
    assert bench.restore() == {b"a": b"1"}
    assert bench.count("ratestream_table_rebuilds_total") == 1
    told = capsys.readouterr().out
    assert "table_rebuilt" in told
    assert "reason=damaged" in told
