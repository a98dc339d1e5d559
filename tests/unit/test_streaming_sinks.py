"""Offsets kept by the sink: what is read is stored once, whatever the group has committed. The sink
here is SQLite: rows and offsets in one transaction."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ratestream.streaming import (
    App,
    Batch,
    ConfigurationError,
    ConsumerConfig,
    Event,
    FencedError,
    Move,
    OnError,
    OutgoingRecord,
    Record,
    StalledError,
    StateError,
    Stream,
    StreamingError,
    TopicPartition,
    WorkerConfig,
    WorkerState,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import ProducerConfig, RecordRun

READ = "ratestream_records_in_total"


class Sink:
    """Numbers in the order stored. `is_away` makes it silent; `fails` ends its next writes, before
    they have happened or after."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS number (number INTEGER)")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS stands (topic, topic_id, partition, next,"
            " PRIMARY KEY (topic, partition))"
        )
        self.is_away = False
        self.fails: list[str] = []
        self.asked = 0

    async def positions(
        self, partitions: Sequence[TopicPartition], topic_ids: Mapping[str, str]
    ) -> Mapping[TopicPartition, int]:
        while self.is_away:
            await asyncio.sleep(0.01)
        self.asked += 1
        found = {}
        for partition in partitions:
            row = self._database.execute(
                "SELECT topic_id, next FROM stands WHERE topic = ? AND partition = ?", partition
            ).fetchone()
            if row is None:
                continue
            if row[0] != topic_ids[partition.topic]:
                raise ConfigurationError(f"the sink stands in another {partition.topic}")
            found[partition] = row[1]
        self._topic_ids = topic_ids
        return found

    def write(self, numbers: Sequence[int], moves: Sequence[Move]) -> None:
        fails = self.fails.pop(0) if self.fails else ""
        self._database.execute("BEGIN")
        try:
            for move in moves:
                self._move(move)
            self._database.executemany("INSERT INTO number VALUES (?)", [(n,) for n in numbers])
            if fails == "before":
                raise FencedError("the connection is gone")
            self._database.execute("COMMIT")
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        if fails == "after":
            raise FencedError("the answer is lost")

    def _move(self, move: Move) -> None:
        topic, number = move.partition
        if move.start is None:
            self._database.execute(
                "INSERT INTO stands VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
                (topic, self._topic_ids[topic], number),
            )
        changed = self._database.execute(
            "UPDATE stands SET next = ? WHERE topic = ? AND partition = ? AND next = ?",
            (move.next, topic, number, move.start or 0),
        ).rowcount
        if changed != 1:
            raise FencedError(f"{topic}[{number}] does not stand at {move.start}")

    def numbers(self) -> list[int]:
        return [row[0] for row in self._database.execute("SELECT number FROM number ORDER BY 1")]

    def stand(self, offset: int) -> None:
        self._database.execute("UPDATE stands SET next = ? WHERE partition = 0", (offset,))


def storing_app(sink: Sink, batch: int = 7) -> App:
    app = App("storing")
    topic = app.topic("in", value_type=int, partitions=2)
    app.dead_letter = app.topic("dead-letter", key_type=bytes, value_type=bytes, partitions=1)

    @app.agent(topic, offsets_in=sink, on_error=OnError())
    async def store(stream: Stream[int]) -> None:
        async for each in stream.batches(batch, within=0.02):
            sink.write(each.values, each.moves)

    return app


def config(folder: Path) -> WorkerConfig:
    return WorkerConfig(data_dir=str(folder), commit_interval=0.02, retry_backoff_min=0.01)


def numbers(*values: int) -> list[OutgoingRecord]:
    return [OutgoingRecord("in", None, b"%d" % n, n % 2) for n in values]


def run_once(broker: LocalBroker, sink: Sink, folder: Path, *values: int) -> None:
    async def scenario() -> None:
        async with AppTester(storing_app(sink), broker, config(folder)) as tester:
            if values:
                tester.write(numbers(*values))
            await tester.settle()

    asyncio.run(scenario())


