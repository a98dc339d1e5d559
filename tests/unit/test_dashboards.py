"""The dashboards are what deploy/grafana/*.py says, and show only what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.boards import BOARDS
from deploy.grafana.promql import SERVICES as SERVICES_SHOWN
from deploy.grafana.style import COLUMNS, DATA_SOURCE, Dashboard, Panel
from ratestream.settings import SERVICES

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
METRICS_PAGE = ROOT / "docs" / "metrics.md"

# Links from elsewhere name them: they stay as they are.
UIDS = {
    *("ratestream-overview", "ratestream-sources", "ratestream-runtime", "ratestream-postgres"),
    *(f"ratestream-{service.replace('_', '-')}" for service in SERVICES),
}
WINDOWS = {"$__rate_interval", "$__range", "30d"}
"""30d: what the objective of the API is about."""

# Documented, and neither in a panel nor in an alert: to look at by hand.
DRILL_DOWN: set[str] = set()

METRIC = re.compile(r"\b(?:ratestream|process)_\w+|\bup\b|\bALERTS\w*")
OF_PROMETHEUS = {"up", "ALERTS", "ALERTS_FOR_STATE"}
OF_THE_PROCESS = {
    *("process_resident_memory_bytes", "process_cpu_seconds_total"),
    *("process_open_fds", "process_max_fds"),
}

every_board = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)


def expressions(board: Dashboard) -> list[str]:
    in_panels = [query.expression for panel in board.panels for query in panel.queries]
    return [*in_panels, *(variable.selector for variable in board.variables)]


def metrics_in(expression: str) -> set[str]:
    """Names of metrics; a histogram's parts under its own name."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    return {re.sub(r"_(bucket|sum|count)$", "", each) for each in METRIC.findall(without_strings)}


def documented_metrics() -> set[str]:
    page = METRICS_PAGE.read_text()
    return set(re.findall(r"^\| `(ratestream_\w+)` \|", page, re.MULTILINE))


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels_as_written(board: Dashboard) -> list[dict[str, Any]]:
    name = f"{board.uid.removeprefix('ratestream-')}.json"
    panels: list[dict[str, Any]] = json.loads((DASHBOARDS / name).read_text())["panels"]
    return panels


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return all(
        one[start] < other[start] + other[size] and other[start] < one[start] + one[size]
        for start, size in (("x", "w"), ("y", "h"))
    )


def unknown_variables(board: Dashboard) -> set[str]:
    known = {variable.label for variable in board.variables}
    used = {name for text in expressions(board) for name in re.findall(r"\$([a-z]\w*)", text)}
    return used - known


def test_dashboards_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "dashboards"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_dashboard_keeps_its_uid() -> None:
    assert {board.uid for board in BOARDS} == UIDS
    assert len(BOARDS) == len(UIDS)
    assert SERVICES_SHOWN == SERVICES


def test_grafana_is_given_the_data_source_that_panels_ask() -> None:
    provisioned = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    assert (source["type"], source["uid"]) == (DATA_SOURCE.type_val, DATA_SOURCE.uid)
    prometheus = yaml.safe_load((ALERTS.parent / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


@every_board
def test_panels_lie_side_by_side(board: Dashboard) -> None:
    panels = panels_as_written(board)
    places = [panel["gridPos"] for panel in panels]
    assert [each for each in places if each["x"] + each["w"] > COLUMNS] == []
    assert [pair for pair in combinations(places, 2) if overlap(*pair)] == []
    assert all(before["id"] < after["id"] for before, after in pairwise(panels))


@every_board
def test_every_panel_is_explained(board: Dashboard) -> None:
    titles = Counter(panel.title for panel in board.panels)
    assert [title for title, times in titles.items() if times > 1] == []
    unfinished = [
        (panel.title, sentence)
        for panel in board.panels
        for sentence in (panel.shows, panel.normal, panel.otherwise)
        if not sentence.endswith(".") or "|" in sentence
    ]
    assert unfinished == []
    assert [panel.title for panel in board.panels if not panel.no_data or not panel.unit] == []
    assert [q for panel in board.panels for q in panel.queries if not q.legend] == []


@every_board
def test_limits_are_in_order(board: Dashboard) -> None:
    def are_in_order(panel: Panel) -> bool:
        steps = [step["value"] for step in thresholds[panel.title][1:]]
        return steps == sorted(set(steps))

    thresholds = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        for panel in panels_as_written(board)
        if panel["type"] != "row"
    }
    assert [panel.title for panel in board.panels if not are_in_order(panel)] == []


@every_board
def test_links_lead_somewhere(board: Dashboard) -> None:
    runbooks = {panel.runbook for panel in board.panels} - {""}
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert runbooks - pages == set()
    assert {panel.more for panel in board.panels} - {"", *UIDS} == set()


@every_board
def test_every_metric_shown_exists(board: Dashboard) -> None:
    there = documented_metrics() | OF_PROMETHEUS | OF_THE_PROCESS
    assert {name for text in expressions(board) for name in metrics_in(text)} - there == set()


@every_board
def test_windows_follow_the_scrape_interval_and_the_time_shown(board: Dashboard) -> None:
    windows = {each for text in expressions(board) for each in re.findall(r"\[([^\]]+)\]", text)}
    assert windows - WINDOWS == set()


@every_board
def test_variables_used_are_there(board: Dashboard) -> None:
    assert unknown_variables(board) == set()


def test_every_metric_is_shown_or_watched() -> None:
    shown = {name for board in BOARDS for text in expressions(board) for name in metrics_in(text)}
    watched = {name for rule in rules() for name in metrics_in(rule["expr"])}
    assert documented_metrics() - shown - watched == DRILL_DOWN


def test_every_alert_has_a_panel_with_its_runbook() -> None:
    shown = {panel.runbook for board in BOARDS for panel in board.panels}
    alerts = {rule["annotations"]["runbook"] for rule in rules() if "alert" in rule}
    assert alerts - {f"docs/runbooks/{page}.md" for page in shown} == set()


# That these notice what they are for.


def test_metrics_are_told_from_labels() -> None:
    expression = 'sum by (up_to) (rate(ratestream_x_seconds_bucket{job="ratestream_y"}[5m])) + up'
    assert metrics_in(expression) == {"ratestream_x_seconds", "up"}


def test_panels_that_overlap_are_noticed() -> None:
    place = {"x": 0, "y": 0, "w": 12, "h": 8}
    assert overlap(place, {**place, "x": 11, "y": 7})
    assert not overlap(place, {**place, "x": 12})
    assert not overlap(place, {**place, "y": 8})
