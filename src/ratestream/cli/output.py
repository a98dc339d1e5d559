"""What operators see: tables and colours on a terminal, plain lines elsewhere, JSON for machines.

What was received from elsewhere is shown escaped: it must not be able to steer a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

import msgspec

from ratestream.operations.findings import Finding, Severity

_COLORS = {
    Severity.OK: "green",
    Severity.WARNING: "yellow",
    Severity.WRONG: "bold red",
    Severity.SKIPPED: "magenta",
}


class Format(Enum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


def print_json(where: str, result: Any) -> None:
    """One object: where it was done, and what came of it."""
    encoded = msgspec.json.encode({"where": where, "result": result})
    print(msgspec.json.format(encoded, indent=2).decode())


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The last column may be long."""
    cells = [[escaped(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_rich_table(names, cells)
        return
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    for row in (names, *cells):
        line = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(line).rstrip())


def print_findings(findings: Sequence[Finding]) -> None:
    """One line each, and one that counts them."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for each in findings:
        advice = f": {each.advice}" if each.advice else ""
        console.print(
            Text(f"{each.severity.value:8}", _COLORS[each.severity]),
            Text(escaped(f"{each.subject}: {each.text}{advice}")),
        )
    counts = [sum(each.severity is severity for each in findings) for severity in Severity]
    parts = (f"{n} {severity.value}" for n, severity in zip(counts, Severity, strict=True) if n)
    print(", ".join(parts))


def escaped(text: str) -> str:
    """With everything that does not print as `\\x..` or `\\u....`."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _print_rich_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
