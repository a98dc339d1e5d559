"""compose.yaml brought up in the image that the Dockerfile makes, on a real Kafka and Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from ratestream.settings import SERVICES
from tests.support.compose import Project, copy_of_project, make_secrets, resolved
from tests.support.containers import Engine

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(540)]

PATIENCE_SECONDS = 60.0
INSTANCES = 3
WITH_A_VOLUME = {"data_processor": "processor", "data_aggregator": "aggregator"}


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory, kafka_address: str, engine: Engine
) -> Iterator[Project]:
    """Every service healthy, data_processor and data_aggregator three times. Asks for
    `kafka_address` to run only where Apache Kafka is wanted."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    make_secrets(folder)
    project = Project(engine, folder, resolved(folder))
    try:
        bring_up(project)
        yield project
    finally:
        project.close()


def bring_up(project: Project) -> None:
    project.make_networks()
    project.start_kafka()
    project.start_postgres()
    project.run_once("topics")
    project.run_once("migrate")
    started = [project.start(service) for service in SERVICES]
    started += [
        project.start(service, number)
        for service in WITH_A_VOLUME
        for number in range(2, INSTANCES + 1)
    ]
    for container in started:
        project.wait_healthy(container)


def average_of(project: Project, pair: str) -> str:
    """From the API, as soon as there is one."""
    url = f"http://{project.address('api_gateway-1', 'outside')}:8000/pairs/average"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        items = httpx.get(url, params={"pair_name": pair}).json().get("items")
        if items:
            return str(items[0]["value"])
        time.sleep(0.5)
    raise AssertionError(f"no average of {pair}: {project.logs('db_loader-1')}")


def test_averages_reach_the_api(project: Project) -> None:
    assert float(average_of(project, "USDRUB")) > 0


def test_topics_and_schema_can_be_made_again(project: Project) -> None:
    project.run_once("topics")
    project.run_once("migrate")


def test_operators_ask_the_running_deployment(project: Project) -> None:
    said = project.run_once("ratestream")
    assert all(service in said for service in SERVICES)
    project.run_once("ratestream", "topics", "check")
    project.run_once("ratestream", "db", "check")
    project.run_once("ratestream", "dead-letter", "list")


@pytest.mark.parametrize(("service", "volume"), WITH_A_VOLUME.items())
def test_each_instance_has_a_folder_and_a_name_of_its_own(
    project: Project, service: str, volume: str
) -> None:
    folders = sorted((project.volume(volume) / "state" / service).iterdir())
    assert [path.name for path in folders] == ["0", "1", "2"]
    assert len({(path / "instance-id").read_text() for path in folders}) == INSTANCES


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_write_nothing_but_its_data(project: Project, service: str) -> None:
    script = "import os; print(os.getuid(), os.access('/', os.W_OK), os.access('/etc', os.W_OK))"
    assert project.execute(f"{service}-1", "python", "-c", script).split() == [
        "10001",
        "False",
        "False",
    ]


def test_everything_stops_when_it_is_asked_to(project: Project) -> None:
    """Last, since nothing runs afterwards."""
    containers = [f"{service}-1" for service in SERVICES]
    assert [project.stop(each) for each in containers] == [0] * len(containers)
