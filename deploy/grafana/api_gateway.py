"""api_gateway: does it answer, how fast, and how much of the error budget is left."""

from __future__ import annotations

from deploy.grafana.promql import median_and_p99, of_service, per_second, quantile
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

SERVICE = "api_gateway"
CHOSEN = of_service(SERVICE)
ALLOWED_ERRORS = 0.001
"""1 - the objective that deploy/prometheus/alerts.yml holds: 99.9 %."""

_REQUESTS = "ratestream_http_request_seconds_count"
_ERRORS = f'{CHOSEN}, status=~"5.."'


def _share_of_errors(window: str) -> str:
    errors = f"sum(increase({_REQUESTS}{{{_ERRORS}}}[{window}])) or vector(0)"
    return f"({errors}) / (sum(increase({_REQUESTS}{{{CHOSEN}}}[{window}])) > 0)"


ANSWERS = Row(
    "Does it answer?",
    (
        Panel(
            title="Postgres",
            shows="1 while it answers the instance.",
            normal="1.",
            otherwise="The API answers 503 with Retry-After until Postgres is back.",
            runbook="postgres-unreachable",
            more="ratestream-postgres",
            kind=Kind.NUMBER,
            width=8,
            unit="none",
            limits=Limits(critical=1, low=True),
            no_data="api_gateway is not there",
            queries=(Query(f"ratestream_database_up{{{CHOSEN}}}", "{{instance}}"),),
        ),
        Panel(
            title="Answers without an error",
            shows="Share of the answers in the time shown that are no 5xx.",
            normal="99.9 % or more.",
            otherwise="Errors by route, below, say where.",
            runbook="api-error-budget-burning",
            kind=Kind.NUMBER,
            width=8,
            unit="percentunit",
            maximum=1,
            limits=Limits(warning=1 - ALLOWED_ERRORS, critical=0.99, low=True),
            no_data="Nobody asks the API",
            queries=(Query(f"1 - {_share_of_errors('$__range')}", "good"),),
        ),
        Panel(
            title="Error budget left",
            shows="Of the 0.1 % that may fail in 30 days, the share that has not failed yet. "
            "Prometheus must keep 30 days for it.",
            normal="Above a half.",
            otherwise="Below 0: more failed than the objective of 99.9 % allows.",
            runbook="api-error-budget-burning",
            kind=Kind.NUMBER,
            width=8,
            unit="percentunit",
            minimum=None,
            limits=Limits(warning=0.5, critical=0.1, low=True),
            no_data="Nobody asks the API",
            queries=(Query(f"1 - {_share_of_errors('30d')} / {ALLOWED_ERRORS}", "left"),),
        ),
        Panel(
            title="Requests per second by route",
            shows="All answers.",
            normal="What your users and the dashboard page ask for; the page asks every second.",
            otherwise="A sudden rise of one route: a client in a loop.",
            runbook="api-slow",
            unit="reqps",
            no_data="Nobody asks the API",
            queries=(Query(per_second(_REQUESTS, "route", CHOSEN), "{{route}}"),),
        ),
        Panel(
            title="Requests per second by status",
            shows="All answers.",
            normal="2xx and 304. 4xx are questions that make no sense.",
            otherwise="503: Postgres is away. 500: the log has the reason.",
            runbook="api-error-budget-burning",
            unit="reqps",
            no_data="Nobody asks the API",
            queries=(Query(per_second(_REQUESTS, "status", CHOSEN), "{{status}}"),),
        ),
    ),
)

SPEED = Row(
    "How fast?",
    (
        Panel(
            title="How long does an answer take?",
            shows="Over all routes.",
            normal="p99 below 0.1 s.",
            otherwise="Look at the routes beside it.",
            runbook="api-slow",
            width=8,
            unit="s",
            limits=Limits(warning=0.5, critical=2.5),
            no_data="Nobody asks the API",
            queries=median_and_p99("ratestream_http_request_seconds", where=CHOSEN),
        ),
        Panel(
            title="How long does each route take?",
            shows="p99 by route.",
            normal="Below 0.1 s; long histories take longer.",
            otherwise="One route: its question asks for much. All: Postgres or the machine.",
            runbook="api-slow",
            width=8,
            unit="s",
            limits=Limits(warning=0.5, critical=2.5),
            no_data="Nobody asks the API",
            queries=(
                Query(
                    quantile(0.99, "ratestream_http_request_seconds", "route", CHOSEN),
                    "{{route}}",
                ),
            ),
        ),
        Panel(
            title="Errors per second by route",
            shows="Answers with a 5xx.",
            normal="0.",
            otherwise="All routes: Postgres. One: a mistake in the program; the log has it.",
            runbook="api-error-budget-burning",
            width=8,
            unit="reqps",
            no_data="Nobody asks the API",
            queries=(
                Query(
                    f"({per_second(_REQUESTS, 'route', _ERRORS)})"
                    f" or (0 * {per_second(_REQUESTS, 'route', CHOSEN)})",
                    "{{route}}",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-api-gateway",
    "ratestream: api_gateway",
    "Does the API answer, how fast, and how much of its error budget is left.",
    (ANSWERS, SPEED),
    (Variable("instance", f'ratestream_start_timestamp_seconds{{service="{SERVICE}"}}'),),
)
