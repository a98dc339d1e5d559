"""What is watched around an app while it runs: its process, and the certificates that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
    watch = asyncio.create_task(_watch(_places(worker.app, settings), registry))
    try:
        await worker.run()
    finally:
        watch.cancel()
        await asyncio.wait((watch,))


def _places(app: App, settings: Settings) -> list[Place]:
    places = kafka_places(settings.kafka) if app.topics else []
    return places + (postgres_places(settings.postgres) if app.id in _USE_POSTGRES else [])


async def _watch(places: Sequence[Place], registry: CollectorRegistry) -> None:
    """At the start and once an hour. What cannot be read keeps the value it had."""
    if not places:
        return
    expiry = Gauge(
        "ratestream_certificate_expiry_timestamp_seconds",
        "When a certificate expires, seconds since the epoch; of a file with several, the first. "
        "Only with TLS.",
        ["certificate"],
        registry=registry,
    )
    while True:
        for place in places:
            found = await asyncio.to_thread(place.read)
            if found.not_after is None:
                log.warning("certificate_unknown", certificate=found.name, error=found.problem)
            else:
                expiry.labels(found.name).set(found.not_after.timestamp())
        await asyncio.sleep(_CERTIFICATES_SECONDS)
