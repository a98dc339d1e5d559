"""What a benchmark leaves behind: a table for people and a file of JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Found

RESULTS = Path(__file__).resolve().parent / "results"
_LIBRARIES = ("confluent-kafka", "msgspec", "rocksdict", "asyncpg", "fastapi", "uvicorn")


@dataclass(frozen=True)
class Target:
    """A ratio, or a figure of one subject, and what it is to be: at least, or at most."""

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


@dataclass(frozen=True)
class Report:
    """One benchmark: `options` is how it was run, `versions` are those of what it brought along."""

    benchmark: str
    options: Mapping[str, object]
    found: Mapping[str, Found]
    targets: Sequence[Target] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def show(self) -> None:
        """To standard output: a row for each subject, then the targets."""
        figures = list(dict.fromkeys(name for each in self.found.values() for name in each.rounds))
        table = Table("", *figures, title=self.benchmark)
        for name, found in self.found.items():
            medians = found.medians()
            table.add_row(name, *(_text(medians.get(figure)) for figure in figures))
        console = Console()
        console.print(table)
        if self.targets:
            console.print(self._targets_table())

    def _targets_table(self) -> Table:
        table = Table("ratio or figure", "measured", "wanted", "")
        for each in self.targets:
            wanted = f"≥ {each.at_least}" if each.at_least is not None else f"≤ {each.at_most}"
            reached = "reached" if each.is_reached else "missed"
            table.add_row(each.name, _text(each.value), wanted, reached)
        return table

    def write(self, folder: Path = RESULTS) -> Path:
        """`<benchmark>.json` in `folder`, replacing what was there."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.benchmark}.json"
        file.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        return file

    def as_json(self) -> dict[str, object]:
        return {
            "benchmark": self.benchmark,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": versions() | dict(self.versions),
            "options": dict(self.options),
            "medians": {name: found.medians() for name, found in self.found.items()},
            "rounds": {name: found.rounds for name, found in self.found.items()},
            "targets": [asdict(each) | {"is_reached": each.is_reached} for each in self.targets],
        }


def versions() -> dict[str, str]:
    """Of the libraries that the figures depend on."""
    return {name: version(name) for name in _LIBRARIES}


def machine() -> dict[str, object]:
    """What it was measured on, without a name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
