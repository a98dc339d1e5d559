"""db_loader: is everything stored, how late, and what holds it up."""

from __future__ import annotations

from deploy.grafana.promql import in_time_shown, median_and_p99, of_service, per_second
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "db_loader"
CHOSEN = of_service(SERVICE)
_LATE = per_second("ratestream_delay_seconds_bucket", where=f'{CHOSEN}, le="10.0"')
_ALL = per_second("ratestream_delay_seconds_count", where=CHOSEN)

STORED = Row(
    "Is everything stored?",
    (
        Panel(
            title="Postgres",
            shows="1 while it answers the instance.",
            normal="1.",
            otherwise="It keeps its batch, commits nothing, and goes on when Postgres is back.",
            runbook="postgres-unreachable",
            more="ratestream-postgres",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="db_loader is not there",
            queries=(Query(f"ratestream_database_up{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            title="Records not stored yet",
            shows="Lag over both topics.",
            normal="Close to 0.",
            otherwise="Growing: Postgres is slow or away, or there is more than one instance can "
            "write.",
            runbook="loader-behind",
            kind=Kind.NUMBER,
            width=8,
            unit="short",
            no_data="db_loader has no partitions",
            queries=(Query(f"sum(ratestream_consumer_lag_records{{{CHOSEN}}})", "records"),),
        ),
        Panel(
            title="Dead letters in the time shown",
            shows="Records that Postgres can never store.",
            normal="0.",
            otherwise="`ratestream dead-letter list` shows each with its reason.",
            runbook="dead-letters",
            kind=Kind.NUMBER,
            width=8,
            unit="short",
            limits=Limits(warning=1),
            no_data="db_loader is not there",
            queries=(
                Query(in_time_shown("ratestream_dead_letters_total", where=CHOSEN), "dead letters"),
            ),
        ),
        Panel(
            title="Rows stored per second",
            shows="New rows by table.",
            normal="As many averages as quotes, over minutes.",
            otherwise="0 with lag: it waits for Postgres.",
            runbook="loader-behind",
            unit="rowsps",
            no_data="db_loader is not there",
            queries=(
                Query(per_second("ratestream_rows_written_total", "table", CHOSEN), "{{table}}"),
            ),
        ),
        Panel(
            title="Lag by topic",
            shows="Records of each topic that are not stored yet.",
            normal="Close to 0, and back there soon after a burst.",
            otherwise="Both growing: Postgres. One: the other has less to do.",
            runbook="loader-behind",
            unit="short",
            no_data="db_loader has no partitions",
            queries=(
                Query(f"sum by (topic) (ratestream_consumer_lag_records{{{CHOSEN}}})", "{{topic}}"),
            ),
        ),
    ),
)

LATE = Row(
    "How late, and why?",
    (
        Panel(
            title="How long until a row is stored?",
            shows="From the receipt of a quote to the commit of its row; of batches that are all "
            "new.",
            normal="Below a second.",
            otherwise="Compare it with the write time: if that is low, an earlier service is "
            "behind.",
            runbook="loader-behind",
            width=8,
            unit="s",
            limits=Limits(warning=10, critical=60),
            no_data="Nothing new was stored",
            queries=median_and_p99("ratestream_delay_seconds", where=CHOSEN),
        ),
        Panel(
            title="Share of rows stored late",
            shows="Rows stored more than 10 seconds after the receipt of their quote.",
            normal="0.",
            otherwise="Above 5 % the alert LoaderBehind fires.",
            runbook="loader-behind",
            width=8,
            unit="percentunit",
            maximum=1,
            limits=Limits(warning=0.05),
            no_data="Nothing new was stored",
            queries=(Query(f"1 - {_LATE} / ({_ALL} > 0)", "late"),),
        ),
        Panel(
            title="How long does a write take?",
            shows="Until a batch was committed, waiting for Postgres included.",
            normal="p99 below 0.3 s.",
            otherwise="Postgres is slow or away.",
            runbook="loader-behind",
            more="ratestream-postgres",
            width=8,
            unit="s",
            limits=Limits(warning=1, critical=10),
            no_data="Nothing was written",
            queries=median_and_p99("ratestream_write_seconds", where=CHOSEN),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-db-loader",
    "ratestream: db_loader",
    "Is everything stored, how late, and what holds it up.",
    (STORED, LATE),
    (Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),),
)
