"""What the measurements run on: a Kafka and a folder for one benchmark, services as processes of
their own, and a reader of results."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import BenchmarkError
from ratestream.storage.embedded import EmbeddedPostgres
from tests.support.kafka_servers import start_kafka
from tests.support.processes import ServiceProcess

SESSION_TIMEOUT = 6.0
PARTITIONS = 8
PAIRS = ("EURAUD", "EURCAD", "EURCHF", "EURCZK", "EURGBP", "EURJPY", "EURSEK", "EURUSD")

_READ_RECORDS = 10_000
_ASK_SECONDS = 10.0
_LOOK_SECONDS = 0.2
_DELIVERY_SECONDS = 30.0


@contextmanager
def stage(console: Console) -> Iterator[tuple[str, Path, Progress]]:
    """Kafka's address, a folder and a progress bar. Nothing runs any more when this ends, whatever
    ends it."""
    with (
        tempfile.TemporaryDirectory(prefix="ratestream-benchmark-") as folder,
        start_kafka() as kafka,
        progress_bars(console) as progress,
    ):
        yield kafka.bootstrap, Path(folder), progress


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a Postgres that is as careful as ours in production: it waits for its disk."""
    with EmbeddedPostgres(folder / "postgres") as server:
        yield server.url


def progress_bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


class Reader:
    """Reads a topic from its end on, as its consumers do: committed records only."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "benchmark",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "log_level": 2,
            }
        )
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        for each in partitions:
            each.offset = self._end(each)
        self._consumer.assign(partitions)

    def _end(self, partition: TopicPartition) -> int:
        """Asked again for a while: a partition that is only just made has no leader yet."""
        deadline = time.monotonic() + _ASK_SECONDS
        while True:
            try:
                end: int = self._consumer.get_watermark_offsets(partition, _ASK_SECONDS)[1]
                return end
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"no end of {partition.topic}: {error}") from error
                time.sleep(_LOOK_SECONDS)

    def read(self, timeout: float) -> list[Message]:
        """What there is, after waiting at most `timeout` seconds for the first of it."""
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        messages = [first, *self._consumer.consume(_READ_RECORDS, 0)]
        for message in messages:
            if (error := message.error()) is not None:
                raise KafkaException(error)
        return messages

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def reading(bootstrap: str, topic: str) -> Iterator[Reader]:
    reader = Reader(bootstrap, topic)
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def producing(bootstrap: str, linger_ms: int = 0) -> Iterator[Producer]:
    """Raises `BenchmarkError` when Kafka did not get everything."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": linger_ms,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "log_level": 2,
        }
    )
    yield producer
    if left := producer.flush(_DELIVERY_SECONDS):
        raise BenchmarkError(f"{left} records were not written within {_DELIVERY_SECONDS} s")


def service(
    name: str, bootstrap: str, data_dir: Path, environment: dict[str, str]
) -> ServiceProcess:
    """Not started yet. Its log is JSON."""
    settings = {
        "RATESTREAM_RUNTIME__SESSION_TIMEOUT": str(SESSION_TIMEOUT),
        "RATESTREAM_TOPICS__PARTITIONS": str(PARTITIONS),
        "RATESTREAM_LOG__FORMAT": "json",
    }
    return ServiceProcess(name, bootstrap, data_dir, settings | environment)


@contextmanager
def running(*services: ServiceProcess) -> Iterator[None]:
    """Starts them. At the end they are asked to stop, and killed if anything went wrong."""
    try:
        for each in services:
            each.start()
        yield
        for each in services:
            each.stop()
    finally:
        for each in services:
            if each.process is not None:
                each.kill()


def wait_until(
    condition: Callable[[], bool], seconds: float, what: str, *services: ServiceProcess
) -> None:
    """Raises `BenchmarkError` after so long, or as soon as one of the services has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        for each in services:
            if each.process is not None and each.process.poll() is not None:
                raise BenchmarkError(f"{each.service} ended by itself: {each.output()}")
        if time.monotonic() > deadline:
            last = "".join(f"\n{each.output()}" for each in services)
            raise BenchmarkError(f"{what}: not within {seconds:.0f} s{last}")
        time.sleep(_LOOK_SECONDS)


def metric(service: ServiceProcess, name: str) -> float:
    """The sum over its labels; 0 while the service does not answer."""
    with suppress(OSError):
        with urllib.request.urlopen(f"{service.url}/metrics", timeout=_ASK_SECONDS) as answer:
            text = answer.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        )
    return 0.0


def is_ready(service: ServiceProcess) -> bool:
    return metric(service, "ratestream_ready") == 1
