"""`ratestream doctor`: a check for everything that a deployment stands on.

Each check is an operation of its own, so that they run side by side and none waits for another.
One that cannot look because of what another is about (Kafka does not answer) says so.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import assert_never

import msgspec

from ratestream.operations import checks
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity
from ratestream.operations.lag import check_lag
from ratestream.operations.topics import CheckTopics
from ratestream.storage.errors import DatabaseAccessError, StorageError
from ratestream.streaming import AccessError, StreamingError

CHECK_SECONDS = 45.0
"""After which a check is given up. Each question within it has a shorter bound of its own."""


class Check(Enum):
    """What there is to check, in the order in which it is told."""

    KAFKA = "kafka"
    TOPICS = "topics"
    LAG = "lag"
    POSTGRES = "postgres"
    CLUSTER = "cluster"
    CLOCKS = "clocks"
    DISK = "disk"
    SERVICES = "services"
    CERTIFICATES = "certificates"
    SOURCES = "sources"


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
            text, advice = f"gave no result within {CHECK_SECONDS:g} s", "try again"
        except (AccessError, DatabaseAccessError) as error:
            text, advice = str(error), ""  # it names the settings
        except StreamingError as error:
            text, advice = str(error), "start Kafka, or correct the settings kafka.…"
        except StorageError as error:
            text, advice = str(error), "start Postgres, or correct the settings postgres.…"
        if self.check in (Check.KAFKA, Check.POSTGRES):
            return [Finding(self.check.value, Severity.WRONG, text, advice)]
        return [Finding(self.check.value, Severity.SKIPPED, f"cannot be looked at: {text}")]

    async def _findings(self, deployment: Deployment) -> list[Finding]:
        match self.check:
            case Check.KAFKA:
                return await asyncio.to_thread(checks.kafka, deployment)
            case Check.TOPICS:
                return await CheckTopics().run(deployment)
            case Check.LAG:
                return await asyncio.to_thread(check_lag, deployment)
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
