"""Sources: which of them answer, how old their rates are, and why one fails."""

from __future__ import annotations

from deploy.grafana.promql import median_and_p99, per_minute
from deploy.grafana.style import Dashboard, Kind, Limits, Panel, Query, Row, Variable

CHOSEN = 'source=~"$source"'
_SINCE = (
    f"(time() - max by (source) (ratestream_source_last_success_timestamp_seconds{{{CHOSEN}}}))"
)
_INTERVAL = f"max by (source) (ratestream_source_interval_seconds{{{CHOSEN}}})"
_FAILURES = per_minute("ratestream_source_failures_total", "source, reason", CHOSEN)

FRESH = Row(
    "Do they answer?",
    (
        Panel(
            title="Last answer",
            shows="When each source last gave rates.",
            normal="Within its interval.",
            otherwise="`56 years ago` is never since data_requester was started.",
            runbook="source-stale",
            kind=Kind.NUMBER,
            width=8,
            unit="dateTimeFromNow",
            no_data="No source is configured",
            queries=(
                Query(
                    "1000 * max by (source) "
                    f"(ratestream_source_last_success_timestamp_seconds{{{CHOSEN}}})",
                    "{{source}}",
                ),
            ),
        ),
        Panel(
            title="Intervals missed",
            shows="Time since the last answer, in intervals of the source.",
            normal="Below 1, or a little more while a retry is under way.",
            otherwise="From 3 on the rates served are stale: failures by reason say why.",
            runbook="source-stale",
            kind=Kind.NUMBER,
            width=8,
            unit="short",
            limits=Limits(warning=2, critical=3),
            no_data="No source is configured",
            queries=(Query(f"{_SINCE} / {_INTERVAL}", "{{source}}"),),
        ),
        Panel(
            title="Interval",
            shows="How often each source is asked, from the settings.",
            normal="What data_requester.sources says.",
            otherwise="Several instances with different settings show the longest.",
            kind=Kind.NUMBER,
            width=8,
            unit="s",
            no_data="No source is configured",
            queries=(Query(_INTERVAL, "{{source}}"),),
        ),
        Panel(
            title="How old are the rates?",
            shows="Now minus the time at which the source says that its newest rates held.",
            normal="Less than how often the source publishes: a day and a weekend for the ECB, "
            "many years for the replay of demo_server.",
            otherwise="Growing without end while answers arrive: the source repeats old rates.",
            runbook="rates-not-renewed",
            unit="s",
            no_data="No source has answered yet",
            queries=(
                Query(f"min by (source) (ratestream_source_age_seconds{{{CHOSEN}}})", "{{source}}"),
            ),
        ),
        Panel(
            title="Why do they fail?",
            shows="Polls per minute that gave nothing after all retries, by reason.",
            normal="0.",
            otherwise="`source_failed` in data_requester's log has the whole message.",
            runbook="source-failing",
            unit="cpm",
            no_data="No source was asked",
            queries=(
                Query(
                    f"({_FAILURES} > 0) or on (source) (0 * sum by (source) ({_FAILURES}))",
                    "{{source}} {{reason}}",
                ),
            ),
        ),
    ),
)

ASKING = Row(
    "How are they asked?",
    (
        Panel(
            title="Requests per minute",
            shows="How often each source was asked, retries included.",
            normal="60 seconds divided by its interval.",
            otherwise="More: answers fail and are asked for again. Less: the source asks to be "
            "left alone, or answers slower than its interval.",
            runbook="source-failing",
            width=8,
            unit="cpm",
            no_data="No source was asked",
            queries=(
                Query(
                    per_minute("ratestream_source_requests_total", "source", CHOSEN),
                    "{{source}}",
                ),
            ),
        ),
        Panel(
            title="How long do they take to answer?",
            shows="From the question to the whole answer, or to its failure.",
            normal="Below a second.",
            otherwise="Close to the source's timeout it will begin to fail.",
            runbook="source-failing",
            width=8,
            unit="s",
            limits=Limits(warning=2.5, critical=10),
            no_data="No source was asked",
            queries=median_and_p99("ratestream_source_request_seconds", "source", CHOSEN),
        ),
        Panel(
            title="Rates left out",
            shows="Rates per minute whose key names no known currency.",
            normal="Steady: a source that also has metals or crypto-currencies has some in every "
            "answer.",
            otherwise="A sudden rise means that the source has changed its format.",
            width=8,
            unit="cpm",
            no_data="No source has answered yet",
            queries=(
                Query(
                    per_minute("ratestream_source_skipped_rates_total", "source", CHOSEN),
                    "{{source}}",
                ),
            ),
        ),
    ),
)

BOARD = Dashboard(
    "ratestream-sources",
    "ratestream: Sources",
    "Which rate sources answer, how old their rates are, and why one fails.",
    (FRESH, ASKING),
    (Variable("source", "ratestream_source_requests_total"),),
)
