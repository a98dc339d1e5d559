"""Overview: is it right, is it fast, is it fresh, and what fires now."""

from __future__ import annotations

from deploy.grafana.promql import (
    SERVICES,
    in_time_shown,
    median_and_p99,
    per_minute,
    per_second,
)
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row

_NONE_UP = " or ".join(
    f'label_replace(vector(0), "service", "{service}", "", "")' for service in SERVICES
)
_FIRING = (
    'sort_desc((time() - ALERTS_FOR_STATE) and ignoring (alertstate) ALERTS{alertstate="firing"})'
)

NOW = Row(
    "What is wrong now",
    (
        Panel(
            title="Alerts that fire",
            shows="How many of the rules in deploy/prometheus/alerts.yml fire.",
            normal="0.",
            otherwise="The list beside it names them; each has a runbook of its name.",
            kind=Kind.NUMBER,
            width=4,
            unit="none",
            limits=Limits(critical=1),
            no_data="Prometheus does not answer",
            queries=(Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),),
        ),
        Panel(
            title="Services up",
            shows="Instances of each service that Prometheus can ask.",
            normal="At least 1 of each; as many as were scaled to.",
            otherwise="At 0 nobody does this service's work: look at its container's state and "
            "log.",
            runbook="service-down",
            kind=Kind.NUMBER,
            width=20,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="Prometheus does not answer",
            queries=(
                Query(
                    f'sum by (service) (up{{job="ratestream"}}) or on (service) ({_NONE_UP})',
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            title="Which alerts fire, and for how long?",
            shows="Firing alerts, the oldest first, since their condition became true.",
            normal="Empty.",
            otherwise="SourceStale is explained in docs/runbooks/source-stale.md, and so on. "
            "`critical` wakes someone, `warning` can wait for the morning.",
            kind=Kind.TABLE,
            width=24,
            unit="s",
            hidden_columns=("__name__", "job"),
            no_data="No alert fires",
            queries=(Query(_FIRING, "for"),),
        ),
    ),
)

RIGHT = Row(
    "Is it right?",
    (
        Panel(
            title="Dead letters in the time shown",
            shows="Records that a service could not use and put on the topic `dead-letter`.",
            normal="0.",
            otherwise="`ratestream dead-letter list` shows each with its reason; nothing is lost.",
            runbook="dead-letters",
            more="ratestream-data-processor",
            kind=Kind.NUMBER,
            width=6,
            unit="short",
            limits=Limits(warning=1),
            no_data="No service reads records",
            queries=(Query(in_time_shown("ratestream_dead_letters_total"), "dead letters"),),
        ),
        Panel(
            title="Which service refuses records?",
            shows="Records per minute that ended in `dead-letter`, by the service that put "
            "them there.",
            normal="0.",
            otherwise="data_processor: a source sends something new. Another service: something "
            "else writes to its topic, or two versions of ratestream run at once.",
            runbook="dead-letters",
            more="ratestream-data-processor",
            width=9,
            unit="cpm",
            no_data="No service reads records",
            queries=(Query(per_minute("ratestream_dead_letters_total", "service"), "{{service}}"),),
        ),
        Panel(
            title="Refused rates and repeated rows",
            shows="Single rates refused per minute, while the rest of their snapshot was used; "
            "and rows per minute that were in Postgres before.",
            normal="0. Repeated rows appear for a moment after a restart or rebalance and are "
            "stored once.",
            otherwise="Refused rates: `ratestream dead-letter list` has the reasons. Repeated rows "
            "for minutes: look at rebalances and retries.",
            runbook="dead-letters",
            more="ratestream-runtime",
            width=9,
            unit="cpm",
            no_data="data_processor or db_loader is not there",
            queries=(
                Query(per_minute("ratestream_refused_rates_total"), "refused rates"),
                Query(per_minute("ratestream_rows_repeated_total"), "repeated rows"),
            ),
        ),
    ),
)

FAST = Row(
    "Is it fast?",
    (
        Panel(
            title="Records read per second",
            shows="What each service reads from Kafka.",
            normal="As steady as the sources. db_loader reads quotes and averages: twice what "
            "data_aggregator reads.",
            otherwise="One service at 0 while the one before it is not: look at its lag.",
            runbook="no-committed-progress",
            more="ratestream-runtime",
            width=8,
            unit="recps",
            no_data="No service reads records",
            queries=(Query(per_second("ratestream_records_in_total", "service"), "{{service}}"),),
        ),
        Panel(
            title="How long until a quote is stored?",
            shows="From the receipt of a quote to its commit in Postgres.",
            normal="Well below a second. Higher for as long as a backlog is worked off.",
            otherwise="Look at the lag of db_loader and at the write time of Postgres.",
            runbook="loader-behind",
            more="ratestream-db-loader",
            width=8,
            unit="s",
            limits=Limits(warning=10, critical=60),
            no_data="Nothing new was stored",
            queries=median_and_p99("ratestream_delay_seconds", where='table="quotes"'),
        ),
        Panel(
            title="How long does the API take?",
            shows="Time to answer, over all routes and statuses.",
            normal="p99 below 0.1 s.",
            otherwise="Look at the routes on the dashboard api_gateway, and at Postgres.",
            runbook="api-slow",
            more="ratestream-api-gateway",
            width=8,
            unit="s",
            limits=Limits(warning=0.5, critical=2.5),
            no_data="Nobody asks the API",
            queries=median_and_p99("ratestream_http_request_seconds"),
        ),
    ),
)

FRESH = Row(
    "Is it fresh?",
    (
        Panel(
            title="Time since each source last answered",
            shows="How long ago a source last gave rates; over 30 years means never.",
            normal="Up to the source's interval.",
            otherwise="The dashboard Sources says why it fails.",
            runbook="source-stale",
            more="ratestream-sources",
            kind=Kind.NUMBER,
            width=8,
            unit="s",
            no_data="No source is configured",
            queries=(
                Query(
                    "time() - max by (source) (ratestream_source_last_success_timestamp_seconds)",
                    "{{source}}",
                ),
            ),
        ),
        Panel(
            title="Time since the last commit",
            shows="How long ago each service that reads from Kafka last committed its progress.",
            normal="As long as the interval of the busiest source: without records there is "
            "nothing to commit.",
            otherwise="With lag, it does not get on.",
            runbook="no-committed-progress",
            more="ratestream-runtime",
            width=8,
            unit="s",
            no_data="No service has committed anything",
            queries=(
                Query(
                    "time() - max by (service) (ratestream_last_commit_timestamp_seconds > 0)",
                    "{{service}}",
                ),
            ),
        ),
        Panel(
            title="Records not read yet",
            shows="Lag of each service, over all topics and partitions.",
            normal="Close to 0, and back there soon after a burst.",
            otherwise="Growing: more arrives than is worked off, or the service stands still.",
            runbook="lag-growing",
            more="ratestream-runtime",
            width=8,
            unit="short",
            no_data="No service reads records",
            queries=(Query("sum by (service) (ratestream_consumer_lag_records)", "{{service}}"),),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-overview",
    "ratestream: Overview",
    "Is it right, is it fast, is it fresh, and what fires now. The place to begin.",
    (NOW, RIGHT, FAST, FRESH),
)
