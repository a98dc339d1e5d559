"""Prometheus, as compose configures it, finds the services by name and reads their metrics."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ratestream.settings import SERVICES
from tests.monitoring.conftest import AGGREGATORS
from tests.support.deployment import Deployment
from tests.support.monitoring import (
    CONFIGURATION,
    Prometheus,
    Sample,
    name_server,
    start_prometheus,
    wait_until,
)

METRICS_PAGE = CONFIGURATION.parents[1] / "docs" / "metrics.md"
ONLY_WITH_TLS = {"ratestream_certificate_expiry_timestamp_seconds"}
ONLY_EXACTLY_ONCE = {"ratestream_transactions_total"}

INSTANCES = len(SERVICES) - 1 + AGGREGATORS


@pytest.fixture
def by_name(deployment: Deployment, folder: Path) -> Iterator[Prometheus]:
    """Prometheus with the configuration that compose mounts, unchanged."""
    if os.geteuid() != 0:
        pytest.skip("a name server listens on port 53, which needs root")
    hosts = {
        service: [each.host for each in instances]
        for service, instances in deployment.instances.items()
    }
    network = deployment["demo_server"].host.rpartition(".")[0]
    configuration = CONFIGURATION / "prometheus.yml"
    with (
        name_server(f"{network}.53", hosts, folder) as resolv_conf,
        start_prometheus(configuration, folder, resolv_conf=resolv_conf) as prometheus,
    ):
        yield prometheus


def wait_all_up(prometheus: Prometheus) -> None:
    wait_until(
        lambda: [each["health"] for each in prometheus.targets()] == ["up"] * INSTANCES,
        lambda: str(prometheus.targets()),
    )


def test_every_instance_is_found_by_its_name(
    by_name: Prometheus, deployment: Deployment, watch: Prometheus
) -> None:
    wait_all_up(by_name)
    found: dict[str, set[str]] = {}
    for target in by_name.targets():
        labels = target["labels"]
        found.setdefault(labels["service"], set()).add(labels["instance"])
    addresses = {service: set(each) for service, each in deployment.addresses().items()}
    assert found == addresses
    assert len(found["data_aggregator"]) == AGGREGATORS


def test_every_rule_can_be_evaluated(watch: Prometheus) -> None:
    def states() -> set[str]:
        return {rule["health"] for group in watch.ask("rules")["groups"] for rule in group["rules"]}

    wait_until(lambda: states() == {"ok"}, lambda: str(watch.ask("rules")))


def test_every_metric_is_there_or_said_to_come_later(
    deployment: Deployment, watch: Prometheus
) -> None:
    documented = set(
        re.findall(r"^\| `(ratestream_\w+)` \|", METRICS_PAGE.read_text(), re.MULTILINE)
    )
    httpx.get(f"{deployment['api_gateway'].url}/pairs")
    deployment.wait_nothing_is_lost()

    def missing() -> set[str]:
        there = {each.labels["__name__"] for each in watch.query('{job="ratestream"}')}
        return {name for name in documented if not {name, f"{name}_count"} & there}

    is_exact = deployment.guarantee == "exactly_once"
    not_here = ONLY_WITH_TLS | (set() if is_exact else ONLY_EXACTLY_ONCE)
    wait_until(lambda: missing() <= not_here, lambda: str(missing()))
    assert documented >= ONLY_WITH_TLS | ONLY_EXACTLY_ONCE


def test_nothing_fires_while_all_is_well(deployment: Deployment, watch: Prometheus) -> None:
    """A quarter of an hour in the accelerated time passes without an alert. It may take a while
    to come: a busy machine answers some scrapes too late for a clock that runs so fast."""

    def fired() -> list[Sample]:
        return watch.query('count_over_time(ALERTS{alertstate="firing"}[15s])')

    def was_watched() -> bool:
        return bool(watch.query('up{job="ratestream"} offset 15s'))

    wait_all_up(watch)
    wait_until(lambda: was_watched() and not fired(), lambda: f"these still fire: {fired()}")
