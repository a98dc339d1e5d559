"""Supervised services on the local broker: failing, restarting, giving up, stopping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from ratestream.settings import Settings
from ratestream.streaming import App, ConfigurationError, Stream, Topic
from ratestream.streaming.local import LocalBroker
from ratestream.up.supervisor import Build, ServiceState, Supervised, stop_all

Body = Callable[[Callable[[Build], Supervised]], Coroutine[Any, Any, None]]


def run(tmp_path: Path, body: Body) -> None:
    """Run `body` with a function that starts a service; what it started is stopped after."""
    settings = Settings(
        data_dir=tmp_path,
        demo_server={"port": 0},
        runtime={"retry_backoff_min": 0.01, "retry_backoff_max": 0.02},
    )

    async def main() -> None:
        broker = LocalBroker(None)
        services: list[Supervised] = []

        def start(build: Build) -> Supervised:
            services.append(Supervised("demo_server", build, settings, broker))
            services[-1].start()
            return services[-1]

        try:
            await body(start)
        finally:
            await stop_all(services, 5.0, asyncio.Event())
            broker.close()

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def idle(_: Settings) -> App:
    return App("idle")


def failing(times: int) -> Build:
    """A service that fails that often, and then no more."""
    left = iter(range(times))

    def build(_: Settings) -> App:
        app = App("failing")

        @app.task
        async def fail() -> None:
            if next(left, None) is not None:
                raise OSError("the cable is out")

        return app

    return build


def test_a_service_is_ready_at_its_address(tmp_path: Path) -> None:
    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(idle)
        assert service.status().state is ServiceState.STARTING
        await until(lambda: service.status().state is ServiceState.READY)
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{service.status().address}/health/ready")
        assert answer.status_code == 200

    run(tmp_path, body)


def test_a_service_that_fails_is_started_again_and_says_why(tmp_path: Path) -> None:
    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(failing(3))
        await until(lambda: service.status().state is ServiceState.RESTARTING)
        assert service.status().reason == "the cable is out"
        await until(lambda: service.restarts == 3)
        await until(lambda: service.status().state is ServiceState.READY)
        assert service.status().restarts == 3

    run(tmp_path, body)


def test_a_service_that_cannot_be_built_now_is_built_again(tmp_path: Path) -> None:
    attempts = []

    def build(settings: Settings) -> App:
        attempts.append(settings)
        if len(attempts) == 1:
            raise OSError("no room on the disk")
        return App("patient")

    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(build)
        await until(lambda: service.status().state is ServiceState.READY)
        assert service.status().restarts == 1

    run(tmp_path, body)


def test_what_trying_again_cannot_help_is_given_up_and_disturbs_nobody(tmp_path: Path) -> None:
    def hopeless(_: Settings) -> App:
        raise ConfigurationError("topic a has 3 partitions, b has 8")

    async def body(start: Callable[[Build], Supervised]) -> None:
        failed, other = start(hopeless), start(idle)
        await until(lambda: failed.has_failed)
        await until(lambda: other.status().state is ServiceState.READY)
        assert failed.status().state is ServiceState.FAILED
        assert failed.status().reason == "topic a has 3 partitions, b has 8"
        assert failed.status().restarts == 0

    run(tmp_path, body)


def test_a_stop_does_not_wait_for_the_next_start(tmp_path: Path) -> None:
    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(failing(10**9))
        await until(lambda: service.restarts > 2)
        await service.stop(5.0)
        assert service.status().state is ServiceState.STOPPED

    run(tmp_path, body)


def test_a_service_that_does_not_stop_is_cancelled(tmp_path: Path) -> None:
    def stubborn(_: Settings) -> App:
        app = App("stubborn")
        topic: Topic[str, bytes] = app.topic("t", value_type=bytes, partitions=1)

        @app.agent(topic)
        async def never_done(stream: Stream[Any]) -> None:
            async for _ in stream:
                await asyncio.Event().wait()

        @app.task
        async def send() -> None:
            await topic.send(value=b"x")

        return app

    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(stubborn)
        await until(lambda: service.status().state is ServiceState.READY)
        await stop_all([service], 0.2, asyncio.Event())
        assert service.status().address == ""

    run(tmp_path, body)


def test_throughput_is_measured(tmp_path: Path) -> None:
    def counting(_: Settings) -> App:
        app = App("counting")
        topic: Topic[str, bytes] = app.topic("t", value_type=bytes, partitions=1)

        @app.agent(topic)
        async def read(stream: Stream[Any]) -> None:
            async for _ in stream:
                pass

        @app.timer(0.01)
        async def send() -> None:
            await topic.send(value=b"x")

        return app

    async def body(start: Callable[[Build], Supervised]) -> None:
        service = start(counting)
        assert service.status().throughput.in_per_second is None

        def measured() -> bool:
            service.sample()
            return (service.status().throughput.in_per_second or 0) > 0

        await until(measured)
        assert service.status().throughput.records_out > 0

    run(tmp_path, body)
