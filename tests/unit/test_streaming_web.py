"""What every app serves: metrics, health, its pages, and what it mounts."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ratestream import __version__
from ratestream.streaming import App, ConfigurationError, WorkerConfig
from ratestream.streaming.testing import AppTester


async def mounted(_: Request) -> Response:
    return PlainTextResponse("mounted")


def served_app() -> App:
    app = App("served")

    @app.page("/hello")
    async def hello(_: Request) -> Response:
        return PlainTextResponse("hello")

    app.mount(Starlette(routes=[Route("/below", mounted)]))
    return app


def ask(app: App, *paths: str) -> list[httpx.Response]:
    async def scenario() -> list[httpx.Response]:
        async with (
            AppTester(app) as tester,
            httpx.AsyncClient(base_url=tester.worker.address) as client,
        ):
            return [await client.get(path) for path in paths]

    return asyncio.run(scenario())


def test_pages_and_what_is_mounted_are_served_beside_each_other() -> None:
    assert [each.text for each in ask(served_app(), "/hello", "/below")] == ["hello", "mounted"]


def test_an_app_that_is_ready_says_so() -> None:
    live, ready = ask(served_app(), "/health/live", "/health/ready")
    assert (live.status_code, ready.status_code) == (200, 200)
    assert ready.json() == {
        "service": "served",
        "version": __version__,
        "ready": True,
        "reasons": [],
    }


def test_an_app_that_is_not_ready_says_why() -> None:
    app = served_app()
    app.add_readiness_check("postgres", lambda: "no connection")
    (ready,) = ask(app, "/health/ready")
    assert ready.status_code == 503
    assert ready.json()["reasons"] == ["postgres: no connection"]


def test_each_app_has_metrics_of_its_own() -> None:
    (metrics,) = ask(served_app(), "/metrics")
    assert "ratestream_commit_seconds_count 0.0" in metrics.text


def test_a_port_in_use_is_named() -> None:
    async def scenario(port: int) -> None:
        async with AppTester(served_app(), config=WorkerConfig(port=port)):
            pytest.fail("the port is taken")

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 cannot be used"):
            asyncio.run(scenario(port))
