"""`ratestream run <service>`: what it cannot go on from is one line and exit code 1, so that
whatever runs it can start it again, or tell somebody."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ratestream.events import Origin, Quote
from ratestream.services import data_aggregator, data_processor
from ratestream.settings import Settings
from ratestream.streaming import App, OutgoingRecord, ProducerConfig
from ratestream.streaming.kafka import KafkaBroker, KafkaConfig
from ratestream.streaming.statefolder import StateFolder
from tests.support.kafka_servers import start_tansu
from tests.support.processes import ServiceProcess

TANSU = {  # it shows what aborted transactions wrote
    f"RATESTREAM_{service}__PROCESSING_GUARANTEE": "at_least_once"
    for service in ("DATA_PROCESSOR", "DATA_AGGREGATOR")
}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def kafka() -> Iterator[str]:
    with start_tansu() as address:
        yield address


def prepare(kafka: str, app: App, records: list[OutgoingRecord]) -> None:
    """Make the app's topics, with these records in them."""
    broker = KafkaBroker(KafkaConfig(bootstrap_servers=kafka))
    broker.create_topics(app.topic_specs())
    producer = broker.producer(ProducerConfig())
    producer.send(records)
    producer.flush()
    producer.close()
    broker.close()


def ending(service: ServiceProcess) -> str:
    """The last line of a service that ends by itself."""
    process = service.start().process
    assert process is not None
    try:
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()
    output = service.output()
    assert "Traceback" not in output
    return output.splitlines()[-1]


def test_an_agent_that_fails_ends_the_process(kafka: str, tmp_path: Path) -> None:
    app = data_aggregator.build(Settings())
    quote = Quote("USDRUB", "demo", Decimal(1), NOW, NOW, Origin("src-data", 0, 0))
    unreadable = [
        OutgoingRecord("data-aggregator-windows-changelog", b"USDRUB/demo", b"[", number)
        for number in range(8)
    ]
    prepare(kafka, app, [app.topics["processed-data"].encode("USDRUB", quote), *unreadable])
    line = ending(ServiceProcess("data_aggregator", kafka, tmp_path, TANSU))
    assert line.startswith("ratestream: agent average failed at processed-data[")
    assert "DecodeError" in line


def test_a_broker_without_real_transactions_ends_the_process(kafka: str, tmp_path: Path) -> None:
    line = ending(ServiceProcess("data_processor", kafka, tmp_path))
    assert "aborted transactions" in line
    assert "processing_guarantee" in line


def test_topics_that_are_missing_end_the_process(kafka: str, tmp_path: Path) -> None:
    variables = {"RATESTREAM_RUNTIME__CREATE_TOPICS": "false"}
    line = ending(ServiceProcess("data_processor", kafka, tmp_path, variables))
    assert line.startswith("ratestream: topics missing: ")
    assert "src-data" in line


def test_a_port_in_use_ends_the_process(kafka: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = ending(ServiceProcess("data_processor", kafka, tmp_path, port=port))
    assert line.startswith(f"ratestream: port {port} on 127.0.0.1 cannot be used")


def test_an_instance_too_many_on_one_data_folder_ends(kafka: str, tmp_path: Path) -> None:
    held = StateFolder(tmp_path / "state" / "data_aggregator", 1)
    variables = {"RATESTREAM_RUNTIME__MAX_INSTANCES": "1"}
    line = ending(ServiceProcess("data_aggregator", kafka, tmp_path, variables))
    held.close()
    assert "is shared by 1 instances already, and max_instances allows no more" in line


# `ratestream`, with an agent that never gets on.
STUCK = """
import asyncio, sys, time
from ratestream.cli import main
from ratestream.services import data_processor
from ratestream.streaming import App, worker

def build(settings):
    app = App("data_processor")

    @app.agent(app.topic("src-data", value_type=bytes))
    async def get_nowhere(stream):
        async for _ in stream:
            {stuck}

    return app

data_processor.build = build
worker._BLOCKED_SECONDS = 1.0
sys.argv = ["ratestream", *sys.argv[-2:]]
main()
"""


@pytest.mark.parametrize(
    ("stuck", "reason"),
    [
        (
            "await asyncio.Event().wait()",
            r"nothing committed for \d+ s against a lag \(progress_timeout=5.0\)",
        ),
        (
            "time.sleep(3600)",
            r"the event loop stands still, and nothing is done for \d+ s",
        ),
    ],
    ids=["waits", "stands still"],
)
def test_a_service_that_gets_nowhere_ends(
    kafka: str, tmp_path: Path, stuck: str, reason: str
) -> None:
    prepare(kafka, data_processor.build(Settings()), [OutgoingRecord("src-data", None, b"any")])
    variables = {"RATESTREAM_RUNTIME__PROGRESS_TIMEOUT": "5"}
    wrapper = (sys.executable, "-c", STUCK.format(stuck=stuck))
    line = ending(ServiceProcess("data_processor", kafka, tmp_path, variables, wrapper=wrapper))
    assert re.match(rf"ratestream: data_processor: {reason}", line), line


def test_the_health_check_asks_a_running_service(kafka: str, tmp_path: Path) -> None:
    prepare(kafka, data_processor.build(Settings()), [])
    service = ServiceProcess("data_processor", kafka, tmp_path, TANSU)
    service.start().wait_ready()
    command = [sys.executable, "-m", "ratestream.healthcheck", str(service.port)]
    healthy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert service.stop() == 0
    gone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (healthy.returncode, healthy.stdout) == (0, "")
    assert gone.returncode == 1
