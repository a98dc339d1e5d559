"""What a worker says about itself to Prometheus. Every app has a registry of its own, so that
several can share a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECORDS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)


class WorkerMetrics:
    """The runtime's own metrics, registered in one app's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.records_in = Counter(
            "ratestream_records_in", "Records read.", ["topic"], registry=registry
        )
        self.records_out = Counter(
            "ratestream_records_out",
            "Records sent and acknowledged, changelogs included.",
            ["topic"],
            registry=registry,
        )
        self.records_failed = Counter(
            "ratestream_records_failed",
            "Records read that ended in the dead-letter topic.",
            ["topic"],
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
        self.last_commit = Gauge(
            "ratestream_last_commit_timestamp_seconds",
            "When progress was last committed, seconds since the epoch.",
            registry=registry,
        )
        self.lag = Gauge(
            "ratestream_consumer_lag_records",
            "Records between the position and the end of an assigned partition.",
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
        self.table_bytes = Gauge(
            "ratestream_table_bytes",
            "Bytes a table takes on this instance's disk, as RocksDB estimates it.",
            ["table"],
            registry=registry,
        )
        self.broker_up = Gauge(
            "ratestream_broker_up", "1 while the broker can be reached.", registry=registry
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
