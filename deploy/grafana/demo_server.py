"""demo_server: is the demonstration source there, and do those who ask it get answers."""

from __future__ import annotations

from deploy.grafana.promql import median_and_p99, of_service, per_minute
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "demo_server"
CHOSEN = of_service(SERVICE)
SOURCE = 'source=~"$source"'

ANSWERS = Row(
    "Does it answer?",
    (
        Panel(
            title="Instances up",
            shows="Instances that Prometheus can ask.",
            normal="1. It is a toy: a deployment with real sources does without it.",
            otherwise="Every source of kind `demo` fails.",
            runbook="service-down",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="demo_server is not there",
            queries=(Query(f'sum(up{{job="ratestream", service="{SERVICE}"}})', "up"),),
        ),
        Panel(
            title="Up for",
            shows="Time since it was last started. The rates begin anew with every start.",
            normal="Since you started it.",
            otherwise="Less: it was started again.",
            runbook="service-restarting",
            kind=Kind.NUMBER,
            width=8,
            unit="s",
            no_data="demo_server is not there",
            queries=(
                Query(f"time() - ratestream_start_timestamp_seconds{{{CHOSEN}}}", "{{instance}}"),
            ),
        ),
        Panel(
            title="Memory",
            shows="Resident memory, when it runs as a process of its own.",
            normal="Steady.",
            otherwise="Growing for hours: the container will be killed at its limit.",
            runbook="service-restarting",
            kind=Kind.NUMBER,
            width=8,
            unit="bytes",
            no_data="It does not run as a process of its own on Linux",
            queries=(
                Query(
                    f'process_resident_memory_bytes{{job="ratestream", {CHOSEN}}}', "{{instance}}"
                ),
            ),
        ),
        Panel(
            title="How often is it asked?",
            shows="Requests per minute, as data_requester counts them. Choose the sources of kind "
            "`demo` above.",
            normal="60 seconds divided by the source's interval.",
            otherwise="0: no source has its address.",
            runbook="source-failing",
            more="ratestream-sources",
            unit="cpm",
            no_data="data_requester asks no source",
            queries=(
                Query(
                    per_minute("ratestream_source_requests_total", "source", SOURCE), "{{source}}"
                ),
            ),
        ),
        Panel(
            title="How long does it take to answer?",
            shows="As data_requester sees it.",
            normal="A few milliseconds.",
            otherwise="The machine has too much to do.",
            runbook="source-failing",
            more="ratestream-sources",
            unit="s",
            limits=Limits(warning=1),
            no_data="data_requester asks no source",
            queries=median_and_p99("ratestream_source_request_seconds", "source", SOURCE),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-demo-server",
    "ratestream: demo_server",
    "Is the demonstration source there, and do those who ask it get answers.",
    (ANSWERS,),
    (
        Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),
        Variable("source", "ratestream_source_requests_total"),
    ),
)
