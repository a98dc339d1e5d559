"""The commands for operators on a running `ratestream up`: a source that sends rubbish, and the
way from the doctor to letters that are sent again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ratestream.settings import SERVICES

COMMAND = str(Path(sys.executable).with_name("ratestream"))
PATIENCE_SECONDS = 60.0


class Rates(BaseHTTPRequestHandler):
    """Answers as demo_server does, with one good rate and one that is none."""

    def do_GET(self) -> None:
        rates = {"USDRUB": "27.8", "EURRUB": "-1"}
        body = json.dumps({"observed_at": datetime.now(UTC).isoformat(), "rates": rates}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def rates() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Rates)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with rates() as url, socket.create_server(("127.0.0.1", 0)) as free:
        kept = {name: value for name, value in os.environ.items() if "RATESTREAM" not in name}
        source = f"{{kind: demo, url: '{url}', interval_seconds: 0.2}}"
        yield {
            **kept,
            **{f"RATESTREAM_{service.upper()}__PORT": "0" for service in SERVICES},
            "RATESTREAM_DEMO_SERVER__PORT": str(free.getsockname()[1] ^ 1),
            "RATESTREAM_DATA_REQUESTER__SOURCES": f"[{source}]",
        }


@contextmanager
def up(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Until it is ready; in `folder`/.ratestream."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [COMMAND, "up", "--plain"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not all(
            f"{service} ready" in (text := (folder / "log").read_text()) for service in SERVICES
        ):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        process.wait()


def test_a_running_up_is_looked_after(tmp_path: Path, environment: dict[str, str]) -> None:
    def run(*arguments: str, code: int = 0) -> list[str]:
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        where, *lines = done.stdout.splitlines()
        assert where == f"in the ratestream up of {tmp_path}/.ratestream" or "json" in arguments
        return [" ".join(line.split()) for line in lines] if where != "{" else [done.stdout]

    def letters(*filters: str) -> list[dict[str, Any]]:
        (text,) = run("dead-letter", "list", "--format", "json", *filters)
        found: list[dict[str, Any]] = json.loads(text)["result"]["letters"]
        return found

    with up(tmp_path, environment):
        assert run("topics", "check")[-1] == "6 ok"
        assert "src-data 8 exists" in run("topics", "create")
        assert run("db", "check")[-1] == "2 ok"
        assert run("db", "upgrade")[0].endswith(" already")
        doctor = [line for line in run("doctor")[:-1] if "dead letters" not in line]
        assert all(line.startswith("ok ") for line in doctor), doctor
        assert any(line.startswith("ok api_gateway: is ready at http") for line in doctor)

        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := letters("--service", "data_processor", "--reason", "EURRUB")):
            assert time.monotonic() < deadline
        (told,) = (line for line in run("doctor") if "dead letters" in line)
        assert told.startswith("warning dead letters: ")
        which = found[-1]["id"]
        shown = run("dead-letter", "show", which)
        assert "service data_processor" in shown
        assert any("EURRUB" in line for line in shown)
        assert run("dead-letter", "replay", which) == [f"{which} sent again to src-data"]
        assert run("dead-letter", "replay", which, code=1) == [
            f"{which} refused: it was replayed before; --again does it once more"
        ]
        hidden = [each["id"] for each in letters("--limit", "1000")]
        listed = [each["id"] for each in letters("--limit", "1000", "--replayed")]
        assert which not in hidden
        assert which in listed
        assert run("dead-letter", "show", which) == shown
