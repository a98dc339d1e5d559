"""Whole workers on the local broker and on Apache Kafka: what becomes of their partitions, tables
and outputs when instances come, go and hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ratestream.streaming import App, OnError, OutgoingRecord, Stream, WorkerConfig
from ratestream.streaming.store import Store
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import Broker, Consumer, ConsumerConfig, TopicPartition
from tests.support.brokers import SESSION_SECONDS
from tests.support.members import Member, poll_until

pytestmark = pytest.mark.timeout(180)

PARTITIONS = 2
BAD, HELD = -1, 2
KEYS = [f"key-{number}" for number in range(400)]


KAFKA_KINDS = (
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("kafka-consumer-protocol", marks=pytest.mark.kafka),
)


@pytest.fixture(params=("local-memory", *KAFKA_KINDS))
def broker_kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


class Gate:
    """Holds an agent until it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        await self.opened.wait()


class Counters:
    """Instances of one app, which counts in a table how often it has seen a key."""

    def __init__(self, broker: Broker, kind: str, folder: Path) -> None:
        self.broker = broker
        self.name = f"counters-{uuid4().hex[:8]}"
        self.input, self.output = f"{self.name}-in", f"{self.name}-out"
        self.letters = f"{self.name}-letters"
        self.changelog = f"{self.name}-seen-changelog"
        self.session = SESSION_SECONDS[kind]
        self._folder = folder

    def app(self, on_error: OnError | None = None, gate: Gate | None = None) -> App:
        app = App(self.name, processing_guarantee="exactly_once")
        keys = app.topic(self.input, value_type=int, partitions=PARTITIONS)
        out = app.topic(self.output, value_type=int, partitions=PARTITIONS)
        app.dead_letter = app.topic(
            self.letters, key_type=bytes, value_type=bytes, partitions=PARTITIONS
        )
        seen = app.Table("seen", value_type=int, default=int, partitions_of=keys)

        @app.agent(keys, on_error=on_error or OnError())
        async def count(stream: Stream[int]) -> None:
            async for key, number in stream.items():
                if gate is not None and number == HELD:
                    await gate.pass_through()
                seen[key] += 1
                await out.send(key=key, value=seen[key])
                if number == BAD:
                    raise ValueError("a bad number")

        return app

    @asynccontextmanager
    async def instance(
        self, number: int, app: App | None = None, **changes: Any
    ) -> AsyncIterator[AppTester]:
        """With a data folder of its own, that is there again when it is started again."""
        settings: dict[str, Any] = {
            "data_dir": str(self._folder / str(number)),
            "session_timeout": self.session,
            "heartbeat_interval": self.session / 20,
            "retry_backoff_min": 0.05,
        }
        config = WorkerConfig(**(settings | changes))
        async with AppTester(app or self.app(), self.broker, config) as tester:
            yield tester

    def records(self, keys: Sequence[str], value: int = 1) -> list[OutgoingRecord]:
        return [OutgoingRecord(self.input, key.encode(), b"%d" % value) for key in keys]

    def counts(self, tester: AppTester, keys: Iterable[str] = KEYS) -> dict[str, list[int]]:
        """What was sent of each of these, in order."""
        counts: dict[str, list[int]] = {key: [] for key in keys}
        for record in tester.records(self.output):
            if (key := (record.key or b"").decode()) in counts:
                counts[key].append(int(record.value or b""))
        return counts

    async def until_counted(self, tester: AppTester, times: int, keys: Iterable[str]) -> None:
        while await asyncio.to_thread(self.counts, tester, keys) != counted(times, keys):
            await asyncio.sleep(0.05)

    def of_partition(self, tester: AppTester) -> dict[int, set[str]]:
        """The keys of each partition."""
        found: dict[int, set[str]] = {number: set() for number in range(PARTITIONS)}
        for record in tester.records(self.input):
            found[record.partition].add((record.key or b"").decode())
        return found

    def owned(self, tester: AppTester) -> set[int]:
        pipeline = tester.worker._pipeline
        return {
            number
            for number in range(PARTITIONS)
            if pipeline is not None and pipeline.owns(self.input, number)
        }

    def share(self, *testers: AppTester) -> bool:
        """Whether each has a part, and all of that is restored."""
        shares = [self.owned(each) for each in testers]
        return (
            all(shares)
            and sum(map(len, shares)) == PARTITIONS
            and not any(each.worker.readiness() for each in testers)
        )


@pytest.fixture
def counters(broker: Broker, broker_kind: str, tmp_path: Path) -> Counters:
    return Counters(broker, broker_kind, tmp_path)


def counted(times: int, keys: Iterable[str] = KEYS) -> dict[str, list[int]]:
    """What is sent when each of these is counted so often."""
    return {key: list(range(1, times + 1)) for key in keys}


async def until(condition: Callable[[], bool]) -> None:
    """pytest-timeout is the limit."""
    while not condition():
        await asyncio.sleep(0.02)


