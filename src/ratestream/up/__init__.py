"""Everything in one process: a broker, Postgres and the six services. `up` reads top to bottom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from ratestream.garbage import uncollected
from ratestream.settings import SERVICES, Settings, load
from ratestream.up.errors import StartError

if TYPE_CHECKING:
    from ratestream.streaming import Broker
    from ratestream.streaming.local import LocalBroker
    from ratestream.up.status import Display
    from ratestream.up.supervisor import Build, Supervised

__all__ = ["StartError", "load_settings", "up"]

DEFAULTS = {"postgres.retention_days": 30}
"""What is left running on a laptop for weeks has to stay within bounds."""

_OF_ANOTHER_POSTGRES = (
    "password",
    "ssl_mode",
    "ssl_ca_location",
    "ssl_certificate_location",
    "ssl_key_location",
    "loader_role",
    "gateway_role",
)
"""Settings that say nothing of the Postgres built in, which has one user and a socket."""

_SERVICES_STOP_SECONDS = 3.0
_MAINTENANCE_SECONDS = 1.0


def load_settings(path: Path | None, command_line: Mapping[str, Any]) -> Settings:
    """The settings as `up` sees them: some defaults differ. Raises `SettingsError`."""
    return load(path, command_line, DEFAULTS)


async def up(settings: Settings, *, plain: bool = False) -> int:
    """Run everything until Ctrl-C, SIGTERM, or until every service has failed for good; returns
    the exit code. A second signal stops without waiting. Uses the Kafka and the Postgres that
    the settings name, if they do, and its own otherwise.

    Raises `StartError`, `StorageError` or `StreamingError` for what is in the way, before any
    service is started; what was started by then has ended.
    """
    with uncollected():
        from ratestream.operations.deployment import Deployment
        from ratestream.up.control import serving
        from ratestream.up.datafolder import DataFolder
        from ratestream.up.ports import with_free_ports
        from ratestream.up.signals import stop_signals
        from ratestream.up.supervisor import Supervised, stop_all

        builders = _builders()

    async with AsyncExitStack() as stack:
        signals = stack.enter_context(stop_signals())
        stack.enter_context(closing(DataFolder(settings.data_dir)))
        settings = _asking_the_demo(with_free_ports(settings))
        display = _display(settings, plain=plain)
        settings = await stack.enter_async_context(_postgres(settings))
        broker = await stack.enter_async_context(_broker(settings))
        deployment = Deployment(settings, lambda: broker, builders, runs_services=True)
        await stack.enter_async_context(serving(settings.data_dir, deployment))
        services = [Supervised(name, build, settings, broker) for name, build in builders.items()]
        with display:
            for service in services:
                service.start()
            try:
                await _watch(services, display, signals.first)
            finally:
                display.say("stopping")
                await stop_all(services, _SERVICES_STOP_SECONDS, signals.second)
    return 0 if signals.first.is_set() else 1


async def _watch(services: Sequence[Supervised], display: Display, stopping: asyncio.Event) -> None:
    """Until asked to stop, or nothing is left that could go on."""
    while not stopping.is_set() and not all(service.has_failed for service in services):
        for service in services:
            service.sample()
        display.show([service.status() for service in services])
        try:
            await asyncio.wait_for(stopping.wait(), 1.0)
        except TimeoutError:
            continue


def _asking_the_demo(settings: Settings) -> Settings:
    """Unless other sources are named, ask this process's own demo_server."""
    if settings.is_set("data_requester.sources"):
        return settings
    section = settings.demo_server
    host = "127.0.0.1" if section.host in ("0.0.0.0", "::") else section.host  # noqa: S104
    url = f"http://{f'[{host}]' if ':' in host else host}:{section.port}"
    sources = tuple(
        source.model_copy(update={"url": url}) for source in settings.data_requester.sources
    )
    requester = settings.data_requester.model_copy(update={"sources": sources})
    return settings.model_copy(update={"data_requester": requester})


@asynccontextmanager
async def _postgres(settings: Settings) -> AsyncIterator[Settings]:
    """The settings, naming a Postgres that runs and has today's schema."""
    from ratestream.storage.database import upgrade
    from ratestream.storage.embedded import EmbeddedPostgres

    if settings.is_set("postgres.url"):
        if settings.postgres.migrate:
            await upgrade(settings.postgres.dsn(), settings.postgres.roles())
        yield settings
        return
    server = EmbeddedPostgres(settings.data_dir / "postgres")
    try:
        await asyncio.to_thread(server.start)
        await upgrade(server.url)
        ours = {"url": SecretStr(server.url), **dict.fromkeys(_OF_ANOTHER_POSTGRES)}
        section = settings.postgres.model_copy(update=ours)
        yield settings.model_copy(update={"postgres": section})
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[Broker]:
    """The Kafka that the settings name, once it answers, or the local broker."""
    if settings.is_set("kafka.bootstrap_servers"):
        from ratestream.streaming.kafka import KafkaBroker

        kafka = KafkaBroker(settings.kafka.config())
        with closing(kafka):
            await asyncio.to_thread(kafka.cluster_id)
            yield kafka
        return
    from ratestream.streaming.local import LocalBroker

    broker = await asyncio.to_thread(LocalBroker, settings.data_dir / "broker" / "log.sqlite")
    maintenance = asyncio.create_task(_maintain(broker))
    try:
        yield broker
    finally:
        maintenance.cancel()
        await asyncio.wait((maintenance,))
        await asyncio.to_thread(broker.close)


async def _maintain(broker: LocalBroker) -> None:
    """Retention and compaction, a bounded piece at a time. Its failures are for the services'
    own calls to tell: the next attempt may work again."""
    from ratestream.streaming import BrokerError

    while True:
        there_is_more = False
        with suppress(BrokerError):
            there_is_more = await asyncio.to_thread(broker.run_maintenance)
        await asyncio.sleep(0 if there_is_more else _MAINTENANCE_SECONDS)


def _display(settings: Settings, *, plain: bool) -> Display:
    """Says where logs go, too: to a file while a table is drawn, to stderr otherwise."""
    from rich.console import Console

    from ratestream.observability import LastEvents, configure_logs
    from ratestream.up.status import LiveTable, PlainLines

    console = Console()
    if plain or not console.is_terminal or console.is_dumb_terminal:
        configure_logs(settings.log)
        return PlainLines()
    last, file = LastEvents(), settings.data_dir / "logs" / "ratestream.log"
    configure_logs(settings.log, file=file, last=last)
    return LiveTable(_footer(settings), last, file, console)


def _footer(settings: Settings) -> str:
    broker = "built in"
    if settings.is_set("kafka.bootstrap_servers"):
        broker = settings.kafka.bootstrap_servers
    postgres = "given" if settings.is_set("postgres.url") else "built in"
    return f"broker {broker}, Postgres {postgres}, data in {settings.data_dir}"


def _builders() -> dict[str, Build]:
    from ratestream.services import (
        api_gateway,
        data_aggregator,
        data_processor,
        data_requester,
        db_loader,
        demo_server,
    )

    modules = (
        demo_server,
        data_requester,
        data_processor,
        data_aggregator,
        db_loader,
        api_gateway,
    )
    return {name: module.build for name, module in zip(SERVICES, modules, strict=True)}
