"""What `ratestream up` shows, as text."""

from __future__ import annotations

import io
import logging
import mmap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from ratestream.observability import LastEvents
from ratestream.settings import SERVICES
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.up.memory import resident_bytes
from ratestream.up.status import LiveTable, PlainLines
from ratestream.up.supervisor import ServiceState, ServiceStatus
from ratestream.up.throughput import Throughput


def status(
    name: str, state: ServiceState = ServiceState.READY, reason: str = "", restarts: int = 0
) -> ServiceStatus:
    address = "" if state is ServiceState.RESTARTING else "http://127.0.0.1:8000"
    return ServiceStatus(name, state, reason, address, Throughput(), restarts)


def all_ready() -> list[ServiceStatus]:
    return [status(name) for name in SERVICES]


def test_a_plain_line_is_printed_only_when_a_state_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = PlainLines()
    lines.show([status("api_gateway", ServiceState.STARTING, "connecting")])
    lines.show([status("api_gateway", ServiceState.STARTING, "restoring")])
    lines.show([status("api_gateway", ServiceState.RESTARTING, "the disk is full", restarts=1)])
    assert capsys.readouterr().out.splitlines() == [
        "api_gateway starting at http://127.0.0.1:8000: connecting",
        "api_gateway restarting (restarts: 1): the disk is full",
    ]


def test_plain_lines_tell_the_addresses_once_all_are_ready(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = PlainLines()
    lines.show(all_ready())
    lines.show(all_ready())
    shown = capsys.readouterr().out.splitlines()
    assert shown.count("API        http://127.0.0.1:8000/pairs") == 1
    assert shown.count("API docs   http://127.0.0.1:8000/docs") == 1
    assert shown.count("dashboard  http://127.0.0.1:8000/") == 1


def test_the_table_shows_every_service_and_the_last_warnings() -> None:
    last = LastEvents()
    last.handle(logging.LogRecord("x", logging.WARNING, "", 0, "source is silent", (), None))
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=120, height=40)
    with LiveTable("data in d", last, Path("d/logs/ratestream.log"), console) as table:
        table.show(
            [*all_ready()[:-1], status("api_gateway", ServiceState.FAILED, "no schema", restarts=2)]
        )
    shown = terminal.getvalue()
    assert [name for name in SERVICES if name not in shown] == []
    for text in ("failed: no schema", "source is silent", "data in d", "d/logs/ratestream.log"):
        assert text in shown


def test_rates_are_of_the_time_between_two_samples(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, tmp_path)
    first = Throughput().next(registry)
    metrics.records_in.labels("a").inc(3)
    metrics.records_in.labels("b").inc(4)
    metrics.lag.labels("a", "0").set(5)
    metrics.lag.labels("a", "1").set(6)
    second = first.next(registry)
    assert (first.in_per_second, first.lag) == (None, None)
    assert second.in_per_second == pytest.approx(7 / (second.at - first.at))
    assert (second.out_per_second, second.lag) == (0, 11)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells it")
def test_memory_is_that_of_this_process() -> None:
    size = 50_000_000
    # Pages that nobody had before: bytes could come from memory that earlier tests have left.
    with mmap.mmap(-1, size) as ballast:
        before = resident_bytes()
        ballast.write(b"x" * size)
        after = resident_bytes()
    assert before is not None
    assert after is not None
    assert size * 0.8 < after - before < size * 3
