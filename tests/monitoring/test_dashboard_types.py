"""The dashboards have the keys, types and choices that Grafana's own TypeScript types allow.

`@grafana/schema` says them, and the TypeScript compiler compares. What a query is made of, and
what transformations do, has no type there; that queries give data `test_dashboards.py` shows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.boards import BOARDS
from tests.support.monitoring import CONFIGURATION

DASHBOARDS = CONFIGURATION.parent / "grafana" / "dashboards"
TYPES = Path(__file__).resolve().parents[1] / "support" / "grafana_schema"
KINDS = {"timeseries": "Graph", "stat": "Number", "table": "Table", "row": "Row"}
OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--target", "esnext")
RESOLUTION = ("--moduleResolution", "bundler", "--pretty", "false")

MISTAKES: list[tuple[tuple[str, ...], object]] = [
    (("fieldConfig", "defaults", "color", "mode"), "rainbow"),
    (("fieldConfig", "defaults", "min"), "0"),
    (("fieldConfig", "defaults", "units"), "s"),
    (("fieldConfig", "defaults", "custom", "lineWidths"), 1),
    (("fieldConfig", "defaults", "custom", "showPoints"), "sometimes"),
    (("options", "legend", "placement"), "left"),
    (("gridPos", "width"), 12),
    (("titel",), "Lag"),
]


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiler and Grafana's types, as the lock names them."""
    if "node" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("needs Node.js and npm; .ci/run brings them")
    folder = tmp_path_factory.mktemp("schema")
    shutil.copytree(TYPES, folder, dirs_exist_ok=True)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def complaints(folder: Path, *boards: dict[str, Any]) -> list[str]:
    """What the compiler says of these dashboards, a line each."""
    program = folder / "dashboards.ts"
    program.write_text("\n".join(lines(boards)))
    tsc = str(folder / "node_modules" / ".bin" / "tsc")
    command = [tsc, *OPTIONS, *RESOLUTION, program.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = done.stdout.splitlines()
    assert bool(done.returncode) is bool(found), done.stderr
    return found


def lines(boards: tuple[dict[str, Any], ...]) -> Iterator[str]:
    """A program that gives each dashboard, and each panel, to a constant of its type."""
    yield f'import type {{ Board, {", ".join(KINDS.values())} }} from "./plain";'
    for board in boards:
        rest = {name: value for name, value in board.items() if name != "panels"}
        yield constant(board, "board", "Board", rest)
        for panel in board["panels"]:
            yield constant(board, str(panel["id"]), KINDS[panel["type"]], panel)


def constant(board: dict[str, Any], what: str, of_type: str, value: dict[str, Any]) -> str:
    name = re.sub(r"\W", "_", f"{board['uid']}_{what}")
    return f"export const {name}: {of_type} = {json.dumps(value)};"


def written(name: str = "*") -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(DASHBOARDS.glob(f"{name}.json"))]


def test_grafana_knows_everything_that_dashboards_say(schema: Path) -> None:
    boards = written()
    assert len(boards) == len(BOARDS)
    assert complaints(schema, *boards) == []


def test_what_grafana_does_not_know_is_noticed(schema: Path) -> None:
    """Each in a panel of its own, which are lines of the program."""
    (board,) = written("runtime")
    graphs = [panel for panel in board["panels"] if panel["type"] == "timeseries"]
    for panel, (place, value) in zip(graphs, MISTAKES, strict=False):
        inner = panel
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
    found = complaints(schema, board)
    assert len({complaint.partition(",")[0] for complaint in found}) == len(MISTAKES), found