@pytest.mark.parametrize("fails", [["before"], ["after"], ["before", "after", "after", "before"]])
def test_a_write_whose_end_is_unknown_is_neither_lost_nor_repeated(
    tmp_path: Path, fails: list[str]
) -> None:
    sink = Sink(tmp_path / "sink")
    sink.fails = [*fails, ""]
    run_once(LocalBroker(None), sink, tmp_path, *range(50))
    assert sink.numbers() == list(range(50))
    assert not sink.fails


def test_it_goes_on_from_where_the_sink_stands_whatever_the_group_has_committed(
    tmp_path: Path,
) -> None:
    """The group is first behind the sink, as after a kill between the two commits; then ahead of
    it, as when a backup of the sink is restored."""
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")
    run_once(broker, sink, tmp_path, *range(10))
    for offset in (0, 5):
        commit(broker, offset)
        run_once(broker, sink, tmp_path)
        assert sink.numbers() == list(range(10))
    sink.stand(3)
    run_once(broker, sink, tmp_path, *range(10, 20))
    assert sink.numbers() == sorted([*range(20), 6, 8])


def test_a_sink_that_never_takes_anything_ends_the_worker(tmp_path: Path) -> None:
    """It stands where its last row ends, and the group beyond the end of that row's transaction:
    to go from one to the other and back is no progress."""
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")

    async def scenario() -> None:
        settings = replace(config(tmp_path), progress_timeout=2.0)
        with pytest.raises(StalledError, match=r"nothing committed for"):
            async with AppTester(storing_app(sink), broker, settings) as tester:
                write_in_transactions(broker, *range(10))
                await tester.settle()
                sink.fails = ["before"] * 1_000
                write_in_transactions(broker, *range(10, 14))
                await tester.settle()

    asyncio.run(scenario())
    assert sink.numbers() == list(range(10))


def test_while_one_batch_is_written_the_next_is_read_and_nothing_is_committed(
    tmp_path: Path,
) -> None:
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")
    app = App("storing")
    topic = app.topic("in", value_type=int, partitions=2)
    may_end = asyncio.Event()

    @app.agent(topic, offsets_in=sink)
    async def store(stream: Stream[int]) -> None:
        async for each in stream.batches(10, within=0.02):
            await may_end.wait()
            sink.write(each.values, each.moves)

    async def scenario() -> None:
        async with AppTester(app, broker, config(tmp_path)) as tester:
            for start in (0, 10):
                tester.write(numbers(*range(start, start + 10)))
                while app.registry.get_sample_value(READ, {"topic": "in"}) != start + 10:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # ten commit intervals
            assert committed(broker) == {}
            may_end.set()
            await tester.settle()
        assert sink.numbers() == list(range(20))
        assert set(committed(broker).values()) == {10}

    asyncio.run(scenario())


def test_records_wait_while_the_sink_is_away_and_the_group_does_not(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "sink")
    sink.is_away = True

    async def scenario() -> None:
        app = storing_app(sink)
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            tester.write(numbers(*range(10)))
            while not (reasons := tester.worker.readiness()) or "sink" not in reasons[0]:
                await asyncio.sleep(0.01)
            assert sink.numbers() == []
            sink.is_away = False
            await tester.settle()
            assert sink.numbers() == list(range(10))

    asyncio.run(scenario())


def test_partitions_that_move_are_asked_for_anew(tmp_path: Path) -> None:
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")

    async def scenario() -> None:
        async with AppTester(storing_app(sink), broker, config(tmp_path)) as one:
            for start in range(0, 60, 20):
                one.write(numbers(*range(start, start + 10)))
                async with AppTester(storing_app(sink), broker, config(tmp_path)) as two:
                    one.write(numbers(*range(start + 10, start + 20)))
                    await two.settle()
            await one.settle()

    asyncio.run(scenario())
    assert sink.numbers() == list(range(60))


def test_a_sink_of_another_topic_stops_the_start(tmp_path: Path) -> None:
    sink = Sink(tmp_path / "sink")
    run_once(LocalBroker(None), sink, tmp_path, *range(10))
    with pytest.raises(ConfigurationError, match="another in"):
        run_once(LocalBroker(None), sink, tmp_path, *range(10))
    assert sink.numbers() == list(range(10))


