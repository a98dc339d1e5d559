"""What to do about a server that does not answer."""

from __future__ import annotations

from ratestream.operations.deployment import Deployment
from ratestream.storage.errors import DatabaseAccessError, DatabaseUnavailableError
from ratestream.streaming import AccessError, BrokerError


def advice(error: Exception, deployment: Deployment) -> str:
    """Empty when the error itself says what to correct."""
    match error:
        case AccessError() | DatabaseAccessError():
            return ""
        case BrokerError():
            server, setting = "Kafka", "kafka.bootstrap_servers"
        case DatabaseUnavailableError():
            server, setting = "Postgres", "postgres.url"
        case _:
            return ""
    if deployment.runs_services and not deployment.settings.is_set(setting):
        return "see the log of ratestream up"
    return f"start {server}, or correct {setting}"


def advised(error: Exception, deployment: Deployment) -> str:
    """The error's message, with advice if there is any."""
    return "; ".join(filter(None, (str(error), advice(error, deployment))))
