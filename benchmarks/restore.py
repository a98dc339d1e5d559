"""How long a table takes to come back from its changelog when the folder it was in is lost, beside
reading the same topic without doing anything with it: with few keys that were written often, and
with keys that are all different."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from confluent_kafka.admin import AdminClient
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.contestants import OURS_AT_LEAST_ONCE
from benchmarks.environments import ROOT
from benchmarks.figures import restores
from benchmarks.inputs import Windows, fill
from benchmarks.programs.arguments import Arguments
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure, ratio
from benchmarks.stage import stage, wait_until
from benchmarks.streams import only_for_now, output_of, running, stop

RATE = "records_per_second"
_OURS, _RAW = "ratestream restores", "raw consumption"
_FEW = 200
_RESTORE_SECONDS = 300.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--records", type=int, default=1_000_000, help="of a changelog (default: %(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    found: dict[str, Found] = {}
    with stage(console) as (bootstrap, folder, progress):
        for keys in (_FEW, options.records):
            with changelog(bootstrap, folder, Windows(options.records, keys)) as restoring:
                subjects = [Subject(_OURS, restoring.ours), Subject(_RAW, restoring.raw)]
                of_these = measure(subjects, options.rounds, progress, f"restore, {keys:,} keys")
            found |= {f"{name}, {keys:,} keys": each for name, each in of_these.items()}
    return Report("restore", {"records": options.records}, found, targets(found, options.records))


def targets(found: dict[str, Found], distinct: int) -> list[Target]:
    return [
        Target(
            f"restoring against raw consumption, {keys:,} keys",
            ratio(found, RATE, f"{_OURS}, {keys:,} keys", f"{_RAW}, {keys:,} keys"),
            at_least=at_least,
        )
        for keys, at_least in ((_FEW, 0.7), (distinct, 0.25))
    ]


@dataclass(frozen=True)
class Restoring:
    """A full changelog of the app `group`, whose input is empty."""

    bootstrap: str
    folder: Path
    group: str
    records: int
    numbers: Iterator[int]

    @property
    def topic(self) -> str:
        return f"{self.group}-windows-changelog"

    def ours(self) -> Figures:
        """By the worker's own log: from its first look at the changelog until it is ready to go
        on."""
        folder = self.folder / f"{self.group}-{next(self.numbers)}"
        folder.mkdir()
        since = datetime.now(UTC)
        names = (f"{self.group}-in", f"{self.group}-out", self.group)
        given = Arguments("stateful", self.bootstrap, *names, folder, "at_least_once")
        log = folder / "output"

        def is_restored() -> bool:
            if process.poll() is not None:
                raise BenchmarkError(f"it ended by itself:\n{output_of(given)}")
            return '"tables_restored"' in log.read_text()

        with running(OURS_AT_LEAST_ONCE, given) as process:
            wait_until(is_restored, _RESTORE_SECONDS, "table restored")
            stop(process)
        restored = restores(log.read_text().splitlines(), since)
        return self._figures(restored.records, restored.seconds)

    def raw(self) -> Figures:
        command = (sys.executable, "-m", "benchmarks.programs.raw", self.bootstrap, self.topic)
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=_RESTORE_SECONDS
        )
        said = json.loads(done.stdout)
        return self._figures(said["records"], said["seconds"])

    def _figures(self, records: int, seconds: float) -> Figures:
        if records != self.records:
            raise BenchmarkError(f"{records} records were read, not {self.records}")
        return {RATE: records / seconds, "seconds": seconds}


@contextmanager
def changelog(bootstrap: str, folder: Path, windows: Windows) -> Iterator[Restoring]:
    restoring = Restoring(bootstrap, folder, f"restore-{windows.keys}", windows.count, count())
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    with only_for_now(admin, restoring.topic, folder / restoring.group):
        fill(bootstrap, restoring.topic, windows.messages())
        yield restoring