def test_a_sink_beyond_the_end_of_the_topic_stops_the_start(tmp_path: Path) -> None:
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")
    run_once(broker, sink, tmp_path, *range(10))
    sink.stand(100)

    async def scenario() -> None:
        async with AppTester(storing_app(sink), broker, config(tmp_path)) as tester:
            while tester.worker.state is WorkerState.RUNNING:
                await asyncio.sleep(0.01)

    with pytest.raises(StateError, match=r"stands at offset 100 of in\[0\], which ends at 5"):
        asyncio.run(scenario())


def test_what_cannot_be_decoded_is_on_the_dead_letters_before_the_sink_moves_past_it(
    tmp_path: Path,
) -> None:
    broker, sink = LocalBroker(None), Sink(tmp_path / "sink")
    seen: list[int] = []

    async def scenario() -> None:
        app = storing_app(sink)
        async with AppTester(app, broker, config(tmp_path)) as tester:
            write = sink.write

            def watched_write(numbers: Sequence[int], moves: Sequence[Move]) -> None:
                seen.append(len(tester.records("dead-letter")))
                write(numbers, moves)

            sink.write = watched_write  # type: ignore[method-assign]  # wraps it
            tester.write([OutgoingRecord("in", None, b"x", 0), *numbers(2)])
            await tester.settle()

    asyncio.run(scenario())
    assert sink.numbers() == [2]
    assert seen == [1]


def test_offsets_are_in_a_sink_or_in_a_transaction(tmp_path: Path) -> None:
    app = App("both", processing_guarantee="exactly_once")
    topic = app.topic("in", value_type=int)
    with pytest.raises(ConfigurationError, match="not in both"):
        app.agent(topic, offsets_in=Sink(tmp_path / "sink"))


def test_the_halves_of_a_batch_follow_each_other() -> None:
    def event(partition: int, offset: int) -> Event:
        return Event(None, offset, RecordRun([Record("in", partition, offset, None, b"", 0)]), 0)

    events = [event(0, 3), event(1, 8), event(0, 4), event(0, 9)]
    zero, one = TopicPartition("in", 0), TopicPartition("in", 1)
    batch: Batch[int] = Batch(events, {zero: 3, one: None})
    assert batch.moves == [Move(zero, 3, 10), Move(one, None, 9)]
    first, second = batch.halves()
    assert first.moves == [Move(zero, 3, 4), Move(one, None, 9)]
    assert second.moves == [Move(zero, 4, 10)]
    assert first.values + second.values == batch.values


def write_in_transactions(broker: LocalBroker, *values: int) -> None:
    consumer = broker.consumer(ConsumerConfig())
    with closing(consumer), closing(broker.transactional_producer(ProducerConfig(), "w")) as writer:
        for record in numbers(*values):
            writer.begin()
            writer.send([record])
            writer.commit({}, consumer)


def committed(broker: LocalBroker) -> dict[TopicPartition, int]:
    with closing(broker.consumer(ConsumerConfig(group="storing"))) as consumer:
        return consumer.committed([TopicPartition("in", number) for number in range(2)])


def commit(broker: LocalBroker, offset: int) -> None:
    consumer = broker.consumer(ConsumerConfig(group="storing"))
    consumer.commit({TopicPartition("in", 0): offset})
    consumer.close()


@pytest.mark.parametrize("way", ["records", "items", "__aiter__"])
def test_who_has_a_sink_reads_batches(tmp_path: Path, way: str) -> None:
    app = App("storing")

    @app.agent(app.topic("in", value_type=int, partitions=2), offsets_in=Sink(tmp_path / "sink"))
    async def store(stream: Stream[int]) -> None:
        async for _ in getattr(stream, way)():
            pass

    async def scenario() -> None:
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            tester.write(numbers(1))
            await tester.settle()

    with pytest.raises(StreamingError, match="keeps the offsets reads `batches`"):
        asyncio.run(scenario())
