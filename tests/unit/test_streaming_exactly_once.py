"""Exactly once, whatever happens between reading a record and committing it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pytest

from ratestream.streaming import (
    AgentError,
    App,
    BrokerError,
    ConfigurationError,
    ConsumerConfig,
    OnError,
    OutgoingRecord,
    ProducerConfig,
    Record,
    StalledError,
    Stream,
    StreamingError,
    TopicPartition,
    TransactionAbortedError,
    Worker,
    WorkerConfig,
    WorkerState,
)
from ratestream.streaming import worker as worker_module
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.producer import LocalTransactionalProducer
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import Consumer
from tests.support.brokers import send

Trouble = Callable[[str], Exception | None]


class TroubledBroker(LocalBroker):
    """A local broker whose transactions fail as `troubles` says, one for each commit: before it
    has happened, or after, when nobody hears of it."""

    def __init__(self) -> None:
        super().__init__(None)
        self.before: list[BrokerError] = []
        self.after: list[BrokerError] = []
        self.commit_seconds = 0.0

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> LocalTransactionalProducer:
        producer = super().transactional_producer(config, transactional_id)
        commit = producer.commit

        def troubled_commit(
            offsets: Mapping[TopicPartition, int], consumer: Consumer
        ) -> dict[TopicPartition, int]:
            time.sleep(self.commit_seconds)
            if self.before:
                producer.abort()
                raise self.before.pop(0)
            done = commit(offsets, consumer)
            if self.after:
                raise self.after.pop(0)
            return done

        producer.commit = troubled_commit  # type: ignore[method-assign]  # wraps it
        return producer


def counting_app(on_error: OnError | None = None, fail: Callable[[int], bool] | None = None) -> App:
    """Sends on how often it has seen a number, from a table."""
    app = App("counting", processing_guarantee="exactly_once")
    numbers = app.topic("in", value_type=int, partitions=2)
    out = app.topic("out", value_type=list[int], partitions=2)
    app.dead_letter = app.topic("dead-letter", key_type=bytes, value_type=bytes, partitions=1)
    seen = app.Table("seen", value_type=int, default=int, partitions_of=numbers)

    @app.agent(numbers, on_error=on_error or OnError())
    async def count(stream: Stream[int]) -> None:
        async for key, number in stream.items():
            seen[key] += 1
            await out.send(key=key, value=[number, seen[key]])
            if fail and fail(number):
                raise ValueError(f"cannot do {number}")

    return app


def config(folder: Path, **changes: object) -> WorkerConfig:
    settings = {"commit_interval": 0.02, "retry_backoff_min": 0.01, "drain_timeout": 1.0}
    return WorkerConfig(data_dir=str(folder), **(settings | changes))  # type: ignore[arg-type]


def numbers(*values: int) -> list[OutgoingRecord]:
    return [OutgoingRecord("in", b"k%d" % (n % 3), b"%d" % n) for n in values]


def expected(*values: int) -> list[list[int]]:
    counts: dict[int, int] = {}
    for n in values:
        counts[n % 3] = counts.get(n % 3, 0) + 1
    seen: dict[int, int] = {}
    out = []
    for n in values:
        seen[n % 3] = seen.get(n % 3, 0) + 1
        out.append([n, seen[n % 3]])
    return sorted(out)


TROUBLES: dict[str, Sequence[tuple[str, BrokerError]]] = {
    "aborted": [("before", TransactionAbortedError("the group has rebalanced"))],
    "aborted again and again": [("before", TransactionAbortedError("once more"))] * 5,
    "refused": [("before", BrokerError("the producer is fenced"))],
    "committed without an answer": [("after", BrokerError("no answer"))],
    "all of it": [
        ("before", TransactionAbortedError("the group has rebalanced")),
        ("after", BrokerError("no answer")),
        ("before", BrokerError("the producer is fenced")),
        ("after", BrokerError("no answer")),
    ],
}


@pytest.mark.parametrize("troubles", TROUBLES.values(), ids=TROUBLES.keys())
def test_whatever_becomes_of_a_transaction_each_record_counts_once(
    tmp_path: Path, troubles: Sequence[tuple[str, BrokerError]]
) -> None:
    async def scenario() -> None:
        broker = TroubledBroker()
        async with AppTester(counting_app(), broker, config(tmp_path)) as tester:
            tester.write(numbers(*range(10)))
            await tester.settle()
            for when, trouble in troubles:
                getattr(broker, when).append(trouble)
            written = 10
            while broker.before or broker.after:
                tester.write(numbers(*range(written, written + 10)))
                written += 10
                await asyncio.sleep(0.03)
            await tester.settle()
            assert sorted(tester.received("out")) == expected(*range(written))
        broker.close()

    asyncio.run(scenario())


def test_an_aborted_transaction_neither_leaves_the_group_nor_opens_tables_again(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        broker = TroubledBroker()
        app = counting_app()
        async with AppTester(app, broker, config(tmp_path)) as tester:
            tester.write(numbers(1))
            await tester.settle()
            broker.before = [TransactionAbortedError("the group has rebalanced")]
            tester.write(numbers(2))
            await tester.settle()
            assert sample(app, "ratestream_setbacks_total") == 1
            assert sample(app, "ratestream_rebalances_total", kind="assigned") == 1
            assert sample(app, "ratestream_worker_retries_total") == 0
        broker.close()

    asyncio.run(scenario())


def test_outputs_of_lost_partitions_are_not_committed(tmp_path: Path) -> None:
    """The group gives them to another instance while an agent works on them: it alone counts."""
    waiting = asyncio.Event()

    def slow_app(is_slow: bool) -> App:
        app = App("slow", processing_guarantee="exactly_once")
        topic = app.topic("in", value_type=int, partitions=1)
        out = app.topic("out", value_type=int, partitions=1)

        @app.agent(topic)
        async def pass_on(stream: Stream[int]) -> None:
            async for number in stream:
                await out.send(key="k", value=number)
                if is_slow and number == 3:
                    waiting.set()
                    time.sleep(2.0)  # noqa: ASYNC251 - as heavy computing does

        return app

    async def scenario() -> None:
        broker = LocalBroker(None)
        settings = config(tmp_path, max_poll_interval=0.5)
        async with AppTester(slow_app(is_slow=True), broker, settings) as one:
            one.write(numbers(0))
            await one.settle()
            one.write([OutgoingRecord("in", b"k", b"%d" % n) for n in (1, 2, 3, 4)])
            await waiting.wait()
            async with AppTester(slow_app(is_slow=False), broker, config(tmp_path)) as two:
                await two.settle()
                assert two.received("out") == [0, 1, 2, 3, 4]
        broker.close()

    asyncio.run(scenario())


def test_a_record_is_tried_again_as_often_as_its_policy_says(tmp_path: Path) -> None:
    failures = [4, 4]

    def fail(number: int) -> bool:
        return bool(failures) and failures[0] == number and bool(failures.pop(0))

    async def scenario() -> None:
        app = counting_app(OnError(retries=2, backoff=0.01), fail)
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            tester.write(numbers(*range(8)))
            await tester.settle()
            assert sorted(tester.received("out")) == expected(*range(8))
            assert sample(app, "ratestream_agent_errors_total", agent="count") == 2

    asyncio.run(scenario())


def test_a_record_that_never_succeeds_stops_the_worker_and_is_not_committed(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        app = counting_app(OnError(retries=1, backoff=0.01), lambda number: number == 4)
        with pytest.raises(AgentError, match=r"count failed at in\[[01]\]@\d.*cannot do 4"):
            async with AppTester(app, broker, config(tmp_path)) as tester:
                tester.write(numbers(*range(8)))
                await tester.settle()
        async with AppTester(counting_app(), broker, config(tmp_path)) as tester:
            await tester.settle()
            assert sorted(tester.received("out")) == expected(*range(8))
        broker.close()

    asyncio.run(scenario())


def test_a_record_can_go_to_the_dead_letters_instead_with_what_went_wrong(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = OnError(retries=1, backoff=0.01, then="dead_letter")
        app = counting_app(policy, lambda number: number == 4)
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            tester.write(numbers(*range(8)))
            await tester.settle()
            others = [n for n in range(8) if n != 4]
            assert sorted(tester.received("out")) == expected(*others)
            (letter,) = tester.records("dead-letter")
            assert letter.value == b"4"
            assert b"cannot do 4" in dict(letter.headers)["reason"]

    asyncio.run(scenario())


def test_of_a_list_only_the_record_at_fault_goes_to_the_dead_letters(tmp_path: Path) -> None:
    app = App("listing", processing_guarantee="exactly_once")
    topic = app.topic("in", value_type=int, partitions=1)
    out = app.topic("out", value_type=int, partitions=1)
    app.dead_letter = app.topic("dead-letter", key_type=bytes, value_type=bytes, partitions=1)

    @app.agent(topic, on_error=OnError(then="dead_letter"))
    async def pass_on(stream: Stream[int]) -> None:
        async for events in stream.take(100, within=0.05):
            for event in events:
                await out.send(key="k", value=event.value)
                if event.value == 5:
                    raise ValueError("five")

    async def scenario() -> None:
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            tester.write(numbers(*range(20)))
            await tester.settle()
            assert tester.received("out") == [n for n in range(20) if n != 5]
            assert [letter.value for letter in tester.records("dead-letter")] == [b"5"]

    asyncio.run(scenario())


def loud_app() -> App:
    """Sends on what it reads: as often as the number says, with a key and a header of 100 bytes."""
    app = App("loud", processing_guarantee="exactly_once")
    topic = app.topic("in", value_type=int, partitions=1)
    out = app.topic("out", value_type=int, partitions=1)

    @app.agent(topic)
    async def repeat(stream: Stream[int]) -> None:
        async for number in stream:
            for _ in range(number):
                await out.send(key="k" * 100, value=number, headers=(("h" * 50, b"h" * 50),))

    return app


# Each stands for five of the records that `loud_app` sends, which have 201 bytes with the least of
# values.
OUTPUT_BOUNDS = [{"output_max_records": 5}, {"output_max_bytes": 1005}]


@pytest.mark.parametrize("bound", OUTPUT_BOUNDS)
def test_agents_wait_for_room_in_the_outbox_and_no_transaction_waits_for_them(
    tmp_path: Path, bound: dict[str, int]
) -> None:
    async def scenario() -> None:
        app = loud_app()
        async with AppTester(app, LocalBroker(None), config(tmp_path, **bound)) as tester:
            tester.write([OutgoingRecord("in", b"k", b"1")] * 200)
            await tester.settle()
            assert tester.received("out") == [1] * 200
            assert (sample(app, "ratestream_transactions_total", result="committed") or 0) >= 40

    asyncio.run(scenario())


def test_a_table_never_goes_back_while_a_full_outbox_waits_for_the_commit_under_way(
    tmp_path: Path,
) -> None:
    """Read from outside of the agent, which waits then; no cache holds what is being written."""

    async def scenario() -> None:
        broker, app = TroubledBroker(), counting_app()
        broker.commit_seconds = 0.05
        keys, seen = range(20), app.tables["seen"]
        reads: list[dict[str, int]] = []

        @app.timer(0.005)
        async def read() -> None:
            reads.append(dict(seen.items()))

        bounds = {"output_max_records": 5, "batch_max_records": 20, "table_cache_entries": 1}
        async with AppTester(app, broker, config(tmp_path, **bounds)) as tester:
            for _ in range(5):
                tester.write([OutgoingRecord("in", b"k%d" % n, b"%d" % n, 0) for n in keys])
            await tester.settle()
        for earlier, later in pairwise(filter(None, reads)):  # a closed table has nothing
            assert all(later[key] >= times for key, times in earlier.items())
        assert max(map(len, reads)) == len(keys)
        broker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("bound", OUTPUT_BOUNDS)
def test_what_is_sent_for_one_record_is_bounded(tmp_path: Path, bound: dict[str, int]) -> None:
    (setting,) = (f"{name}={value}" for name, value in bound.items())

    async def scenario(number: int) -> list[int]:
        async with AppTester(loud_app(), LocalBroker(None), config(tmp_path, **bound)) as tester:
            tester.write([OutgoingRecord("in", b"k", b"%d" % number)])
            await tester.settle()
            return tester.received("out")

    assert asyncio.run(scenario(9)) == [9] * 9
    with pytest.raises(AgentError, match=setting):
        asyncio.run(scenario(11))


COMMITTED_OF_100 = {
    "by size": ({"commit_max_records": 10}, range(50, 101)),
    "by time": ({"commit_interval": 0.05}, range(50, 101)),
    "not at all": ({}, range(1)),
}


@pytest.mark.parametrize(
    ("limit", "committed"), COMMITTED_OF_100.values(), ids=COMMITTED_OF_100.keys()
)
def test_input_without_an_end_is_committed_by_size_or_by_time(
    tmp_path: Path, limit: dict[str, float], committed: range
) -> None:
    app = App("endless", processing_guarantee="exactly_once")
    topic = app.topic("in", value_type=int, partitions=1)
    done: list[int] = []

    @app.agent(topic)
    async def work(stream: Stream[int]) -> None:
        async for number in stream:
            await asyncio.sleep(0.01)
            done.append(number)

    async def scenario() -> None:
        broker = LocalBroker(None)
        broker.create_topics(app.topic_specs())
        send(broker, *numbers(*range(10_000)))
        unlimited = {"commit_interval": 60.0, "commit_max_records": 10**6, "batch_max_records": 5}
        async with AppTester(app, broker, config(tmp_path, **(unlimited | limit))) as tester:
            while len(done) < 100:
                await asyncio.sleep(0.01)
            assert 10_000 - tester.lag(["in"]) in committed
        broker.close()

    asyncio.run(scenario())


def test_the_first_records_of_a_poll_that_is_dropped_are_read_again(tmp_path: Path) -> None:
    """The poll that brings them also loses another partition: none of its records may be done."""

    class LosingBroker(LocalBroker):
        has_lost = False

        def consumer(self, config: ConsumerConfig) -> LocalConsumer:
            consumer = super().consumer(config)
            poll = consumer.poll

            def losing_poll(max_records: int, timeout: float) -> list[Record]:
                records = poll(max_records, timeout)
                if records and config.group and not self.has_lost:
                    self.has_lost = True
                    consumer._listener.lost([TopicPartition("in", 1)])  # type: ignore[union-attr]
                    consumer._cursors.pop(TopicPartition("in", 1))
                return records

            consumer.poll = losing_poll  # type: ignore[method-assign]  # wraps it
            return consumer

    async def scenario() -> None:
        broker = LosingBroker(None)
        async with AppTester(counting_app(), broker, config(tmp_path)) as tester:
            tester.write([OutgoingRecord("in", b"k0", b"%d" % n, 0) for n in range(0, 15, 3)])
            await tester.settle()
            assert broker.has_lost
            assert tester.received("out") == expected(*range(0, 15, 3))
        broker.close()

    asyncio.run(scenario())


def test_a_partition_that_comes_back_is_not_read_from_where_it_was_given_away(
    tmp_path: Path,
) -> None:
    def in_partition(number: int, *values: int) -> list[OutgoingRecord]:
        return [OutgoingRecord("in", b"k%d" % number, b"%d" % n, number) for n in values]

    async def scenario() -> None:
        broker = TroubledBroker()
        async with AppTester(counting_app(), broker, config(tmp_path)) as one:
            one.write(in_partition(0, 0) + in_partition(1, 1))
            await one.settle()
            async with AppTester(counting_app(), broker, config(tmp_path)) as two:
                while two.worker.readiness() or not any(owns(two, number) for number in (0, 1)):
                    await asyncio.sleep(0.01)
                given = next(number for number in (0, 1) if owns(two, number))
                two.write(in_partition(given, 2, 3, 4))
                await two.settle()
            while not owns(one, given) or one.worker.readiness():
                await asyncio.sleep(0.01)
            broker.before = [TransactionAbortedError("the group has rebalanced")]
            one.write(in_partition(1 - given, 5))
            await one.settle()
            assert not broker.before
            assert sorted(n for n, _ in one.received("out")) == [0, 1, 2, 3, 4, 5]
        broker.close()

    asyncio.run(scenario())


def test_half_of_what_is_sent_for_a_list_is_not_committed(tmp_path: Path) -> None:
    """While a commit waits for one agent, the time of another's list comes."""
    app = App("taking", processing_guarantee="exactly_once")
    slow = app.topic("slow", value_type=int, partitions=1)
    busy = app.topic("busy", value_type=int, partitions=1)
    out = app.topic("out", value_type=int, partitions=1)
    failures = ["not yet"]

    @app.agent(slow, on_error=OnError(retries=3, backoff=0.01))
    async def pass_on(stream: Stream[int]) -> None:
        async for events in stream.take(100, within=0.4):
            for event in events:
                await out.send(key="k", value=event.value)
                await asyncio.sleep(0.3)
            if failures:
                raise ValueError(failures.pop())

    @app.agent(busy)
    async def be_busy(stream: Stream[int]) -> None:
        async for _ in stream.take(100, within=0.3):
            await asyncio.sleep(0.3)

    async def scenario() -> None:
        async with AppTester(app, LocalBroker(None), config(tmp_path)) as tester:
            while tester.worker.readiness():
                await asyncio.sleep(0.01)
            records = [OutgoingRecord("slow", b"k", b"%d" % n) for n in (1, 2, 3)]
            tester.write([*records, OutgoingRecord("busy", b"k", b"0")])
            await tester.settle()
            assert tester.received("out") == [1, 2, 3]

    asyncio.run(scenario())


