"""The ratios of earlier runs, one run a line, oldest first, so that a slow change is seen."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import machine, versions

FILE = Path(__file__).resolve().parent / "history.jsonl"
RECENT_RUNS = 5
LEAST_PART = 0.5
"""A ratio below this part of what is usual has fallen. Machines are too different for more."""

Ratios = Mapping[str, float]


def load(file: Path = FILE) -> list[dict[str, float]]:
    """The ratios of each recorded run; none when there is no file."""
    if not file.exists():
        return []
    return [json.loads(line)["ratios"] for line in file.read_text().splitlines()]


def record(ratios: Ratios, file: Path = FILE) -> None:
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "ratios": dict(ratios),
    }
    with file.open("a") as history:
        history.write(json.dumps(line) + "\n")


def usual(history: Sequence[Ratios]) -> dict[str, float]:
    """The median of each ratio over the last runs that have it, at most `RECENT_RUNS`."""
    names = dict.fromkeys(name for run in history for name in run)
    return {
        name: statistics.median([run[name] for run in history if name in run][-RECENT_RUNS:])
        for name in names
    }


def fallen(ratios: Ratios, history: Sequence[Ratios]) -> list[str]:
    """What is less than half of what is usual, in words."""
    return [
        f"{name} is {ratios[name]:.3f}, less than half of the recorded {value:.3f}"
        for name, value in usual(history).items()
        if name in ratios and ratios[name] < LEAST_PART * value
    ]
