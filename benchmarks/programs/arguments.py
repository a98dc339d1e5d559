"""What every program is told. Only the standard library, since peers have environments of their
own."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arguments:
    """`group` is new for each run, and the name of whatever the program keeps in Kafka."""

    job: str
    bootstrap: str
    input: str
    output: str
    group: str
    data_dir: Path
    guarantee: str

    @property
    def is_exactly_once(self) -> bool:
        return self.guarantee == "exactly_once"

    def as_options(self) -> list[str]:
        """What `arguments` reads again."""
        return [
            f"--{name.replace('_', '-')}={value}"
            for name, value in vars(self).items()
            if name != "job"
        ] + [self.job]


def arguments(given: list[str] | None = None) -> Arguments:
    """Those of the command line. Exits when one is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=("stateful", "stateless"))
    for name in ("bootstrap", "input", "output", "group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--guarantee", required=True, choices=("exactly_once", "at_least_once"))
    return Arguments(**vars(parser.parse_args(given)))
