"""What `ratestream doctor` says of versions, and of transactions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing

import pytest

from ratestream import __version__
from ratestream.cli.builders import builders
from ratestream.operations.checks import services, transactions
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity
from ratestream.operations.topics import CreateTopics
from ratestream.settings import SERVICES, Settings
from ratestream.streaming import ConfigurationError
from ratestream.streaming.local import LocalBroker
from tests.support.http_site import Reply, http_site

WORKING_AT_LEAST_ONCE = {
    name: {"processing_guarantee": "at_least_once"}
    for name in ("data_processor", "data_aggregator")
}


class WithoutTransactions(LocalBroker):
    def require_transactions(self, probe: str, group: str, transactional_id: str) -> None:
        raise ConfigurationError(f"{probe} shows what was aborted")


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with closing(LocalBroker(None)) as broker:
        yield broker


def deployment(broker: LocalBroker, settings: Settings | None = None) -> Deployment:
    return Deployment(settings or Settings(), lambda: broker, builders())


def of_transactions(here: Deployment) -> Finding:
    (finding,) = transactions(here)
    assert finding.subject == "transactions"
    return finding


def test_a_broker_that_has_transactions_is_fine(broker: LocalBroker) -> None:
    here = deployment(broker)
    asyncio.run(CreateTopics().run(here))
    assert of_transactions(here).severity is Severity.OK


def test_a_broker_that_shows_what_was_aborted_is_wrong() -> None:
    with closing(WithoutTransactions(None)) as broker:
        here = deployment(broker)
        asyncio.run(CreateTopics().run(here))
        finding = of_transactions(here)
    assert finding.severity is Severity.WRONG
    assert finding.text == "transaction-probe shows what was aborted"


def test_transactions_are_not_tried_without_their_topic(broker: LocalBroker) -> None:
    finding = of_transactions(deployment(broker))
    assert finding.severity is Severity.SKIPPED
    assert finding.text == "cannot be tried: topic transaction-probe is missing"


def test_transactions_that_nobody_needs_are_not_tried() -> None:
    with closing(WithoutTransactions(None)) as broker:
        here = deployment(broker, Settings.model_validate(WORKING_AT_LEAST_ONCE))
        assert of_transactions(here).severity is Severity.OK


def health_of(service: str, answer: dict[str, object]) -> Finding:
    """What is said of a service that answers so at its `/health/ready`."""

    async def scenario() -> list[Finding]:
        async with http_site(Reply(json.dumps(answer).encode())) as site:
            with closing(LocalBroker(None)) as broker:
                return await services(deployment(broker), f"{site.url}/{{service}}")

    return asyncio.run(scenario())[SERVICES.index(service)]


@pytest.mark.parametrize(
    ("version", "severity", "text"),
    [
        ({"version": __version__}, Severity.OK, f"version {__version__}"),
        ({"version": "9.9"}, Severity.WARNING, f"version 9.9; this command is of {__version__}"),
        ({}, Severity.WARNING, f"version unknown; this command is of {__version__}"),
    ],
)
def test_a_service_of_another_version_is_told(
    version: dict[str, object], severity: Severity, text: str
) -> None:
    finding = health_of("db_loader", {"service": "db_loader", "reasons": [], **version})
    assert (finding.subject, finding.severity) == ("db_loader", severity)
    assert finding.text.startswith("is ready at ")
    assert finding.text.endswith(f", {text}")
