"""`ratestream doctor`: a check for everything that a deployment stands on.

Each check is an operation of its own, so that they run side by side. Only those that ask Kafka or
Postgres wait until it is known that these answer, and otherwise say where to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import assert_never

import msgspec

from ratestream.operations import checks
from ratestream.operations.advice import advice
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity
from ratestream.operations.lag import check_lag
from ratestream.operations.topics import CheckTopics
from ratestream.settings import SettingsError
from ratestream.storage.errors import StorageError
from ratestream.streaming import StreamingError

CHECK_SECONDS = 45.0
"""After which a check is given up. Each question within it has a shorter bound of its own."""


class Check(Enum):
    """What there is to check, in the order in which it is told."""

    KAFKA = "kafka"
    TOPICS = "topics"
    TRANSACTIONS = "transactions"
    LAG = "lag"
    DEAD_LETTERS = "dead letters"
    POSTGRES = "postgres"
    CLUSTER = "cluster"
    CLOCKS = "clocks"
    DISK = "disk"
    SERVICES = "services"
    CERTIFICATES = "certificates"
    SOURCES = "sources"


NEEDS = {
    Check.TOPICS: (Check.KAFKA,),
    Check.TRANSACTIONS: (Check.KAFKA,),
    Check.LAG: (Check.KAFKA,),
    Check.DEAD_LETTERS: (Check.KAFKA,),
    Check.CLUSTER: (Check.KAFKA, Check.POSTGRES),
    Check.CLOCKS: (Check.KAFKA, Check.POSTGRES),
}
"""What has to answer before a check can look."""


class RunCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """One check. `address` is where services answer, with `{service}` for the name, if not where
    the settings say."""

    check: Check
    address: str | None = None

    async def run(self, deployment: Deployment) -> list[Finding]:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await self._findings(deployment)
        except TimeoutError:
            text, what_to_do = f"gave no result within {CHECK_SECONDS:g} s", "try again"
        except (SettingsError, StreamingError, StorageError) as error:
            text, what_to_do = str(error), advice(error, deployment)
        if self.check in (Check.KAFKA, Check.POSTGRES):
            return [Finding(self.check.value, Severity.WRONG, text, what_to_do)]
        return [Finding(self.check.value, Severity.SKIPPED, f"cannot be looked at: {text}")]

    async def _findings(self, deployment: Deployment) -> list[Finding]:
        match self.check:
            case Check.KAFKA:
                return await asyncio.to_thread(checks.kafka, deployment)
            case Check.TOPICS:
                return await CheckTopics().run(deployment)
            case Check.TRANSACTIONS:
                return await asyncio.to_thread(checks.transactions, deployment)
            case Check.LAG:
                return await asyncio.to_thread(check_lag, deployment)
            case Check.DEAD_LETTERS:
                return await checks.dead_letters(deployment)
            case Check.POSTGRES:
                return await checks.postgres(deployment)
            case Check.CLUSTER:
                return await checks.cluster(deployment)
            case Check.CLOCKS:
                return await checks.clocks(deployment)
            case Check.DISK:
                return checks.disk(deployment)
            case Check.SERVICES:
                return await checks.services(deployment, self.address)
            case Check.CERTIFICATES:
                return await checks.certificates(deployment)
            case Check.SOURCES:
                return await checks.sources(deployment)
        assert_never(self.check)


async def diagnose(
    wanted: Iterable[RunCheck], perform: Callable[[RunCheck], Awaitable[list[Finding]]]
) -> list[Finding]:
    """All findings, in the order wanted. What needs Kafka or Postgres is skipped, with a word on
    where to look, when these are wanted and do not answer. Raises what `perform` does."""
    tasks: dict[Check, asyncio.Task[list[Finding]]] = {}

    async def findings(check: RunCheck) -> list[Finding]:
        away = []
        for need in NEEDS.get(check.check, ()):
            if need in tasks and not _answers(need, await tasks[need]):
                away.append(need.value)
        if away:
            return [Finding(check.check.value, Severity.SKIPPED, f"see {' and '.join(away)}")]
        return await perform(check)

    tasks |= {each.check: asyncio.create_task(findings(each)) for each in wanted}
    found = await asyncio.gather(*tasks.values())
    return [finding for each in found for finding in each]


def _answers(check: Check, findings: Iterable[Finding]) -> bool:
    return not any(
        each.subject == check.value and each.severity is Severity.WRONG for each in findings
    )
