"""What an agent may rely on, on the real worker and the local broker."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import msgspec
import pytest

from ratestream.streaming import (
    AgentError,
    App,
    ConfigurationError,
    MessageTooLargeError,
    Record,
    Stream,
)
from ratestream.streaming.testing import AppTester


class Item(msgspec.Struct):
    name: str
    amount: Decimal


def doubling_app() -> App:
    app = App("doubler")
    items = app.topic("items", value_type=Item)
    doubled = app.topic("doubled", value_type=Item)

    @app.agent(items)
    async def double(stream: Stream[Item]) -> None:
        async for item in stream:
            await doubled.send(key=item.name, value=Item(item.name, item.amount * 2))

    return app


def test_an_agent_reads_values_and_sends_results() -> None:
    async def scenario() -> None:
        async with AppTester(doubling_app()) as tester:
            for amount in ("1.10", "2.25"):
                await tester.send("items", Item("a", Decimal(amount)), key="a")
            await tester.settle()
            assert tester.received("doubled") == [
                Item("a", Decimal("2.20")),
                Item("a", Decimal("4.50")),
            ]

    asyncio.run(scenario())


def test_items_give_keys_and_records_give_everything_the_broker_knows() -> None:
    app = App("reader")
    topic = app.topic("in", value_type=str)
    keys: list[tuple[str, str]] = []
    records: list[Record] = []

    @app.agent(topic)
    async def read_items(stream: Stream[str]) -> None:
        async for key, value in stream.items():
            keys.append((key, value))

    @app.agent(topic)
    async def read_records(stream: Stream[str]) -> None:
        async for event in stream.records():
            records.append(event.record)

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", "hello", key="k")
            await tester.settle()

    asyncio.run(scenario())
    assert keys == [("k", "hello")]
    assert [(r.topic, r.offset, r.key, r.value) for r in records] == [("in", 0, b"k", b"hello")]


def test_take_gives_full_lists_and_what_there_is_when_time_is_up() -> None:
    app = App("taker")
    topic = app.topic("in", value_type=str, partitions=1)
    taken: list[list[str]] = []

    @app.agent(topic)
    async def collect(stream: Stream[str]) -> None:
        async for events in stream.take(2, within=0.05):
            taken.append([event.value for event in events])

    async def scenario() -> None:
        async with AppTester(app) as tester:
            for value in "abc":
                await tester.send("in", value)
            await tester.settle()

    asyncio.run(scenario())
    assert [value for values in taken for value in values] == ["a", "b", "c"]
    assert all(1 <= len(values) <= 2 for values in taken)


def test_what_take_holds_is_not_committed() -> None:
    app = App("holder")
    topic = app.topic("in", value_type=str, partitions=1)

    @app.agent(topic)
    async def hold(stream: Stream[str]) -> None:
        async for _ in stream.take(10, within=3600):
            pytest.fail("the list is not full and its time is not up")

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", "a")
            await asyncio.sleep(0.3)
            assert tester.lag(["in"]) == 1

    asyncio.run(scenario())


def test_bytes_that_are_not_as_declared_end_in_the_dead_letter_topic() -> None:
    app = doubling_app()
    app.dead_letter = app.topic("dead", key_type=bytes, value_type=bytes)

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("items", b'{"name": "a"}', key="a")
            await tester.send("items", b"\xff not json", key="a")
            await tester.send("items", Item("a", Decimal(1)), key="a")
            await tester.settle()
            assert tester.received("doubled") == [Item("a", Decimal(2))]
            dead = tester.records("dead")
            assert [record.value for record in dead] == [b'{"name": "a"}', b"\xff not json"]
            headers = dict(dead[0].headers)
            assert headers["topic"] == b"items"
            assert headers["offset"] == b"0"
            assert headers["service"] == b"doubler"
            assert b"amount" in headers["reason"]

    asyncio.run(scenario())


def test_without_a_dead_letter_topic_nothing_is_skipped() -> None:
    async def scenario() -> None:
        async with AppTester(doubling_app()) as tester:
            await tester.send("items", b"{", key="a")
            await tester.settle()

    with pytest.raises(ConfigurationError, match=r"items\[\d\]@0 .* no dead_letter topic"):
        asyncio.run(scenario())


def test_an_agent_that_raises_stops_the_worker_and_names_the_record() -> None:
    app = App("failing")
    topic = app.topic("in", value_type=str, partitions=1)

    @app.agent(topic)
    async def fail(stream: Stream[str]) -> None:
        async for value in stream:
            raise RuntimeError(value)

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await tester.send("in", "boom")
            await tester.settle()

    with pytest.raises(AgentError, match=r"agent fail failed at in\[0\]@0: RuntimeError: boom"):
        asyncio.run(scenario())


def test_what_a_failed_agent_did_not_finish_is_read_again() -> None:
    attempts: list[str] = []

    def app(fails: bool) -> App:
        app = App("again")
        topic = app.topic("in", value_type=str, partitions=1)

        @app.agent(topic)
        async def read(stream: Stream[str]) -> None:
            async for value in stream:
                attempts.append(value)
                if fails:
                    raise RuntimeError("not now")

        return app

    async def scenario() -> None:
        from ratestream.streaming.local import LocalBroker

        broker = LocalBroker(None)
        try:
            with pytest.raises(AgentError):
                async with AppTester(app(fails=True), broker) as tester:
                    await tester.send("in", "once")
                    await tester.settle()
            async with AppTester(app(fails=False), broker) as tester:
                await tester.settle()
        finally:
            broker.close()

    asyncio.run(scenario())
    assert attempts == ["once", "once"]


def test_a_record_too_large_for_its_topic_is_refused_when_it_is_sent() -> None:
    app = App("large")
    topic = app.topic("in", value_type=bytes, max_message_bytes=1000)
    with pytest.raises(MessageTooLargeError, match="max_message_bytes allows 1000"):
        topic.encode(None, b"x" * 1000)


def test_timers_tasks_and_pages_wait_for_the_acknowledgement() -> None:
    app = App("sender")
    topic = app.topic("out", value_type=str)
    sent = asyncio.Event()

    @app.task
    async def once() -> None:
        await topic.send(key="task", value="task")

    @app.timer(0.01)
    async def tick() -> None:
        await topic.send(key="timer", value="timer")
        sent.set()

    async def scenario() -> None:
        async with AppTester(app) as tester:
            await sent.wait()
            values = tester.received("out")
            assert "task" in values
            assert "timer" in values

    asyncio.run(scenario())


def test_timers_on_the_leader_run_on_one_instance_only() -> None:
    ran: set[int] = set()

    def app(number: int) -> App:
        app = App("elected")
        app.leader_topic = app.topic("led", value_type=str)

        @app.timer(0.01, on_leader=True)
        async def lead() -> None:
            ran.add(number)

        return app

    async def scenario() -> None:
        from ratestream.streaming.local import LocalBroker

        broker = LocalBroker(None)
        async with AppTester(app(1), broker) as first:
            while not ran:
                await asyncio.sleep(0.01)
            async with AppTester(app(2), broker) as second:
                await asyncio.sleep(0.3)
                ran.clear()
                await asyncio.sleep(0.2)
                assert len(ran) == 1
                assert first.worker.is_leader != second.worker.is_leader
        broker.close()

    asyncio.run(scenario())
