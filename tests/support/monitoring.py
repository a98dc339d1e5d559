"""A real Prometheus with the repository's own configuration, and the names that it asks for.

The configuration finds services by DNS, as in containers. `name_server` answers for them on this
machine, and Prometheus is shown a resolv.conf of its own, in a mount namespace; both need root.
`accelerated` is the same configuration with fixed addresses and with every duration divided by
`ACCELERATION`, so that "for five minutes" passes in five seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from dnslib.server import DNSHandler, DNSServer

from tests.support.kafka_servers import free_port, wait_for_port

CONFIGURATION = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
ACCELERATION = 60

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"\b(\d+)(ms|[smhd])\b")
_LOOKBACK_SECONDS = 300
_SCRAPE_SECONDS = 1
"""In accelerated time: a quarter would do, but a busy machine needs longer to answer."""
_QUIET_SECONDS = 3.0
_PATIENCE_SECONDS = 90.0
_STOP_SECONDS = 10.0
# Grafana would take four scrapes: a window of one second would miss on a busy machine.
_WINDOWS = {"$__rate_interval": "15s", "$__range": "1m"}


@dataclass(frozen=True)
class Sample:
    """One element of an instant vector."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Alert:
    """A firing alert; `labels` without its name."""

    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    def is_of(self, name: str, **labels: str) -> bool:
        return self.name == name and labels.items() <= self.labels.items()


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expression: str) -> list[Sample]:
        """What an expression gives now. A scalar comes as one sample without labels."""
        data = self.ask("query", query=expression)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(each["metric"], float(each["value"][1])) for each in data["result"]]

    def firing(self) -> list[Alert]:
        return [
            Alert(labels.pop("alertname"), labels, each["annotations"])
            for each in self.ask("alerts")["alerts"]
            if each["state"] == "firing"
            for labels in (dict(each["labels"]),)
        ]

    def targets(self, job: str = "ratestream") -> list[Mapping[str, Any]]:
        """What is scraped: `labels`, `health` ("up", "down", "unknown"), `lastError`, …"""
        active = self.ask("targets")["activeTargets"]
        return [each for each in active if each["labels"]["job"] == job]

    def wait_firing(self, name: str, **labels: str) -> Alert:
        """The alert, once it fires."""
        fired: list[Alert] = []

        def fires() -> bool:
            fired[:] = [each for each in self.firing() if each.is_of(name, **labels)]
            return bool(fired)

        wait_until(fires, lambda: f"{name} {labels} does not fire; there are {self.firing()}")
        return fired[0]

    def wait_resolved(self, *names: str, ignoring: Callable[[Alert], bool] | None = None) -> None:
        """Until none of these alerts, or none at all, has fired for a while: a target that once
        answers too late makes its alerts vanish for a moment."""

        def counts(alert: Alert) -> bool:
            return (not names or alert.name in names) and not (ignoring and ignoring(alert))

        quiet_since = time.monotonic()

        def is_quiet() -> bool:
            nonlocal quiet_since
            if any(counts(alert) for alert in self.firing()):
                quiet_since = time.monotonic()
            return time.monotonic() - quiet_since > _QUIET_SECONDS

        wait_until(is_quiet, lambda: f"still firing: {self.firing()}")

    def ask(self, path: str, **parameters: str) -> Any:
        """`data` of an answer of the HTTP API, version 1."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10)
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body['error']}"
        return body["data"]


def as_grafana_asks(expression: str) -> str:
    """A panel's query in accelerated time, with its variables replaced: any value of those that
    are chosen."""
    for window, duration in _WINDOWS.items():
        expression = expression.replace(window, duration)
    return re.sub(r"\$[a-z]\w*", ".*", expression)


def wait_until(condition: Callable[[], bool], trouble: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, trouble()
        time.sleep(0.1)


def need_prometheus() -> None:
    """Skip where it is not installed, unless RATESTREAM_TEST_REQUIRE wants it."""
    missing = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed (Debian: package prometheus)"
        if "prometheus" in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def start_prometheus(
    configuration: Path, folder: Path, *options: str, resolv_conf: Path | None = None
) -> Iterator[Prometheus]:
    """Prometheus on a free port, with its data in `folder`; ended at the end of the block.
    With `resolv_conf` it asks the name servers named there."""
    port = free_port()
    command = [
        *(_with_resolv_conf(resolv_conf) if resolv_conf else ()),
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
        *options,
    ]
    log_file = folder / "prometheus.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        wait_for_port(port, process)
        yield Prometheus(f"http://127.0.0.1:{port}")
    except RuntimeError:
        raise AssertionError(log_file.read_text()) from None
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _with_resolv_conf(file: Path) -> Sequence[str]:
    script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", script, str(file))


@contextmanager
def start_accelerated(addresses: Mapping[str, Sequence[str]], folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the `accelerated` configuration, in which data is out of date sooner, too."""
    lookback = f"--query.lookback-delta={1000 * _LOOKBACK_SECONDS // ACCELERATION}ms"
    with start_prometheus(accelerated(addresses, folder), folder, lookback) as prometheus:
        yield prometheus


def accelerated(addresses: Mapping[str, Sequence[str]], folder: Path) -> Path:
    """The repository's configuration and rules, written into `folder` with every duration
    divided by `ACCELERATION`; the services' names stand for the given addresses (host:port)."""
    for name in ("prometheus.yml", "alerts.yml"):
        original = (CONFIGURATION / name).read_text()
        (folder / name).write_text(_DURATION.sub(_shortened, original))
    file = folder / "prometheus.yml"
    settings = yaml.safe_load(file.read_text())
    settings["global"]["scrape_interval"] = f"{_SCRAPE_SECONDS}s"
    for scrape in settings["scrape_configs"]:
        for names in scrape.pop("dns_sd_configs", ()):
            scrape["static_configs"] = [
                {"targets": list(addresses.get(name, ())), "labels": {"__meta_dns_name": name}}
                for name in names["names"]
            ]
    file.write_text(yaml.safe_dump(settings))
    return file


def _shortened(duration: re.Match[str]) -> str:
    return f"{1000 * _seconds(duration[0]) / ACCELERATION:.0f}ms"


def _seconds(duration: str) -> float:
    number, unit = re.fullmatch(_DURATION, duration).groups()  # type: ignore[union-attr]  # or it fails
    return float(number) * _SECONDS[unit]


@contextmanager
def name_server(host: str, addresses: Mapping[str, Sequence[str]], folder: Path) -> Iterator[Path]:
    """A name server on `host` that knows these names; yields a resolv.conf that names it. Needs
    root: resolv.conf has no ports but 53."""
    server = DNSServer(_Names(addresses), address=host, port=53)
    server.start_thread()
    try:
        resolv_conf = folder / "resolv.conf"
        resolv_conf.write_text(f"nameserver {host}\noptions ndots:0\n")
        yield resolv_conf
    finally:
        server.stop()
        server.server.server_close()


class _Names:
    """Answers as Docker's name server does: an A record for each instance, or no such name."""

    def __init__(self, addresses: Mapping[str, Sequence[str]]) -> None:
        self._addresses = addresses

    def resolve(self, request: DNSRecord, handler: DNSHandler) -> DNSRecord:
        reply = request.reply()
        found = self._addresses.get(str(request.q.qname).rstrip("."))
        if found is None:
            reply.header.rcode = RCODE.NXDOMAIN
        elif request.q.qtype == QTYPE.A:
            for address in found:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=1))
        return reply
