"""`make run` as a person uses it: in a terminal, ended with Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from ratestream.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SERVICES = (
    *("demo_server", "data_requester", "data_processor"),
    *("data_aggregator", "db_loader", "api_gateway"),
)
CTRL_C = b"\x03"


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.keyboard, inside = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            preexec_fn=lambda: os.login_tty(inside),
        )
        os.close(inside)
        self.shown = bytearray()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self.keyboard, 65536):
                self.shown += part

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def left_running(data_dir: Path, session: int) -> list[str]:
    """What the terminal started, or what works on the data: Postgres leaves the session."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and (session_of(process.pid) == session or str(data_dir) in str(process.info["cmdline"]))
    ]


def session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def answer(url: str) -> dict[str, object] | None:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return dict(json.load(response))
    except (OSError, urllib.error.HTTPError):
        return None


def documented_questions(ports: Mapping[str, int]) -> list[str]:
    """Every curl command that README and tutorial show, asking the ports in use here."""
    pages = (ROOT / "README.md").read_text() + (ROOT / "docs" / "tutorial.md").read_text()
    commands = re.findall(r"curl -s '?http://127[^`\n|]*", pages)
    assert len(commands) > 6
    for name, port in ports.items():
        default = str(getattr(Settings(), name).port)
        commands = [command.replace(f":{default}/", f":{port}/") for command in commands]
    return sorted({command.strip().rstrip("\\").strip() for command in commands})


def untouched_environment() -> dict[str, str]:
    """Without settings, and without what the `make` that runs these tests passes on."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RATESTREAM_", "MAKE", "MFLAGS"))
    }


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[tuple[Terminal, dict[str, int]]]:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv/.installed-dev").exists():
        pytest.skip("needs the environment that `make test` makes")
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = untouched_environment() | {
        f"RATESTREAM_{name.upper()}__PORT": str(port) for name, port in ports.items()
    }
    command = ["make", "run", f"ARGS=--data-dir {tmp_path / 'data'}"]
    terminal = Terminal(command, environment)
    yield terminal, ports
    if terminal.process.poll() is None:
        terminal.process.terminate()
        terminal.process.wait(30)
    os.close(terminal.keyboard)


def test_make_run_answers_and_ctrl_c_ends_all_of_it(
    terminal: tuple[Terminal, dict[str, int]], tmp_path: Path
) -> None:
    screen, ports = terminal
    averages = f"http://127.0.0.1:{ports['api_gateway']}/pairs/average"
    deadline = time.monotonic() + 60
    while not ((found := answer(averages)) and found["items"]):
        assert screen.process.poll() is None, screen.shown.decode()
        assert time.monotonic() < deadline, screen.shown.decode()
        time.sleep(0.2)

    for command in documented_questions(ports) if shutil.which("curl") else []:
        asked = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=True)
        assert asked.stdout.strip(), command

    screen.type(CTRL_C)
    assert screen.process.wait(15) == 0, screen.shown.decode()

    assert left_running(tmp_path / "data", screen.process.pid) == []
    for port in ports.values():
        with socket.create_server(("127.0.0.1", port)):
            pass
    assert (tmp_path / "data").is_dir()
