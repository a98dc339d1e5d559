"""The health check of a container: a process, what it prints, its exit code."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ratestream.streaming import App
from ratestream.streaming.testing import AppTester


def check(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    command = [sys.executable, "-m", "ratestream.healthcheck", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def check_app(app: App) -> tuple[int, str]:
    async def scenario() -> tuple[int, str]:
        async with AppTester(app) as tester:
            port = tester.worker.address.rpartition(":")[2]
            return await asyncio.to_thread(check, port)

    return asyncio.run(scenario())


@contextmanager
def answering(answer: bytes, *, drips: bool = False) -> Iterator[str]:
    """A port where one gets this, and then silence; or, a byte at a time, hardly gets it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections: list[socket.socket] = []

        def answer_once() -> None:
            connection, _ = listener.accept()
            connections.append(connection)
            for part in (bytes([each]) for each in answer) if drips else (answer,):
                try:
                    connection.sendall(part)
                except OSError:
                    return
                time.sleep(0.5 if drips else 0)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield str(listener.getsockname()[1])
        thread.join()
        for connection in connections:
            connection.close()


def test_a_service_that_is_ready_is_healthy() -> None:
    assert check_app(App("fine")) == (0, "")


def test_a_service_that_is_not_ready_says_why() -> None:
    app = App("waiting")
    app.add_readiness_check("postgres", lambda: "no connection")
    app.add_readiness_check("clock", lambda: "wrong")
    assert check_app(app) == (1, "postgres: no connection\nclock: wrong\n")


def test_a_service_that_is_not_ready_and_says_no_reason_is_not_healthy() -> None:
    body = b'{"reasons": []}'
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\n\r\n"
    with answering(head.encode() + body) as port:
        assert check(port) == (1, "it answers 503 without a reason\n")


def test_where_nothing_listens_nothing_is_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = str(closed.getsockname()[1])
    code, printed = check(port)
    assert code == 1
    assert printed == f"no usable answer on port {port}: [Errno 111] Connection refused\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 900\r\n\r\n{",
    ],
)
def test_what_is_no_answer_of_ours_is_one_line_and_soon(answer: bytes) -> None:
    with answering(answer) as port:
        code, printed = check(port)
    assert code == 1
    assert printed.startswith(f"no usable answer on port {port}: ")
    assert len(printed.splitlines()) == 1


def test_an_answer_that_drips_in_is_not_waited_for() -> None:
    with answering(b"HTTP/1.1 200 OK\r\n" * 100, drips=True) as port:
        code, printed = check(port)
    assert code == 1
    assert "nothing complete within 4 s" in printed


@pytest.mark.parametrize("arguments", [(), ("http",), ("-1",), ("65536",), ("8000", "8001")])
def test_a_wrong_command_line_says_how(arguments: tuple[str, ...]) -> None:
    assert check(*arguments) == (2, "usage: python -m ratestream.healthcheck PORT\n")


def test_it_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"  # a machine may load modules of its own, as sitecustomize
        "import ratestream.healthcheck\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ratestream']\n"