def test_an_agent_that_decides_for_a_topic_has_it_alone() -> None:
    app = App("crowded")
    topic = app.topic("in", value_type=int)

    async def read(stream: Stream[int]) -> None: ...

    app.agent(topic)(read)
    with pytest.raises(ConfigurationError, match="in has several agents"):
        app.agent(topic, on_error=OnError(then="dead_letter"))(read)


def test_a_restore_may_take_longer_than_a_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        async with AppTester(counting_app(), broker, config(tmp_path / "one")) as tester:
            changelog = "counting-seen-changelog"
            filling = [OutgoingRecord(changelog, b"f%d" % n, b"1", n % 2) for n in range(60_000)]
            tester.write(filling)
            tester.write(numbers(*range(10)))
            await tester.settle()
        app = counting_app()
        settings = config(tmp_path / "two", transaction_timeout=0.05)
        async with AppTester(app, broker, settings) as tester:
            tester.write(numbers(*range(10, 20)))
            await tester.settle()
            assert (sample(app, "ratestream_restored_records_total", table="seen") or 0) > 60_000
            assert sample(app, "ratestream_setbacks_total") == 0
            assert sorted(tester.received("out")) == expected(*range(20))
        broker.close()

    asyncio.run(scenario())


def test_who_does_not_get_on_is_not_ready_and_then_ends(tmp_path: Path) -> None:
    app = App("stuck")
    topic = app.topic("in", value_type=int, partitions=1)

    @app.agent(topic)
    async def wait(stream: Stream[int]) -> None:
        async for _ in stream:
            await asyncio.Event().wait()

    async def scenario() -> None:
        settings = config(tmp_path, progress_timeout=4.0)
        with pytest.raises(StalledError, match=r"progress_timeout=4.0.*nothing committed for"):
            async with AppTester(app, LocalBroker(None), settings) as tester:
                tester.write(numbers(1))
                while not tester.worker.readiness():
                    await asyncio.sleep(0.05)
                await tester.settle()

    asyncio.run(scenario())


