"""Services as processes of their own, as containers run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.kafka_servers import free_port

READY_SECONDS = 60.0


@dataclass
class ServiceProcess:
    """`ratestream run <service>` against one Kafka, with an address and a data folder of its own.
    `wrapper` is a command that runs another one: it must leave its own process id to that."""

    service: str
    bootstrap: str
    data_dir: Path
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    wrapper: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> ServiceProcess:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        settings = {
            "RATESTREAM_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
            "RATESTREAM_DATA_DIR": str(self.data_dir),
            f"RATESTREAM_{self.service.upper()}__HOST": self.host,
            f"RATESTREAM_{self.service.upper()}__PORT": str(self.port),
            "RATESTREAM_RUNTIME__SESSION_TIMEOUT": "6",
            "RATESTREAM_RUNTIME__HEARTBEAT_INTERVAL": "0.3",
        }
        with (self.data_dir / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, "-m", "ratestream.cli", "run", self.service],
                env={**os.environ, **settings, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return self

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.service} ended: {self.output()}")
            if self._answers_ready():
                return
            time.sleep(0.1)
        raise AssertionError(f"{self.service} is not ready: {self.output()}")

    def _answers_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def output(self) -> str:
        return (self.data_dir / "output").read_text()[-4000:]

    def kill(self) -> None:
        """As a power cut would: no handler runs."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
