"""docs/operations.md and the runbooks say of each fault what the tests see."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.faults import FAULTS, Fault, panel_of

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TESTS = ROOT / "tests" / "monitoring" / "test_faults.py"

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.test)


class Row(NamedTuple):
    """Of the table of faults."""

    fault: str
    alerts: str
    panel: str
    what_ends_it: str
    seen_in: str


def rows() -> list[Row]:
    page = (DOCS / "operations.md").read_text()
    table = page[page.index("| fault | alert | panel |") :].partition("\n\n")[0]
    return [Row(*map(str.strip, line.strip("|").split("|"))) for line in table.splitlines()[2:]]


def row_of(fault: Fault) -> Row:
    (found,) = (row for row in rows() if row.fault == fault.name)
    return found


def runbook(alert: str) -> str:
    """With its lines joined."""
    page = re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()
    return " ".join((DOCS / "runbooks" / f"{page}.md").read_text().split())


def test_the_page_has_each_fault_in_this_order() -> None:
    assert [row.fault for row in rows()] == [fault.name for fault in FAULTS]


@every_fault
def test_the_page_says_what_is_seen(fault: Fault) -> None:
    row = row_of(fault)
    assert tuple(re.findall(r"\[(\w+)\]\(runbooks/[\w-]+\.md\)", row.alerts)) == fault.alerts
    assert row.panel == fault.panel
    assert row.seen_in == f"`{fault.test}`"


@every_fault
def test_a_runbook_names_the_panel_and_has_the_line_that_ends_it(fault: Fault) -> None:
    board, title = fault.panel.split(" / ")
    panels = [
        runbook(alert).partition("**Panels.**")[2].partition("##")[0] for alert in fault.alerts
    ]
    assert any(f"**{board}**" in each and f'"{title}"' in each for each in panels)
    ends = [runbook(alert).partition("## What ends it")[2] for alert in fault.alerts]
    assert any(row_of(fault).what_ends_it in each for each in ends)


@every_fault
def test_the_panel_leads_to_a_runbook_of_the_fault(fault: Fault) -> None:
    page = panel_of(fault).runbook.title().replace("-", "")
    assert page in fault.alerts


def test_each_test_of_faults_is_of_one_in_the_table() -> None:
    defined = {
        node.name
        for node in ast.walk(ast.parse(TESTS.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert defined == {fault.test for fault in FAULTS}
