"""Apache Kafka on three brokers, and Postgres: real ones that can be killed and started again.

All calls block. `stop` waits for a start that is under way in another thread, so that it leaves
nothing running.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from ratestream.storage.embedded import EmbeddedPostgres
from tests.chaos import ChaosError
from tests.support.kafka_servers import SCRIPT, KafkaCluster

BROKERS = (1, 2, 3)

_IN_SYNC_SECONDS = 120.0
_ASK_SECONDS = 5.0
_START_ATTEMPTS = 3


class Brokers:
    """Three brokers, replication 3, at least 2 in sync."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder.parent / "logs" / "kafka-script.log"
        self._one_at_a_time = threading.Lock()
        self._stopping = threading.Event()
        self.bootstrap = ""

    def start(self) -> None:
        printed = self._script("start", "--brokers", str(len(BROKERS)))
        self.bootstrap = printed.splitlines()[-1]
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})

    def kill(self, broker: int) -> None:
        KafkaCluster(self.bootstrap, self._folder).kill(broker)

    def start_again(self) -> None:
        """Those that are down, on their ports and with their data. On a busy machine a broker may
        be too slow for the script, so it gets a few attempts. Raises `ChaosError`."""
        for _ in range(_START_ATTEMPTS - 1):
            with suppress(ChaosError):
                self._script("start")
                return
        self._script("start")

    def wait_in_sync(self) -> None:
        """Until every replica of every partition is in sync, and was a second ago: metadata may
        be that old. Raises `ChaosError`."""
        deadline = time.monotonic() + _IN_SYNC_SECONDS
        agreed = 0
        while agreed < 2 and not self._stopping.wait(1.0):
            if time.monotonic() > deadline:
                raise ChaosError(f"Kafka's replicas are not in sync after {_IN_SYNC_SECONDS} s")
            agreed = agreed + 1 if self._are_in_sync() else 0

    def stop(self) -> None:
        self._stopping.set()
        if (self._folder / "cluster.json").exists():
            self._script("stop")

    def _are_in_sync(self) -> bool:
        try:
            metadata = self._admin.list_topics(timeout=_ASK_SECONDS)
        except KafkaException:
            return False
        return len(metadata.brokers) == len(BROKERS) and all(
            len(partition.isrs) == len(partition.replicas)
            for topic in metadata.topics.values()
            for partition in topic.partitions.values()
        )

    def _script(self, action: str, *options: str) -> str:
        command = [sys.executable, str(SCRIPT), action, "--dir", str(self._folder), *options]
        with self._one_at_a_time, self._log.open("ab") as log:
            if action == "start" and self._stopping.is_set():
                raise ChaosError("Kafka is being stopped")
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=log, text=True, check=False
            )
        if done.returncode != 0:
            raise ChaosError(f"scripts/kafka {action}: {self._log.read_text().splitlines()[-1]}")
        return done.stdout


class Postgres:
    """The embedded one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = EmbeddedPostgres(folder)
        self._one_at_a_time = threading.Lock()
        self.url = ""

    def start(self) -> None:
        with self._one_at_a_time:
            self._server.start()
        self.url = self._server.url

    def kill(self) -> None:
        """The postmaster first, so that it does not replace the others."""
        pid = (self._folder / "data" / "postmaster.pid").read_text().splitlines()[0]
        postmaster = psutil.Process(int(pid))
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # a backend ends when its postmaster has
                process.kill()

    def start_again(self) -> None:
        with self._one_at_a_time:
            self._server.stop()
            self._server.start()

    def stop(self) -> None:
        with self._one_at_a_time:
            self._server.stop()
