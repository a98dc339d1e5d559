"""What a worker says about itself to Prometheus. Every app has a registry of its own, so that
several can share a process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ratestream.streaming.disk import Disk

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECORDS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


class WorkerMetrics:
    """The runtime's own metrics, registered in one app's registry. `folder` need not exist: what
    counts is the file system that it is or will be on."""

    def __init__(
        self, registry: CollectorRegistry, folder: Path, dead_letter: str | None = None
    ) -> None:
        self._dead_letter = dead_letter
        self.started = Gauge(
            "ratestream_start_timestamp_seconds",
            "When this service was last started, seconds since the epoch: it changes with every "
            "restart.",
            registry=registry,
        )
        self.ready = Gauge(
            "ratestream_ready", "1 while /health/ready answers 200.", registry=registry
        )
        self.disk_free = Gauge(
            "ratestream_disk_free_bytes",
            "Bytes that this service may still write to the file system of its data folder.",
            registry=registry,
        )
        self.disk_size = Gauge(
            "ratestream_disk_size_bytes",
            "Bytes that the file system of the data folder has in all.",
            registry=registry,
        )
        self.records_in = Counter(
            "ratestream_records_in", "Records read.", ["topic"], registry=registry
        )
        self.records_out = Counter(
            "ratestream_records_out",
            "Records sent and acknowledged, changelogs included.",
            ["topic"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "ratestream_dead_letters",
            "Records put on the dead-letter topic, whatever for.",
            registry=registry,
        )
        self.batch_size = Histogram(
            "ratestream_batch_size_records",
            "Records of one poll that returned any.",
            buckets=_RECORDS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "ratestream_batch_seconds",
            "Time the agents took for one polled batch.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "ratestream_commit_seconds",
            "Time from the first output sent to the state written.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.transactions = Counter(
            "ratestream_transactions",
            "Kafka transactions, by how they ended: one that failed is read and tried again.",
            ["result"],
            registry=registry,
        )
        self.setbacks = Counter(
            "ratestream_setbacks",
            "Times that what was not committed was dropped, to be read again.",
            registry=registry,
        )
        self.agent_errors = Counter(
            "ratestream_agent_errors",
            "Times an agent raised; its policy says what then.",
            ["agent"],
            registry=registry,
        )
        self.progress_age = Gauge(
            "ratestream_progress_age_seconds",
            "Seconds since the worker last committed, restored, or had nothing to do.",
            registry=registry,
        )
        self.last_commit = Gauge(
            "ratestream_last_commit_timestamp_seconds",
            "When progress was last committed, seconds since the epoch; 0 before the first time.",
            registry=registry,
        )
        self.lag = Gauge(
            "ratestream_consumer_lag_records",
            "Records of an assigned partition not yet read, or whose work is not committed.",
            ["topic", "partition"],
            registry=registry,
        )
        self.partitions = Gauge(
            "ratestream_assigned_partitions",
            "Partitions this instance has now.",
            registry=registry,
        )
        self.rebalances = Counter(
            "ratestream_rebalances",
            "Times partitions came or went.",
            ["kind"],
            registry=registry,
        )
        self.restored = Counter(
            "ratestream_restored_records",
            "Changelog records read to restore tables.",
            ["table"],
            registry=registry,
        )
        self.restoring = Gauge(
            "ratestream_restoring_partitions",
            "Table partitions being restored now.",
            registry=registry,
        )
        self.restore_remaining = Gauge(
            "ratestream_restore_remaining_records",
            "Changelog records still to be read, at most, by the tables being restored.",
            registry=registry,
        )
        self.rebuilt = Counter(
            "ratestream_table_rebuilds",
            "Times a partition of a table could not be trusted and was rebuilt from the changelog.",
            ["table"],
            registry=registry,
        )
        self.standby_lag = Gauge(
            "ratestream_standby_lag_records",
            "Changelog records that standby copies do not have yet, at most.",
            registry=registry,
        )
        self.table_bytes = Gauge(
            "ratestream_table_bytes",
            "Bytes a table takes on this instance's disk, as RocksDB estimates it.",
            ["table"],
            registry=registry,
        )
        self.table_entries = Gauge(
            "ratestream_table_entries",
            "Entries of a table on this instance, as RocksDB estimates it.",
            ["table"],
            registry=registry,
        )
        self.broker_up = Gauge(
            "ratestream_broker_up",
            "1 while the broker can be reached, or is not needed.",
            registry=registry,
        )
        self.retries = Counter(
            "ratestream_worker_retries",
            "Times the worker started over after the broker failed it.",
            registry=registry,
        )
        self.timer_skips = Counter(
            "ratestream_timer_skipped_ticks",
            "Ticks a timer left out because its last run took longer than its interval.",
            ["timer"],
            registry=registry,
        )
        self.started.set_to_current_time()
        disk = Disk(folder)
        self.disk_free.set_function(disk.free_bytes)
        self.disk_size.set_function(disk.size_bytes)
        for kind in ("assigned", "revoked", "lost"):
            self.rebalances.labels(kind)

    def expect(self, inputs: Iterable[str], outputs: Iterable[str], tables: Iterable[str]) -> None:
        """Show counters of these topics and tables from zero on: the increase of one that
        appears with its first event cannot be seen."""
        for topic in inputs:
            self.records_in.labels(topic)
        for topic in outputs:
            self.records_out.labels(topic)
        for table in tables:
            self.restored.labels(table)
            self.rebuilt.labels(table)

    def count_sent(self, by_topic: Mapping[str, int]) -> None:
        for topic, records in by_topic.items():
            self.records_out.labels(topic).inc(records)
            if topic == self._dead_letter:
                self.dead_letters.inc(records)
