"""data_requester: who asks the sources, and does what they answer reach Kafka."""

from __future__ import annotations

from deploy.grafana.promql import of_service, per_minute, total
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "data_requester"
CHOSEN = of_service(SERVICE)
_LAST_SUCCESS = "max by (source) (ratestream_source_last_success_timestamp_seconds)"
_INTERVAL = "max by (source) (ratestream_source_interval_seconds)"

ASKING = Row(
    "Who asks?",
    (
        Panel(
            title="Instances with partitions",
            shows="Partitions of `src-data` given to each instance. The one with partition 0 asks "
            "the sources, the others stand by.",
            normal="All partitions shared among the instances.",
            otherwise="0 for all: nobody asks. Kafka is away, or a rebalance is under way.",
            runbook="broker-unreachable",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            no_data="data_requester is not there",
            queries=(Query(f"ratestream_assigned_partitions{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            title="Sources that answer",
            shows="Sources that answered within three of their intervals, and those configured.",
            normal="Both numbers are the same.",
            otherwise="The dashboard Sources names the one that fails.",
            runbook="source-stale",
            more="ratestream-sources",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            no_data="No source is configured",
            queries=(
                Query(
                    f"sum(time() - {_LAST_SUCCESS} < bool 3 * {_INTERVAL})",
                    "answer",
                ),
                Query(f"count({_INTERVAL})", "configured"),
            ),
        ),
        Panel(
            title="Dead letters in the time shown",
            shows="Answers too large for `src-data`, of which the beginning was put on "
            "`dead-letter`.",
            normal="0.",
            otherwise="Raise topics.max_message_bytes, on the topic too.",
            runbook="dead-letters",
            kind=Kind.NUMBER,
            width=8,
            unit="short",
            limits=Limits(warning=1),
            no_data="data_requester is not there",
            queries=(
                Query(
                    total(f"increase(ratestream_dead_letters_total{{{CHOSEN}}}[$__range])"),
                    "dead letters",
                ),
            ),
        ),
    ),
)

SENDING = Row(
    "Do answers reach Kafka?",
    (
        Panel(
            title="Snapshots per minute",
            shows="Answers put on `src-data` and acknowledged.",
            normal="As many as polls: 60 seconds divided by the interval, of each source.",
            otherwise="0 while sources answer: Kafka does not acknowledge.",
            runbook="broker-unreachable",
            width=8,
            unit="cpm",
            no_data="data_requester is not there",
            queries=(
                Query(
                    per_minute("ratestream_records_out_total", where=f'{CHOSEN}, topic="src-data"'),
                    "snapshots",
                ),
            ),
        ),
        Panel(
            title="Failed polls per minute",
            shows="Polls that gave nothing after all retries.",
            normal="0.",
            otherwise="The dashboard Sources has the reasons.",
            runbook="source-failing",
            more="ratestream-sources",
            width=8,
            unit="cpm",
            no_data="No source is configured",
            queries=(
                Query(per_minute("ratestream_source_failures_total", "source"), "{{source}}"),
            ),
        ),
        Panel(
            title="Polls left out per minute",
            shows="Ticks of a source's timer while the poll before it was not done.",
            normal="0.",
            otherwise="The source answers slower than its interval, or Kafka takes long.",
            runbook="source-failing",
            width=8,
            unit="cpm",
            no_data="No source is configured",
            queries=(
                Query(
                    per_minute("ratestream_timer_skipped_ticks_total", "timer", CHOSEN),
                    "{{timer}}",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-data-requester",
    "ratestream: data_requester",
    "Who asks the sources, and does what they answer reach Kafka.",
    (ASKING, SENDING),
    (Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),),
)
