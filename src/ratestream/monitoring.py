"""What is watched around an app while it runs: its process, and the certificates that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from threading import Event, Thread

import structlog
from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector

from ratestream.certificates import Place, kafka_places, postgres_places
from ratestream.settings import Settings
from ratestream.streaming import App, Worker

_CERTIFICATES_SECONDS = 3600.0
_USE_POSTGRES = ("db_loader", "api_gateway")

log = structlog.get_logger("ratestream.monitoring")


async def run_monitored(worker: Worker, settings: Settings, *, owns_process: bool) -> None:
    """`worker.run()`; until it ends, also whether it can connect or not, its app's registry tells
    when certificates expire and, if the process is its own, what the process uses."""
    registry = worker.app.registry
    if owns_process:
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
    stopped = Event()
    if places := _places(worker.app, settings):
        watch = partial(copy_context().run, _watch, places, registry, stopped)
        Thread(target=watch, name=f"certificates {worker.app.id}", daemon=True).start()
    try:
        await worker.run()
    finally:
        stopped.set()


def _places(app: App, settings: Settings) -> list[Place]:
    places = kafka_places(settings.kafka) if app.topics else []
    return places + (postgres_places(settings.postgres) if app.id in _USE_POSTGRES else [])


def _watch(places: Sequence[Place], registry: CollectorRegistry, stopped: Event) -> None:
    """At the start and once an hour. What cannot be read keeps the value it had. In a thread that
    nobody waits for, because what it reads may take its time."""
    expiry = Gauge(
        "ratestream_certificate_expiry_timestamp_seconds",
        "When a certificate expires, seconds since the epoch; of a file with several, the first. "
        "Only with TLS.",
        ["certificate"],
        registry=registry,
    )
    while not stopped.is_set():
        for place in places:
            found = place.read()
            if stopped.is_set():
                return
            if found.not_after is None:
                log.warning("certificate_unknown", certificate=found.name, error=found.problem)
            else:
                expiry.labels(found.name).set(found.not_after.timestamp())
        stopped.wait(_CERTIFICATES_SECONDS)
