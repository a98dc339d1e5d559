"""The HTTP side of every app: metrics, health, its pages, and what it mounts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from ratestream import __version__
from ratestream.streaming.app import App
from ratestream.streaming.errors import ConfigurationError

_SHUTDOWN_SECONDS = 1
_CONNECTIONS = 512


def build_web(app: App, readiness: Callable[[], list[str]]) -> Starlette:
    """`/metrics` (Prometheus text), `/health/live` (200 while the process serves),
    `/health/ready` (200, or 503 with the reasons; with the version), then the app's pages and what
    it mounts."""

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(app.registry), media_type=CONTENT_TYPE_LATEST)

    async def live(_: Request) -> Response:
        return PlainTextResponse("live\n")

    async def ready(_: Request) -> Response:
        reasons = readiness()
        return JSONResponse(
            {
                "service": app.id,
                "version": __version__,
                "ready": not reasons,
                "reasons": reasons,
            },
            status_code=503 if reasons else 200,
        )

    routes: list[BaseRoute] = [
        Route("/metrics", metrics),
        Route("/health/live", live),
        Route("/health/ready", ready),
    ]
    routes += [Route(path, page) for path, page in app.pages.items()]
    if app.mounted is not None:
        routes.append(Mount("/", app.mounted))
    return Starlette(routes=routes)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the worker."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class WebServer:
    """Serves one app on one address, in the running event loop."""

    def __init__(self, web: Starlette, host: str, port: int) -> None:
        self._socket = _bind(host, port)
        config = uvicorn.Config(
            web,
            log_config=None,
            access_log=False,
            lifespan="off",
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # uvicorn offers a flag, no event
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=2 * _SHUTDOWN_SECONDS)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio sets TCP_NODELAY on what it accepts: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} on {host} cannot be used ({error.strerror}): "
            "end what uses it, or set another port"
        ) from None
    return listener
