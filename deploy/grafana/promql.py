"""The few forms of PromQL that the dashboards are made of.

Rates are over `$__rate_interval`, which Grafana keeps at four scrapes at least, and counts over
`$__range`, the time shown.
"""

from __future__ import annotations

from deploy.grafana.style import Query

SERVICES = (
    "demo_server",
    "data_requester",
    "data_processor",
    "data_aggregator",
    "db_loader",
    "api_gateway",
)


def total(expression: str, by: str = "") -> str:
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def per_second(counter: str, by: str = "", where: str = "") -> str:
    return total(f"rate({_selected(counter, where)}[$__rate_interval])", by)


def _selected(metric: str, where: str) -> str:
    return f"{metric}{{{where}}}" if where else metric


def per_minute(counter: str, by: str = "", where: str = "") -> str:
    return f"60 * {per_second(counter, by, where)}"


def in_time_shown(counter: str, by: str = "", where: str = "") -> str:
    return total(f"increase({_selected(counter, where)}[$__range])", by)


def quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    """Of what happened in the window; nothing, not NaN, of a series to which nothing did."""
    labels = f"le, {by}" if by else "le"
    buckets = per_second(f"{histogram}_bucket", labels, where)
    return f"histogram_quantile({share}, {buckets}) >= 0"


def median_and_p99(histogram: str, by: str = "", where: str = "") -> tuple[Query, Query]:
    """Named by the label `by`, when there is one."""
    name = f"{{{{{by}}}}} " if by else ""
    return (
        Query(quantile(0.5, histogram, by, where), f"{name}median"),
        Query(quantile(0.99, histogram, by, where), f"{name}p99"),
    )


def of_service(service: str) -> str:
    """A selector: the chosen instances of one service."""
    return f'service="{service}", instance=~"$instance"'
