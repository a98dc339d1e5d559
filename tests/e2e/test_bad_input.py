"""Sources that answer nonsense, too much or nothing: each ends in the dead-letter topic or in a
counted failure, and the good ones go on."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ratestream.services import data_aggregator, data_processor, data_requester
from ratestream.settings import Settings
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester
from tests.support.http_site import Reply, Site, http_site

GOOD = Reply(b'{"rates": {"USDRUB": "27.8290", "EURRUB": "36.1"}}')
NONSENSE = Reply(
    json.dumps(
        {
            "rates": {
                "USDRUB": "NaN",
                "EURUSD": "-1.3",
                "GBPUSD": "9" * 400,
                "USDJPY": "1." + "1" * 400,
                "EURGBP": "0.7",
            }
        }
    ).encode()
)
LARGE = Reply(b'{"rates": {"USDRUB": "' + b"1" * 5_000_000 + b'"}}')
SITES = {
    "good": GOOD,
    "nonsense": NONSENSE,
    "html": Reply(b"<html><body>Checking your browser</body></html>"),
    "error": Reply(b"oops", status=500),
    "hanging": Reply(b'{"rates": {}}', hangs=True),
    "large": LARGE,
    "cut": Reply(b'{"rates": {"USDRUB": "27.8"', breaks=True),
    "empty": Reply(b""),
}


def settings(folder: Path, sites: dict[str, Site]) -> Settings:
    sources: list[dict[str, Any]] = [
        {
            "kind": "json",
            "name": name,
            "url": site.url,
            "keys": "pair",
            "interval_seconds": 0.2,
            # Only one is to be too late, however busy the machine is.
            "timeout_seconds": 1.0 if name == "hanging" else 30.0,
            "max_retries": 0,
            "max_response_bytes": 8_000_000 if name == "large" else 1_000_000,
        }
        for name, site in sites.items()
    ]
    names = ("data_requester", "data_processor", "data_aggregator")
    ports = {name: {"port": 0} for name in names}
    ports["data_requester"]["sources"] = sources  # type: ignore[assignment]
    return Settings.model_validate({"data_dir": folder, **ports})


async def run_with(folder: Path, enough: int) -> tuple[AppTester, AppTester, AppTester]:
    """The three services, ended, once there are `enough` averages of the good source."""
    async with AsyncExitStack() as stack:
        sites = {
            name: await stack.enter_async_context(http_site(reply)) for name, reply in SITES.items()
        }
        made = settings(folder, sites)
        broker = LocalBroker(None)
        stack.callback(broker.close)
        testers = [
            await stack.enter_async_context(AppTester(service.build(made), broker))
            for service in (data_aggregator, data_processor, data_requester)
        ]
        aggregator, processor, requester = testers
        async with asyncio.timeout(60):
            while sum(a.source == "good" for a in aggregator.received("aggregated-data")) < enough:
                await asyncio.sleep(0.1)
            while failures(requester).keys() < SITES.keys() - {"good", "nonsense"}:
                await asyncio.sleep(0.1)
        await processor.settle()
        check_dead_letters(processor)
        check_averages(aggregator)
        return aggregator, processor, requester


def failures(requester: AppTester) -> dict[str, str]:
    """Each failing source and the reason that was counted."""
    return {
        sample.labels["source"]: sample.labels["reason"]
        for metric in requester.app.registry.collect()
        for sample in metric.samples
        if sample.name == "ratestream_source_failures_total" and sample.value > 0
    }


def check_dead_letters(processor: AppTester) -> None:
    records = processor.records("dead-letter")
    reasons = {dict(record.headers)["reason"].decode() for record in records}
    for expected in ("USDRUB: value NaN", "EURUSD: value -1.3", "GBPUSD: value", "401 digits"):
        assert any(expected in reason for reason in reasons), expected
    for record in records:
        assert {"topic", "service", "reason"} <= dict(record.headers).keys()
    cut = [r for r in records if "max_message_bytes" in dict(r.headers)["reason"].decode()]
    assert cut, "the snapshot that src-data does not take"
    assert all(len(record.value or b"") < 100_000 for record in cut)


def check_averages(aggregator: AppTester) -> None:
    averages = aggregator.received("aggregated-data")
    assert {(a.source, a.pair) for a in averages} == {
        ("good", "USDRUB"),
        ("good", "EURRUB"),
        ("nonsense", "EURGBP"),
    }


def test_the_pipeline_goes_on_whatever_sources_answer(tmp_path: Path) -> None:
    aggregator, processor, requester = asyncio.run(run_with(tmp_path, enough=20))
    assert failures(requester).keys() == SITES.keys() - {"good", "nonsense"}
    for tester in (aggregator, processor, requester):
        assert tester.worker.state.value == "stopped"