def sample(tester: AppTester, name: str, **labels: str) -> int:
    return int(tester.app.registry.get_sample_value(name, labels) or 0)


def restored(tester: AppTester) -> int:
    return sample(tester, "ratestream_restored_records_total", table="seen")


def test_a_takeover_from_a_copy_restores_little(counters: Counters) -> None:
    """One of two instances hangs for so long that it is taken for dead; the other one has copies of
    its tables."""
    awake = threading.Event()
    soon = max(2.0, counters.session)

    async def scenario() -> None:
        async with (
            counters.instance(1, standby=True, max_poll_interval=soon) as one,
            counters.instance(2, standby=True, max_poll_interval=soon) as two,
        ):
            await until(lambda: counters.share(one, two))
            one.write(counters.records(KEYS))
            await one.settle()
            (lost,) = counters.owned(one)
            theirs = counters.of_partition(one)[lost]
            await until(lambda: restored(two) >= len(theirs))
            before = restored(two)
            hanging = one.worker._thread.start(awake.wait)
            await until(lambda: counters.share(two))
            assert restored(two) - before < 5
            two.write(counters.records(KEYS))
            await two.settle()
            assert counters.counts(two) == counted(2)
            awake.set()
            await hanging
            await until(lambda: counters.share(one, two))
            two.write(counters.records(KEYS))
            await two.settle()
            assert counters.counts(two) == counted(3)

    try:
        asyncio.run(scenario())
    finally:
        awake.set()


def test_a_partition_that_comes_back_is_restored_by_what_it_missed(counters: Counters) -> None:
    async def scenario() -> None:
        async with counters.instance(1) as one:
            one.write(counters.records(KEYS))
            await one.settle()
            before = restored(one)
            async with counters.instance(2) as two:
                await until(lambda: counters.share(one, two))
                (away,) = counters.owned(two)
                missed = sorted(counters.of_partition(two)[away])[:3]
                two.write(counters.records(missed))
                await two.settle()
            await until(lambda: counters.share(one))
            assert restored(one) - before == len(missed)
            one.write(counters.records(missed))
            await one.settle()
            assert counters.counts(one, missed) == counted(3, missed)

    asyncio.run(scenario())


def test_a_partition_that_stays_works_on_while_another_is_restored(
    counters: Counters, broker: Broker
) -> None:
    """For longer than a transaction may be open, too."""
    may_restore = threading.Event()
    make = broker.consumer

    def make_waiting(config: ConsumerConfig) -> Consumer:
        consumer = make(config)
        poll = consumer.poll_changes

        def poll_when_allowed(*given: Any, **named: Any) -> Any:
            return poll(*given, **named) if may_restore.is_set() else {}

        consumer.poll_changes = poll_when_allowed  # type: ignore[method-assign]  # wraps it
        return consumer

    async def scenario() -> None:
        async with counters.instance(2) as two:
            two.write(counters.records(KEYS))
            await two.settle()
            keys = counters.of_partition(two)
        broker.consumer = make_waiting  # type: ignore[method-assign]  # wraps it
        may_restore.set()
        async with counters.instance(1, transaction_timeout=3.0) as one:
            async with counters.instance(2) as two:
                await until(lambda: counters.share(one, two))
                (stays,), (comes,) = counters.owned(one), counters.owned(two)
                two.write(counters.records(sorted(keys[comes])))
                await two.settle()
                may_restore.clear()
            await until(lambda: counters.owned(one) == {stays, comes})
            one.write(counters.records(sorted(keys[comes])))
            for times in (2, 3, 4, 5):
                one.write(counters.records(sorted(keys[stays])))
                await counters.until_counted(one, times, keys[stays])
                await asyncio.sleep(1.0)
            assert "restoring tables" in str(one.worker.readiness())
            assert counters.counts(one, keys[comes]) == counted(2, keys[comes])
            may_restore.set()
            await one.settle()
            assert counters.counts(one, keys[comes]) == counted(3, keys[comes])
            assert sample(one, "ratestream_setbacks_total") == 0

    asyncio.run(scenario())


class Successor(Member):
    """Opens the tables of what it is assigned, at once, where their owner had them."""

    def __init__(self, counters: Counters, config: ConsumerConfig, folder: Path) -> None:
        self.opened: list[int] = []
        self._folder = folder
        topic_id = counters.broker.describe_topics([counters.changelog])[
            counters.changelog
        ].topic_id
        self._changelog_id = f"{counters.broker.cluster_id()}/{topic_id}"
        super().__init__(counters.broker, config, counters.input)

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        for each in partitions:
            with closing(Store(self._folder / str(each.partition), self._changelog_id)) as store:
                self.opened.append(len(store.all_keys()))
        return {}

    def commit(self, partitions: Sequence[TopicPartition]) -> None:
        pass


