"""What operators are told to do when a server does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratestream.operations.advice import advice, advised
from ratestream.operations.deployment import Deployment
from ratestream.settings import load
from ratestream.storage.errors import DatabaseAccessError, DatabaseUnavailableError, SchemaError
from ratestream.streaming import AccessError, Broker, BrokerError

KAFKA = {"kafka.bootstrap_servers": "kafka:9092"}


def deployment(given: dict[str, str], *, runs_services: bool) -> Deployment:
    def connect() -> Broker:
        raise AssertionError("nobody has to be asked")

    return Deployment(load(Path("/dev/null"), given), connect, {}, runs_services)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BrokerError("away"), "away; start Kafka, or correct kafka.bootstrap_servers"),
        (DatabaseUnavailableError("away"), "away; start Postgres, or correct postgres.url"),
        (AccessError("see sasl_password"), "see sasl_password"),
        (DatabaseAccessError("see postgres.password"), "see postgres.password"),
        (SchemaError("too new"), "too new"),
    ],
)
def test_advice_is_given_where_the_error_has_none(error: Exception, told: str) -> None:
    assert advised(error, deployment({}, runs_services=False)) == told


def test_what_is_built_in_cannot_be_started_alone() -> None:
    error = BrokerError("away")
    assert advice(error, deployment({}, runs_services=True)) == "see the log of ratestream up"
    assert advice(error, deployment(KAFKA, runs_services=True)).startswith("start Kafka")
