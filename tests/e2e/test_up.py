"""`ratestream up` as a process: it runs, stops, and goes on where it stopped."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
import pytest

from ratestream.settings import SERVICES
from ratestream.storage.embedded import EmbeddedPostgres
from tests.support.kafka_servers import start_kafka
from tests.support.postgres import fetch

COMMAND = [str(Path(sys.executable).with_name("ratestream")), "up", "--plain"]
READY_SECONDS = 60.0
STOP_SECONDS = 10.0
"""Twice what is promised: the machine may have other things to do."""

WINDOW = 10


class Up:
    """A running `ratestream up`, what it has printed, and everything that it started."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*COMMAND, "--data-dir", str(data_dir), *options],
            env={**_without_settings(), **_fast_settings()},
            cwd=data_dir.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self.lines.extend(output)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` returns as soon as it is true."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("".join(self.lines))

    def address(self, service: str, state: str = "ready") -> str:
        start = f"{service} {state} at "
        return next((x.removeprefix(start).strip() for x in self.lines if x.startswith(start)), "")

    def gateway(self) -> str:
        """Its address, when all services are ready."""
        self.until(lambda: all(self.address(service) for service in SERVICES))
        return self.address("api_gateway")

    def end(self, *signals: signal.Signals) -> int:
        """The exit code. Fails when anything that it started is left."""
        everything = self._descendants()
        for number in signals:
            self.process.send_signal(number)
        code = self.process.wait(STOP_SECONDS)
        self._reader.join()
        _, left = psutil.wait_procs(everything, timeout=STOP_SECONDS)
        assert left == []
        return code

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)


@contextmanager
def up(data_dir: Path, *options: str) -> Iterator[Up]:
    running = Up(data_dir, *options)
    try:
        yield running
    finally:
        running.kill()


def _without_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if "RATESTREAM" not in name}


def _fast_settings() -> dict[str, str]:
    """Free ports, ten polls a second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        demo = free.getsockname()[1]
    source = f"{{kind: demo, url: 'http://127.0.0.1:{demo}', interval_seconds: 0.1}}"
    return {
        **{f"RATESTREAM_{service.upper()}__PORT": "0" for service in SERVICES},
        "RATESTREAM_DEMO_SERVER__PORT": str(demo),
        "RATESTREAM_DEMO_SERVER__TICK_SECONDS": "0.1",
        "RATESTREAM_DATA_REQUESTER__SOURCES": f"[{source}]",
    }


def get(address: str, path: str) -> Any:
    answer = httpx.get(address + path)
    return answer.raise_for_status().json()


def full_windows(address: str) -> bool:
    averages = get(address, "/pairs/average")["items"]
    return bool(averages) and all(item["count"] == WINDOW for item in averages)


def stored_quotes(address: str) -> int:
    return len(get(address, "/pairs/currencies?pair_name=EURUSD&limit=1000")["items"])


def query(data_dir: Path, statement: str) -> list[Any]:
    async def ask(url: str) -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(statement))
        finally:
            await connection.close()

    with EmbeddedPostgres(data_dir / "postgres") as server:
        return asyncio.run(ask(server.url))


def mean(values: list[Decimal]) -> Decimal:
    with localcontext(prec=60):
        total = sum(values, Decimal())
    with localcontext(prec=12, rounding=ROUND_HALF_EVEN):
        return total / len(values)


def expected_averages(quotes: list[Any]) -> dict[tuple[str, int], tuple[Decimal, int]]:
    windows: dict[str, list[Decimal]] = {}
    expected = {}
    for pair, offset, value in quotes:
        windows[pair] = [*windows.get(pair, []), value][-WINDOW:]
        expected[pair, offset] = mean(windows[pair]), len(windows[pair])
    return expected


def test_it_answers_stops_and_goes_on_after_any_end(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as first:
        gateway = first.gateway()
        first.until(lambda: full_windows(gateway))
        newest = get(gateway, "/pairs/currencies?pair_name=EURUSD&limit=3")["items"]
        assert len(newest) == 3
        assert {item["pair_name"] for item in newest} == {"EURUSD"}
        assert "EURUSD" in {item["pair_name"] for item in get(gateway, "/pairs?limit=100")["items"]}
        assert first.end(signal.SIGTERM) == 0
    with up(data_dir) as killed:
        gateway = killed.gateway()
        assert killed.until(lambda: full_windows(gateway))
        killed.end(signal.SIGKILL)
    (kill,) = query(
        data_dir,
        "SELECT max(origin_offset) AS at, count(*) AS quotes FROM quotes WHERE pair = 'EURUSD'",
    )
    with up(data_dir) as last:
        gateway = last.gateway()
        assert last.until(lambda: stored_quotes(gateway) > kill["quotes"] + 4 * WINDOW)
        assert last.end(signal.SIGINT) == 0

    quotes = query(
        data_dir, "SELECT pair, origin_offset, value FROM quotes ORDER BY origin_offset, pair"
    )
    averages = query(data_dir, "SELECT pair, origin_offset, value, window_fill FROM averages")
    assert len({(pair, offset) for pair, offset, _ in quotes}) == len(quotes)
    expected = expected_averages(quotes)
    stored = {(pair, offset): (value, count) for pair, offset, value, count in averages}
    assert len(stored) == len(averages)
    assert {key for key in expected if key[1] <= kill["at"]} <= stored.keys()
    both = stored.keys() & expected.keys()  # at the end one of the two may be there alone
    assert {key: stored[key] for key in both} == {key: expected[key] for key in both}
    assert len(both) > 200


@pytest.mark.kafka
def test_it_runs_on_given_servers(tmp_path: Path, empty_database: str) -> None:
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Java and Maven; .ci/run brings them")
    with start_kafka() as cluster:
        servers = ("--kafka", cluster.bootstrap, "--postgres", empty_database)
        with up(tmp_path / "data", *servers) as first:
            gateway = first.gateway()
            assert first.until(lambda: full_windows(gateway))
            assert first.end(signal.SIGTERM) == 0
        before = asyncio.run(fetch(empty_database, "SELECT count(*) AS quotes FROM quotes"))
        with up(tmp_path / "data", *servers) as again:
            gateway = again.gateway()
            assert full_windows(gateway)
            assert again.until(lambda: stored_quotes(gateway) > before[0]["quotes"] / 12 + WINDOW)
            assert again.end(signal.SIGINT) == 0
    assert not (tmp_path / "data" / "postgres").exists()
    assert not (tmp_path / "data" / "broker").exists()


def test_a_second_signal_is_not_too_many(tmp_path: Path) -> None:
    with up(tmp_path / "data") as running:
        running.gateway()
        assert running.end(signal.SIGINT, signal.SIGINT) == 0


def test_a_second_start_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with up(tmp_path / "data") as running:
        running.gateway()
        with up(tmp_path / "data") as second:
            assert second.process.wait(READY_SECONDS) == 1
            second.end()  # reads what it has printed
        assert second.lines == [
            f"ratestream: data_dir {tmp_path / 'data'} is in use by process "
            f"{running.process.pid}: end that one, or give another folder with --data-dir\n"
        ]


def test_a_service_that_can_never_run_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as running:
        gateway = running.gateway()
        running.until(lambda: full_windows(gateway))
        running.end(signal.SIGTERM)
    shutil.rmtree(data_dir / "broker")
    with up(data_dir) as running:
        running.until(lambda: any(x.startswith("data_aggregator failed") for x in running.lines))
        gateway = running.until(lambda: running.address("api_gateway"))
        assert get(gateway, "/pairs/average")["items"]
        assert running.end(signal.SIGTERM) == 0
    reason = next(x for x in running.lines if x.startswith("data_aggregator failed"))
    assert "another cluster" in reason
