"""Handing partitions over: what is done is committed first, what is not is read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ratestream.streaming import App, Stream, WorkerConfig
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester

NAMES = [f"name-{number}" for number in range(40)]


class Gate:
    """Counts what an app has read, and holds it at one record until it is opened."""

    def __init__(self, held: str) -> None:
        self.held = held
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.read: list[str] = []

    def app(self) -> App:
        app = App("gated")
        topic = app.topic("in", value_type=str)
        out = app.topic("out", value_type=str)

        @app.agent(topic)
        async def pass_on(stream: Stream[str]) -> None:
            async for value in stream:
                if value == self.held:
                    self.reached.set()
                    await self.opened.wait()
                self.read.append(value)
                await out.send(key=value, value=value)

        return app


@asynccontextmanager
async def running(
    app: App, broker: LocalBroker, folder: Path, drain_timeout: float
) -> AsyncIterator[AppTester]:
    config = WorkerConfig(data_dir=str(folder), drain_timeout=drain_timeout, retry_backoff_min=0.01)
    async with AppTester(app, broker, config) as app_tester:
        yield app_tester


def test_what_agents_finish_while_partitions_move_is_committed_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        first, second = Gate(held=NAMES[20]), Gate(held="")
        async with running(first.app(), broker, tmp_path / "1", drain_timeout=20) as one:
            one.write([one.app.topics["in"].encode(name, name) for name in NAMES])
            await first.reached.wait()
            async with running(second.app(), broker, tmp_path / "2", drain_timeout=20) as two:
                await asyncio.sleep(1.0)  # long enough for the group to ask for partitions
                first.opened.set()
                await two.settle()
                assert sorted(first.read + second.read) == sorted(NAMES)
                assert sorted(two.received("out")) == sorted(NAMES)
        broker.close()

    asyncio.run(scenario())


def test_agents_that_do_not_finish_in_time_are_dropped_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        first, second = Gate(held=NAMES[20]), Gate(held="")
        async with running(first.app(), broker, tmp_path / "1", drain_timeout=0.2) as one:
            one.write([one.app.topics["in"].encode(name, name) for name in NAMES])
            await first.reached.wait()
            async with running(second.app(), broker, tmp_path / "2", drain_timeout=0.2) as two:
                while not second.read:
                    await asyncio.sleep(0.05)
                first.opened.set()
                await two.settle()
                assert set(two.received("out")) == set(NAMES)
        broker.close()

    asyncio.run(scenario())


def test_a_slow_agent_keeps_its_partitions(tmp_path: Path) -> None:
    async def scenario() -> None:
        broker = LocalBroker(None)
        gate = Gate(held=NAMES[20])
        config = WorkerConfig(
            data_dir=str(tmp_path),
            session_timeout=1.0,
            heartbeat_interval=0.2,
            max_poll_interval=1.0,
        )
        async with AppTester(gate.app(), broker, config) as one:
            one.write([one.app.topics["in"].encode(name, name) for name in NAMES])
            await gate.reached.wait()
            await asyncio.sleep(2.0)
            gate.opened.set()
            await one.settle()
            assert sorted(gate.read) == sorted(NAMES)
        broker.close()

    asyncio.run(scenario())
