"""data_processor: how much becomes quotes, and how much is refused."""

from __future__ import annotations

from deploy.grafana.promql import in_time_shown, of_service, per_minute, per_second, quantile
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "data_processor"
CHOSEN = of_service(SERVICE)
_READ = per_second("ratestream_records_in_total", where=f'{CHOSEN}, topic="src-data"')
_QUOTES = per_second("ratestream_records_out_total", where=f'{CHOSEN}, topic="processed-data"')

WORK = Row(
    "Does it keep up?",
    (
        Panel(
            title="Snapshots and quotes per second",
            shows="Snapshots read, and the quotes made of them.",
            normal="As many quotes a snapshot as its source has pairs.",
            otherwise="Snapshots but no quotes: all are refused.",
            runbook="dead-letters",
            width=8,
            unit="recps",
            no_data="data_processor is not there",
            queries=(Query(_READ, "snapshots"), Query(_QUOTES, "quotes")),
        ),
        Panel(
            title="Quotes of one snapshot",
            shows="Mean number of quotes that a snapshot gives.",
            normal="Steady: the number of pairs of the sources.",
            otherwise="Falling: a source leaves pairs out, or they are refused.",
            runbook="dead-letters",
            width=8,
            unit="short",
            no_data="Nothing was read",
            queries=(Query(f"{_QUOTES} / ({_READ} > 0)", "quotes per snapshot"),),
        ),
        Panel(
            title="Snapshots not read yet",
            shows="Lag on `src-data`, by instance.",
            normal="Close to 0.",
            otherwise="Growing: add an instance, up to one for each partition.",
            runbook="lag-growing",
            width=8,
            unit="short",
            no_data="data_processor has no partitions",
            queries=(
                Query(
                    f"sum by (instance) (ratestream_consumer_lag_records{{{CHOSEN}}})",
                    "{{instance}}",
                ),
            ),
        ),
    ),
)

REFUSED = Row(
    "What does it refuse?",
    (
        Panel(
            title="Dead letters in the time shown",
            shows="Whole snapshots and single rates put on `dead-letter`.",
            normal="0.",
            otherwise="`ratestream dead-letter list` shows each with its reason.",
            runbook="dead-letters",
            kind=Kind.NUMBER,
            width=6,
            unit="short",
            limits=Limits(warning=1),
            no_data="data_processor is not there",
            queries=(
                Query(in_time_shown("ratestream_dead_letters_total", where=CHOSEN), "dead letters"),
            ),
        ),
        Panel(
            title="Snapshots and rates refused per minute",
            shows="`rates` are single ones whose snapshot was used otherwise; `all` counts whole "
            "snapshots too.",
            normal="0.",
            otherwise="Rates: a source sends pairs or numbers that make no sense. Snapshots: its "
            "times are in the future, or it sends more pairs than allowed.",
            runbook="dead-letters",
            width=9,
            unit="cpm",
            no_data="data_processor is not there",
            queries=(
                Query(per_minute("ratestream_dead_letters_total", where=CHOSEN), "all"),
                Query(per_minute("ratestream_refused_rates_total", where=CHOSEN), "rates"),
            ),
        ),
        Panel(
            title="How long does a batch take?",
            shows="p99 of the time to check and split the records of one poll.",
            normal="Below 0.1 s.",
            otherwise="Above a second: very large snapshots, or the machine has too much to do.",
            runbook="lag-growing",
            width=9,
            unit="s",
            limits=Limits(warning=1),
            no_data="Nothing was read",
            queries=(
                Query(
                    quantile(0.99, "ratestream_batch_seconds", "instance", CHOSEN),
                    "{{instance}} p99",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-data-processor",
    "ratestream: data_processor",
    "How much becomes quotes, and how much is refused.",
    (WORK, REFUSED),
    (Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),),
)
