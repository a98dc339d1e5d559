"""What a check finds."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec


class Severity(Enum):
    """How bad it is. A warning is worth a look; what is wrong has to be ended; what was skipped
    could not be looked at because of something else that is wrong."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    SKIPPED = "skipped"


class Finding(msgspec.Struct, frozen=True):
    """One line: what was looked at, how it is, and what to do about it if anything."""

    subject: str
    severity: Severity
    text: str
    advice: str = ""


def is_fine(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong and everything could be looked at."""
    return not {each.severity for each in findings} & {Severity.WRONG, Severity.SKIPPED}


def counted(number: int, noun: str) -> str:
    """As people say it: "1 record", "5 records"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
