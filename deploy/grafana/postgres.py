"""Postgres: is it there, does it keep up, and how large does it grow."""

from __future__ import annotations

from deploy.grafana.promql import in_time_shown, median_and_p99, per_second, quantile
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row

STATE = Row(
    "Is it there?",
    (
        Panel(
            title="Reached by",
            shows="1 while Postgres answers the service, 0 while it does not.",
            normal="1 for db_loader and for api_gateway.",
            otherwise="db_loader keeps what it has and commits nothing; the API answers 503. Both "
            "go on by themselves when Postgres is back.",
            runbook="postgres-unreachable",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="Neither db_loader nor api_gateway is there",
            queries=(Query("min by (service) (ratestream_database_up)", "{{service}}"),),
        ),
        Panel(
            title="Database size",
            shows="What the database takes on Postgres' disk, indexes included.",
            normal="Grows until postgres.retention_days have passed, then stays.",
            otherwise="Give it a shorter retention or a larger disk.",
            runbook="disk-filling",
            kind=Kind.NUMBER,
            width=8,
            unit="bytes",
            no_data="db_loader cannot ask Postgres",
            queries=(Query("max(ratestream_database_size_bytes > 0)", "size"),),
        ),
        Panel(
            title="Connections",
            shows="Connections to the database, of everybody.",
            normal="Up to postgres.pool_size for each instance of db_loader and api_gateway, and "
            "a few of your own.",
            otherwise="Near Postgres' max_connections new ones are refused: lower "
            "postgres.pool_size.",
            runbook="postgres-unreachable",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            no_data="db_loader cannot ask Postgres",
            queries=(Query("max(ratestream_database_connections > 0)", "connections"),),
        ),
        Panel(
            title="How fast does the database grow?",
            shows="Its size over time.",
            normal="A straight line until retention begins, then flat.",
            otherwise="Steeper than before: more sources, pairs or polls.",
            runbook="disk-filling",
            width=24,
            unit="bytes",
            no_data="db_loader cannot ask Postgres",
            queries=(Query("max(ratestream_database_size_bytes > 0)", "size"),),
        ),
    ),
)

WRITES = Row(
    "Does it keep up?",
    (
        Panel(
            title="Rows written per second",
            shows="Rows that were new, by table.",
            normal="As many averages as quotes.",
            otherwise="0 while db_loader has lag: it waits for Postgres.",
            runbook="loader-behind",
            width=8,
            unit="rowsps",
            no_data="db_loader is not there",
            queries=(Query(per_second("ratestream_rows_written_total", "table"), "{{table}}"),),
        ),
        Panel(
            title="How long does a write take?",
            shows="Until a batch was committed, waiting for Postgres included.",
            normal="p99 below 0.3 s.",
            otherwise="Postgres is slow or away: look at its disk and at locks that others hold.",
            runbook="loader-behind",
            width=8,
            unit="s",
            limits=Limits(warning=1, critical=10),
            no_data="Nothing was written",
            queries=median_and_p99("ratestream_write_seconds", "table"),
        ),
        Panel(
            title="Rows in one transaction",
            shows="Size of the batches.",
            normal="Small when little arrives; up to db_loader.batch_max_rows under load.",
            otherwise="At the bound for minutes: db_loader works off a backlog.",
            runbook="loader-behind",
            width=8,
            unit="short",
            no_data="Nothing was written",
            queries=median_and_p99("ratestream_write_batch_rows", "table"),
        ),
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
            queries=(Query(quantile(0.99, "ratestream_delay_seconds", "table"), "{{table}} p99"),),
        ),
        Panel(
            title="Rows that were there already",
            shows="Rows of records read again, in the time shown; they are stored once.",
            normal="0, or some after a restart.",
            otherwise="Growing without restarts: look at rebalances and retries.",
            more="ratestream-runtime",
            width=8,
            kind=Kind.NUMBER,
            unit="short",
            no_data="db_loader is not there",
            queries=(Query(in_time_shown("ratestream_rows_repeated_total", "table"), "{{table}}"),),
        ),
        Panel(
            title="Rows deleted for their age",
            shows="In the time shown; db_loader looks for them every ten minutes.",
            normal="0 without postgres.retention_days; as many as arrive once it has passed.",
            otherwise="0 although rows are older: db_loader's log says why.",
            runbook="disk-filling",
            width=8,
            kind=Kind.NUMBER,
            unit="short",
            no_data="db_loader is not there",
            queries=(Query(in_time_shown("ratestream_rows_deleted_total"), "deleted"),),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-postgres",
    "ratestream: Postgres",
    "Is Postgres there, does it keep up, and how large does it grow; as ratestream sees it.",
    (STATE, WRITES),
)
