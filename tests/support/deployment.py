"""The six services as processes of their own on one Kafka and one Postgres, as in containers."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from ratestream.events import Snapshot
from ratestream.storage.embedded import EmbeddedPostgres
from ratestream.streaming.types import (
    Broker,
    ConsumerConfig,
    ProcessingGuarantee,
    Record,
    TopicPartition,
)
from tests.support.monitoring import wait_until
from tests.support.postgres import fetch
from tests.support.processes import ServiceProcess

Place = tuple[int, int, str]
"""Partition and offset on `src-data`, and pair: what a quote is known by."""

POLL_SECONDS = 0.5
CONTAINER_PORT = 8000


def free_network() -> str:
    """The beginning of loopback addresses, "127.0.10", whose `CONTAINER_PORT` nobody uses."""
    for number in range(10, 256):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((f"127.0.{number}.1", CONTAINER_PORT))
            except OSError:
                continue
        return f"127.0.{number}"
    raise RuntimeError(f"port {CONTAINER_PORT} is in use on every network tried")


@dataclass
class Deployment:
    """What runs. `instances` of a service may be several; `guarantee` is what this broker can
    keep."""

    bootstrap: str
    broker: Broker
    postgres: EmbeddedPostgres
    folder: Path
    guarantee: ProcessingGuarantee = "exactly_once"
    instances: dict[str, list[ServiceProcess]] = field(default_factory=dict)

    def __getitem__(self, service: str) -> ServiceProcess:
        """Its first instance."""
        return self.instances[service][0]

    def add(self, service: str, host: str, port: int = CONTAINER_PORT) -> ServiceProcess:
        """One more instance, not yet started."""
        made = self.instances.setdefault(service, [])
        made.append(
            ServiceProcess(
                service,
                self.bootstrap,
                self.folder / f"{service}-{len(made)}",
                self._environment(),
                port,
                host,
            )
        )
        return made[-1]

    def addresses(self) -> dict[str, list[str]]:
        """host:port of every instance, by service."""
        return {
            service: [f"{each.host}:{each.port}" for each in instances]
            for service, instances in self.instances.items()
        }

    def start(self) -> None:
        for each in self.everything():
            each.start()
        self.wait_ready()

    def wait_ready(self) -> None:
        for each in self.everything():
            each.wait_ready()

    def stop(self) -> None:
        for each in self.everything():
            if each.process is not None and each.process.poll() is None:
                each.kill()

    def everything(self) -> list[ServiceProcess]:
        return [each for instances in self.instances.values() for each in instances]

    def reasons(self, service: str) -> list[str]:
        """Why it says that it is not ready; empty when it is."""
        answer = httpx.get(f"{self[service].url}/health/ready", timeout=10)
        reasons: list[str] = answer.json()["reasons"]
        assert (answer.status_code == 200) is (not reasons)
        return reasons

    def wait_nothing_is_lost(self) -> None:
        """Until every rate that is on `src-data` now is stored, as a quote and as an average."""
        sent = self._sent()

        def missing() -> set[tuple[str, Place]]:
            tables = ("quotes", "averages")
            return {(table, place) for table in tables for place in sent - self._stored(table)}

        wait_until(
            lambda: not missing(), lambda: f"{len(missing())} not stored, from {min(missing())} on"
        )

    def requests(self) -> int:
        """How often data_requester has asked its sources since it was started."""
        return int(self._counted("ratestream_source_requests_total"))

    def wait_every_answer_was_sent(self) -> None:
        """Until what data_requester was answered since it was started is on `src-data`. For when
        no source answers any more; each question is asked once."""

        def answers() -> int:
            return self.requests() - int(self._counted("ratestream_source_failures_total"))

        def snapshots() -> int:
            started = self._counted("ratestream_start_timestamp_seconds")
            found = {
                (snapshot.source, snapshot.received_at)
                for snapshot in map(_snapshot, self._records("src-data"))
                if snapshot is not None and snapshot.received_at.timestamp() >= started
            }
            return len(found)

        wait_until(
            lambda: answers() == snapshots(),
            lambda: f"{answers()} answers, and {snapshots()} of them are on src-data",
        )

    def _counted(self, metric: str) -> float:
        """The sum of a metric of data_requester."""
        text = httpx.get(f"{self['data_requester'].url}/metrics", timeout=10).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == metric
        )

    def _sent(self) -> set[Place]:
        return {
            (record.partition, record.offset, pair)
            for record in self._records("src-data")
            for pair in _pairs(record)
        }

    def _records(self, topic: str) -> list[Record]:
        partitions = self.broker.describe_topics([topic])[topic].partitions
        records: list[Record] = []
        with closing(self.broker.consumer(ConsumerConfig())) as consumer:
            consumer.assign({TopicPartition(topic, number): 0 for number in range(partitions)})
            ends = {
                TopicPartition(topic, number): consumer.watermarks(TopicPartition(topic, number))[1]
                for number in range(partitions)
            }
            while any((consumer.position(each) or 0) < end for each, end in ends.items()):
                records += consumer.poll(10_000, 0.1)
        return records

    def _stored(self, table: str) -> set[Place]:
        query = f"SELECT origin_partition, origin_offset, pair FROM {table}"
        rows = asyncio.run(fetch(self.postgres.url, query))
        return {(row[0], row[1], row[2]) for row in rows}

    def _environment(self) -> dict[str, str]:
        demo = self.instances.get("demo_server")
        url = demo[0].url if demo else ""
        source = {"kind": "demo", "url": url, "interval_seconds": POLL_SECONDS, "max_retries": 0}
        return {
            "RATESTREAM_POSTGRES__URL": self.postgres.url,
            "RATESTREAM_RUNTIME__RETRY_BACKOFF_MAX": "1",
            "RATESTREAM_RUNTIME__BATCH_MAX_RECORDS": "100",
            "RATESTREAM_DATA_PROCESSOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_DATA_AGGREGATOR__PROCESSING_GUARANTEE": self.guarantee,
            "RATESTREAM_DEMO_SERVER__MODE": "walk",
            "RATESTREAM_DEMO_SERVER__TICK_SECONDS": str(POLL_SECONDS),
            **({"RATESTREAM_DATA_REQUESTER__SOURCES": json.dumps([source])} if demo else {}),
        }


def _pairs(record: Record) -> list[str]:
    snapshot = _snapshot(record)
    return [] if snapshot is None else list(snapshot.rates)


def _snapshot(record: Record) -> Snapshot | None:
    """None of what cannot be read."""
    try:
        return msgspec.json.decode(record.value or b"", type=Snapshot)
    except msgspec.MsgspecError:
        return None
