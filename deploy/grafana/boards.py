"""All dashboards, in the order in which docs/dashboards.md has them."""

from __future__ import annotations

from deploy.grafana import (
    api_gateway,
    data_aggregator,
    data_processor,
    data_requester,
    db_loader,
    demo_server,
    overview,
    postgres,
    runtime,
    sources,
)

BOARDS = tuple(
    module.BOARD
    for module in (
        overview,
        sources,
        runtime,
        postgres,
        demo_server,
        data_requester,
        data_processor,
        data_aggregator,
        db_loader,
        api_gateway,
    )
)