def test_who_says_what_it_waits_for_does_not_end(tmp_path: Path) -> None:
    app = App("waiting")
    topic = app.topic("in", value_type=int, partitions=1)
    there = asyncio.Event()
    app.add_readiness_check("store", lambda: None if there.is_set() else "it is away")

    @app.agent(topic)
    async def wait(stream: Stream[int]) -> None:
        async for _ in stream:
            await there.wait()

    async def scenario() -> None:
        settings = config(tmp_path, progress_timeout=2.0)
        async with AppTester(app, LocalBroker(None), settings) as tester:
            tester.write(numbers(1))
            await asyncio.sleep(4)
            assert "store: it is away" in tester.worker.readiness()
            assert tester.worker.state is WorkerState.RUNNING
            there.set()
            await tester.settle()

    asyncio.run(scenario())


def test_who_reads_nothing_has_nothing_to_get_on_with(tmp_path: Path) -> None:
    app = App("pages")

    async def scenario() -> None:
        worker = Worker(app, LocalBroker(None), config(tmp_path, progress_timeout=0.2))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(1.5)
        assert worker.readiness() == []
        assert sample(app, "ratestream_progress_age_seconds") == 0.0
        worker.stop()
        await running

    asyncio.run(scenario())


class LateBroker(LocalBroker):
    """Does not answer before `is_there`."""

    is_there = False

    def cluster_id(self) -> str:
        if not self.is_there:
            raise BrokerError("no answer")
        return super().cluster_id()


