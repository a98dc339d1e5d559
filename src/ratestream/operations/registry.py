"""Every operation there is, to be sent from one process to another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import msgspec

from ratestream.operations.database import CheckDatabase, UpgradeDatabase
from ratestream.operations.deployment import Operation
from ratestream.operations.doctor import RunCheck
from ratestream.operations.errors import OperationError
from ratestream.operations.letters import ListDeadLetters, ReplayDeadLetters, ShowDeadLetter
from ratestream.operations.topics import CheckTopics, CreateTopics

R = TypeVar("R")

AnyOperation = (
    CreateTopics
    | CheckTopics
    | UpgradeDatabase
    | CheckDatabase
    | ListDeadLetters
    | ShowDeadLetter
    | ReplayDeadLetters
    | RunCheck
)
_decode: Callable[[bytes], AnyOperation] = msgspec.json.Decoder(AnyOperation).decode


def encode_operation(operation: Operation[Any]) -> bytes:
    """As one line of JSON."""
    return msgspec.json.encode(operation)


def decode_operation(line: bytes) -> AnyOperation:
    """Raises `OperationError` for what is none."""
    try:
        return _decode(line)
    except msgspec.DecodeError as error:
        raise OperationError(f"not an operation of this version of ratestream: {error}") from None


def result_type(operation: Operation[R]) -> type[R]:
    """What its `run` returns."""
    found: type[R] = get_type_hints(type(operation).run)["return"]
    return found