def test_tables_are_closed_before_their_partitions_are_given_away(
    counters: Counters, group_config: ConsumerConfig, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with counters.instance(1) as one:
            one.write(counters.records(KEYS))
            await one.settle()
            keys = counters.of_partition(one)
            folder = tmp_path / "1" / counters.name / "0" / "seen"
            successor = Successor(counters, replace(group_config, group=counters.name), folder)
            await asyncio.to_thread(poll_until, lambda: successor.has(1), successor)
            (stays,) = counters.owned(one)
            assert successor.opened == [len(keys[1 - stays])]
            successor.consumer.close()

    asyncio.run(scenario())


def test_instances_that_come_and_go_count_each_record_once(counters: Counters) -> None:
    async def scenario() -> None:
        async with counters.instance(1) as one:
            one.write(counters.records(KEYS))
            for number in (2, 3):
                async with counters.instance(number) as other:
                    one.write(counters.records(KEYS))
                    await until(lambda other=other: counters.share(one, other))  # type: ignore[misc]  # bound
                    one.write(counters.records(KEYS))
                one.write(counters.records(KEYS))
            await one.settle()
            assert counters.counts(one) == counted(7)

    asyncio.run(scenario())


def test_what_agents_do_not_finish_in_time_is_done_again_and_counts_once(
    counters: Counters,
) -> None:
    """One of them waits while the group takes a partition away."""

    async def scenario() -> None:
        gate = Gate()
        async with counters.instance(1, counters.app(gate=gate), drain_timeout=0.3) as one:
            one.write(counters.records(KEYS))
            one.write(counters.records(KEYS, value=HELD))
            await gate.reached.wait()
            async with counters.instance(2) as two:
                await until(lambda: len(counters.owned(two)) == 1)
                (moved,) = counters.owned(two)
                keys = counters.of_partition(two)[moved]
                await counters.until_counted(two, 2, keys)
                assert sample(one, "ratestream_setbacks_total") > 0
                gate.opened.set()
                await two.settle()
                assert counters.counts(two) == counted(2)

    asyncio.run(scenario())


def test_a_start_after_a_stop_restores_nothing(counters: Counters) -> None:
    async def scenario() -> None:
        async with counters.instance(1) as before:
            before.write(counters.records(KEYS))
            await before.settle()
        async with counters.instance(1) as after:
            after.write(counters.records(KEYS))
            await after.settle()
            assert restored(after) == 0
            assert counters.counts(after) == counted(2)

    asyncio.run(scenario())


def test_of_a_list_that_is_not_full_nothing_is_committed(broker: Broker, tmp_path: Path) -> None:
    app = App(f"takers-{uuid4().hex[:8]}", processing_guarantee="exactly_once")
    topic = app.topic(f"{app.id}-in", value_type=int, partitions=1)
    taken: list[list[int]] = []

    @app.agent(topic)
    async def take(stream: Stream[int]) -> None:
        async for events in stream.take(10, within=3600):
            taken.append([event.value for event in events])

    async def scenario() -> None:
        async with AppTester(app, broker, WorkerConfig(data_dir=str(tmp_path))) as tester:
            tester.write([OutgoingRecord(topic.name, None, b"%d" % n, 0) for n in range(25)])
            while tester.lag([topic.name]) > 5:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # for several commits
            assert tester.lag([topic.name]) == 5
            assert taken == [list(range(10)), list(range(10, 20))]

    asyncio.run(scenario())


@pytest.mark.parametrize("broker_kind", KAFKA_KINDS, indirect=True)
def test_a_static_member_that_is_started_again_moves_no_partition(counters: Counters) -> None:
    def told(tester: AppTester) -> list[int]:
        kinds = ("assigned", "revoked", "lost")
        return [sample(tester, "ratestream_rebalances_total", kind=kind) for kind in kinds]

    def instance(number: int) -> AbstractAsyncContextManager[AppTester]:
        return counters.instance(number, static_membership=True, session_timeout=30.0)

    async def scenario() -> None:
        async with instance(1) as other:
            async with instance(2) as before:
                await until(lambda: counters.share(other, before))
                other.write(counters.records(KEYS))
                await other.settle()
                had, was_told = counters.owned(before), told(other)
            await asyncio.sleep(1.0)  # the other one would be told within a heartbeat
            async with instance(2) as after:
                await until(lambda: counters.share(other, after))
                assert counters.owned(after) == had
                other.write(counters.records(KEYS))
                await other.settle()
            assert told(other) == was_told
            assert counters.counts(other) == counted(2)

    asyncio.run(scenario())


def test_a_record_that_fails_leaves_nothing_but_a_dead_letter(counters: Counters) -> None:
    async def scenario() -> None:
        app = counters.app(OnError(then="dead_letter"))
        async with counters.instance(1, app) as one:
            one.write(counters.records(KEYS))
            one.write(counters.records(KEYS[:2], value=BAD))
            one.write(counters.records(KEYS))
            await one.settle()
            assert counters.counts(one) == counted(2)
            letters = one.records(counters.letters)
            assert [letter.value for letter in letters] == [b"-1", b"-1"]

    asyncio.run(scenario())
