"""Every query of every dashboard gives data in a Prometheus that watches a running pipeline."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
import yaml

from deploy.grafana.boards import BOARDS
from tests.support.certificates import Authority
from tests.support.deployment import Deployment
from tests.support.monitoring import (
    Prometheus,
    accelerated,
    as_grafana_asks,
    start_prometheus,
    wait_until,
)
from tests.support.processes import ServiceProcess

pytestmark = pytest.mark.timeout(300)  # the first of them waits for the deployment and for data

QUERIES = [
    pytest.param(query.expression, id=f"{board.uid}: {panel.title}: {query.legend}")
    for board in BOARDS
    for panel in board.panels
    for query in panel.queries
]
VARIABLES = [
    pytest.param(variable.label, variable.selector, id=f"{board.uid}: {variable.label}")
    for board in BOARDS
    for variable in board.variables
]
ASKED_SECONDS = 0.2
OF_TRANSACTIONS = "ratestream_transactions_total"


@pytest.fixture(scope="module")
def with_certificate(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """One more api_gateway, which trusts an authority of its own and finds no Postgres."""
    folder = tmp_path_factory.mktemp("certificate")
    settings = {
        "RATESTREAM_POSTGRES__URL": "postgresql://nobody@127.0.0.1:1/nothing",
        "RATESTREAM_POSTGRES__SSL_MODE": "verify-full",
        "RATESTREAM_POSTGRES__SSL_CA_LOCATION": str(Authority(folder / "authority").ca),
    }
    process = ServiceProcess("api_gateway", deployment.bootstrap, folder, settings)
    process.start()
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture(scope="module")
def prometheus(
    deployment: Deployment,
    with_certificate: ServiceProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prometheus]:
    """With one alert that always fires, an API that somebody asks, and a certificate."""
    folder = tmp_path_factory.mktemp("dashboards")
    addresses = deployment.addresses()
    addresses["api_gateway"].append(f"{with_certificate.host}:{with_certificate.port}")
    configuration = accelerated(addresses, folder)
    settings = yaml.safe_load(configuration.read_text())
    settings["rule_files"] = ["always.yml"]
    configuration.write_text(yaml.safe_dump(settings))
    rule = {"alert": "Always", "expr": "vector(1)", "labels": {"severity": "warning"}}
    rules = {"groups": [{"name": "always", "rules": [rule]}]}
    (folder / "always.yml").write_text(yaml.safe_dump(rules))
    stopped = threading.Event()
    user = threading.Thread(target=ask_the_api, args=(deployment["api_gateway"].url, stopped))
    user.start()
    try:
        with start_prometheus(configuration, folder) as prometheus:
            yield prometheus
    finally:
        stopped.set()
        user.join()


def ask_the_api(address: str, stopped: threading.Event) -> None:
    with httpx.Client(base_url=address) as client:
        while not stopped.wait(ASKED_SECONDS):
            client.get("/pairs/average")


def has_data(prometheus: Prometheus, expression: str) -> bool:
    samples = prometheus.query(as_grafana_asks(expression))
    return any(math.isfinite(sample.value) for sample in samples)


@pytest.fixture(scope="module")
def without_data(prometheus: Prometheus, deployment: Deployment) -> set[str]:
    """The queries that give nothing although there was time enough."""
    missing = {str(each.values[0]) for each in QUERIES}
    if deployment.guarantee != "exactly_once":
        missing = {each for each in missing if OF_TRANSACTIONS not in each}

    def all_have_data() -> bool:
        missing.difference_update([each for each in missing if has_data(prometheus, each)])
        return not missing

    with suppress(AssertionError):
        wait_until(all_have_data, lambda: str(missing))
    return missing


@pytest.mark.parametrize("expression", QUERIES)
def test_a_query_has_data(without_data: set[str], deployment: Deployment, expression: str) -> None:
    if OF_TRANSACTIONS in expression and deployment.guarantee != "exactly_once":
        pytest.skip("Tansu has no transactions to count; .ci/run brings Apache Kafka")
    assert expression not in without_data


@pytest.mark.parametrize(("label", "selector"), VARIABLES)
def test_a_variable_has_values(prometheus: Prometheus, label: str, selector: str) -> None:
    asked = f"group by ({label}) ({as_grafana_asks(selector)})"
    wait_until(
        lambda: any(sample.labels.get(label) for sample in prometheus.query(asked)),
        lambda: f"no values: {asked}",
    )


def test_a_service_that_is_not_there_is_shown_as_none(prometheus: Prometheus) -> None:
    (panel,) = (panel for panel in BOARDS[0].panels if panel.title == "Services up")
    expression = panel.queries[0].expression.replace('job="ratestream"', 'service="db_loader"')
    shown = {each.labels["service"]: each.value for each in prometheus.query(expression)}
    assert shown.pop("db_loader") == 1
    assert set(shown.values()) == {0}
    assert len(shown) == 5
