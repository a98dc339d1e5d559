"""What `ratestream up` shows: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ratestream.observability import LastEvents
from ratestream.up.memory import resident_bytes
from ratestream.up.supervisor import ServiceState, ServiceStatus

SUMMARY_SECONDS = 10.0
"""Between two plain lines that sum up what goes on."""

_COLORS = {
    ServiceState.STARTING: "yellow",
    ServiceState.READY: "green",
    ServiceState.NOT_READY: "yellow",
    ServiceState.RESTARTING: "red",
    ServiceState.FAILED: "bold red",
    ServiceState.STOPPED: "dim",
}


class Display(Protocol):
    """Shows the services, once a second, within its context."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def say(self, line: str) -> None:
        """Something that happened, once."""
        ...

    def show(self, services: Sequence[ServiceStatus]) -> None: ...


class PlainLines:
    """A line when a service's state changes, one when all are ready, and a summary now and then.
    Nobody may be reading: a closed pipe does not end the services."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[ServiceState, int]] = {}
        self._all_ready = False
        self._next_summary = time.monotonic() + SUMMARY_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return

    def say(self, line: str) -> None:
        try:
            print(line, flush=True)
        except BrokenPipeError:
            return

    def show(self, services: Sequence[ServiceStatus]) -> None:
        for service in services:
            if self._shown.get(service.name) != (service.state, service.restarts):
                self._shown[service.name] = (service.state, service.restarts)
                self.say(_line(service))
        ready = all(service.state is ServiceState.READY for service in services)
        if ready and not self._all_ready:
            for line in headline(services):
                self.say(line)
        self._all_ready = ready
        if time.monotonic() >= self._next_summary:
            self._next_summary = time.monotonic() + SUMMARY_SECONDS
            self.say(_summary(services))


class LiveTable:
    """The table, redrawn in place; logs go to a file meanwhile, their last warnings below it."""

    def __init__(self, footer: str, last: LastEvents, log_file: Path, console: Console) -> None:
        self._footer = footer
        self._last_events = last
        self._log_file = log_file
        self._live = Live(console=console, auto_refresh=False)
        self._memory: int | None = None
        self._next_memory = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._live.console.print(line, highlight=False, markup=False)

    def show(self, services: Sequence[ServiceStatus]) -> None:
        if time.monotonic() >= self._next_memory:
            self._next_memory = time.monotonic() + SUMMARY_SECONDS
            self._memory = resident_bytes()
        parts: list[RenderableType] = [
            *headline(services),
            "",
            _table(services),
            "",
            *self._below(),
        ]
        self._live.update(Group(*parts), refresh=True)

    def _below(self) -> Iterator[Text]:
        memory = f", memory {_megabytes(self._memory)}" if self._memory else ""
        yield Text(f"{self._footer}{memory}. Ctrl-C stops everything.", style="dim")
        for line in self._last_events.lines():
            yield Text(line, style="yellow", no_wrap=True, overflow="ellipsis")
        yield Text(f"logs in {self._log_file}", style="dim")


def headline(services: Sequence[ServiceStatus]) -> list[str]:
    """Where people look: the API, its documentation, the dashboard."""
    gateway = next(service for service in services if service.name == "api_gateway")
    if not gateway.address:
        return ["ratestream is starting"]
    return [
        f"API        {gateway.address}/pairs",
        f"API docs   {gateway.address}/docs",
        f"dashboard  {gateway.address}/",
    ]


def _table(services: Sequence[ServiceStatus]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("service", "address", "health"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("in/s", "out/s", "lag", "restarts"):
        table.add_column(name, justify="right", no_wrap=True)
    for service in services:
        rates = service.throughput
        table.add_row(
            service.name,
            service.address or "-",
            Text(_health(service), style=_COLORS[service.state]),
            _number(rates.in_per_second),
            _number(rates.out_per_second),
            _number(rates.lag),
            str(service.restarts),
        )
    return table


def _health(service: ServiceStatus) -> str:
    return f"{service.state.value}: {service.reason}" if service.reason else service.state.value


def _line(service: ServiceStatus) -> str:
    restarts = f" (restarts: {service.restarts})" if service.restarts else ""
    address = f" at {service.address}" if service.address else ""
    reason = f": {service.reason}" if service.reason else ""
    return f"{service.name} {service.state.value}{address}{restarts}{reason}"


def _summary(services: Sequence[ServiceStatus]) -> str:
    memory = resident_bytes()
    parts = [
        f"{service.name} {_health(service)}, in {_number(service.throughput.in_per_second)}/s "
        f"out {_number(service.throughput.out_per_second)}/s "
        f"lag {_number(service.throughput.lag)} restarts {service.restarts}"
        for service in services
    ]
    if memory:
        parts.append(f"memory {_megabytes(memory)}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if 0 < value < 100 and value != int(value) else f"{value:,.0f}"


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:,.0f} MB"