def test_who_waited_long_for_its_broker_has_time_to_get_on(tmp_path: Path) -> None:
    app = App("late")
    topic = app.topic("in", value_type=int, partitions=1)

    @app.agent(topic)
    async def wait(stream: Stream[int]) -> None:
        async for _ in stream:
            await asyncio.Event().wait()

    async def scenario() -> None:
        broker = LateBroker(None)
        broker.create_topics([topic.spec])
        send(broker, *numbers(1))
        worker = Worker(app, broker, config(tmp_path, progress_timeout=6.0, retry_backoff_max=0.1))
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(6.5)
        assert sample(app, "ratestream_progress_age_seconds") == 0.0
        broker.is_there = True
        await asyncio.sleep(2.5)
        assert not running.done()
        worker.stop()
        await running

    asyncio.run(scenario())


def test_who_does_not_end_or_stands_still_is_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_ENDING_SECONDS", 0.5)
    monkeypatch.setattr(worker_module, "_BLOCKED_SECONDS", 0.5)
    app = App("standing")
    topic = app.topic("in", value_type=int, partitions=1)
    overdue: list[str] = []

    @app.agent(topic)
    async def stand_still(stream: Stream[int]) -> None:
        async for _ in stream:
            until = time.monotonic() + 10
            while not overdue and time.monotonic() < until:
                time.sleep(0.01)  # noqa: ASYNC251 - as heavy computing does

    async def scenario() -> None:
        settings = config(tmp_path, progress_timeout=2.0)
        async with AppTester(app, LocalBroker(None), settings) as tester:

            def watch() -> None:
                while (why := tester.worker.overdue()) is None:
                    time.sleep(0.01)
                overdue.append(why)

            Thread(target=watch, daemon=True).start()
            tester.write(numbers(1))
            with pytest.raises(StreamingError):
                await tester.settle()

    with suppress(StalledError):
        asyncio.run(scenario())
    assert "the event loop stands still" in overdue[0]
    stopped = Worker(App("idle"), LocalBroker(None), config(tmp_path))
    assert stopped.overdue() is None
    stopped.stop()
    time.sleep(0.6)
    assert "still not ended" in str(stopped.overdue())


@pytest.mark.parametrize("policy", [{"retries": -1}, {"backoff": -1.0}, {"then": "skip"}])
def test_a_policy_that_is_none_is_refused(policy: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="retries and backoff must be >= 0"):
        OnError(**policy)  # type: ignore[arg-type]


def test_a_guarantee_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="processing_guarantee='most_of_the_time'"):
        App("app", processing_guarantee="most_of_the_time")  # type: ignore[arg-type]


def owns(tester: AppTester, number: int) -> bool:
    pipeline = tester.worker._pipeline
    return pipeline is not None and pipeline.owns("in", number)


def sample(app: App, name: str, **labels: str) -> float | None:
    return app.registry.get_sample_value(name, labels)
