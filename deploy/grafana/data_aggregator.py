"""data_aggregator: is there an average for each quote, and is its state in order."""

from __future__ import annotations

from deploy.grafana.promql import median_and_p99, of_service, per_second
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "data_aggregator"
CHOSEN = of_service(SERVICE)

WORK = Row(
    "Is there an average for each quote?",
    (
        Panel(
            title="Quotes and averages per second",
            shows="Quotes read, averages sent, and windows written to the changelog.",
            normal="All three lines are one; after a backlog the changelog has fewer, because it "
            "has each key once a commit.",
            otherwise="Fewer averages than quotes: look for dead letters of this service.",
            runbook="dead-letters",
            width=12,
            unit="recps",
            no_data="data_aggregator is not there",
            queries=(
                Query(per_second("ratestream_records_in_total", "topic", CHOSEN), "{{topic}}"),
                Query(
                    per_second(
                        "ratestream_records_out_total",
                        "topic",
                        f'{CHOSEN}, topic!="dead-letter"',
                    ),
                    "{{topic}}",
                ),
            ),
        ),
        Panel(
            title="Quotes not read yet",
            shows="Lag on `processed-data`, by instance.",
            normal="Close to 0, shared evenly.",
            otherwise="Growing: add an instance, up to one for each partition.",
            runbook="lag-growing",
            width=12,
            unit="short",
            no_data="data_aggregator has no partitions",
            queries=(
                Query(
                    f"sum by (instance) (ratestream_consumer_lag_records{{{CHOSEN}}})",
                    "{{instance}}",
                ),
            ),
        ),
    ),
)

STATE = Row(
    "Is its state in order?",
    (
        Panel(
            title="Partitions",
            shows="Partitions whose windows each instance holds.",
            normal="8 in all with the default topics.partitions, shared evenly.",
            otherwise="Fewer in all: a rebalance is under way, or an instance is gone.",
            runbook="no-committed-progress",
            kind=Kind.NUMBER,
            width=12,
            unit="none",
            no_data="data_aggregator is not there",
            queries=(Query(f"ratestream_assigned_partitions{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            title="Partitions being restored",
            shows="Their averages wait until the windows are complete.",
            normal="0.",
            otherwise="For minutes: Kafka is slow, or the changelog was never compacted.",
            runbook="no-committed-progress",
            kind=Kind.NUMBER,
            width=12,
            unit="none",
            limits=Limits(warning=1),
            no_data="data_aggregator is not there",
            queries=(Query(f"ratestream_restoring_partitions{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            title="How large is the state?",
            shows="What the windows take on disk, as RocksDB estimates it; 0 until it has written "
            "a file.",
            normal="Grows with pairs and sources, not with time.",
            otherwise="Growing with time: a source invents pairs.",
            runbook="disk-filling",
            width=12,
            unit="bytes",
            no_data="data_aggregator has no partitions",
            queries=(Query(f"ratestream_table_bytes{{{CHOSEN}}}", "{{instance}} {{table}}"),),
        ),
        Panel(
            title="How long does a commit take?",
            shows="Averages, changelog and state, until all are written.",
            normal="Below 0.1 s.",
            otherwise="Kafka or the disk is slow.",
            runbook="no-committed-progress",
            width=12,
            unit="s",
            limits=Limits(warning=1, critical=10),
            no_data="Nothing was committed",
            queries=median_and_p99("ratestream_commit_seconds", where=CHOSEN),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-data-aggregator",
    "ratestream: data_aggregator",
    "Is there an average for each quote, and is its state in order.",
    (WORK, STATE),
    (Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),),
)
