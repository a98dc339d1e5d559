"""How `stateful` and `stateless` run programs beside each other: as they come, or warm.

Kafka Streams compiles itself while it runs, so that it is compared on three times as many quotes,
of which the last two thirds count, with ratestream in the same way beside it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks.contestants import PEERS, WARM_UP
from benchmarks.rounds import Found, measure
from benchmarks.streams import Input, Program, course

_WARM_TIMES = 3
_WARM_SECONDS = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=30, help="of a slow program (%(default)s)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all of them"
    )


def compared(
    on: tuple[str, Path, Progress],
    job: str,
    input_of: Callable[[int], Input],
    programs: Sequence[Program],
    options: argparse.Namespace,
    *,
    is_warm: bool = False,
) -> dict[str, Found]:
    """By the programs' names. `input_of` makes what goes in, of so many quotes."""
    bootstrap, folder, progress = on
    given = input_of(options.quotes * (_WARM_TIMES if is_warm else 1))
    seconds = _WARM_SECONDS if is_warm else options.seconds
    after = options.quotes if is_warm else 0
    with course(bootstrap, folder, job, given, seconds, after) as each:
        each.warm_up(WARM_UP)
        subjects = [each.subject(program) for program in programs]
        return measure(subjects, options.rounds, progress, job)
