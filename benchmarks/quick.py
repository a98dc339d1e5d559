"""The short form, for CI: ratios against the limits only, in a few minutes.

    python -m benchmarks.quick              # its last line has the ratios in JSON
    python -m benchmarks.quick --record     # also adds them to benchmarks/history.jsonl

Fails only when a ratio is less than half of what is recorded.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError, history, loader
from benchmarks.__main__ import interrupt, positive
from benchmarks.contestants import LOOP, OURS_AT_LEAST_ONCE, OURS_EXACTLY_ONCE, WARM_UP
from benchmarks.inputs import Quotes, Snapshots
from benchmarks.report import Report
from benchmarks.rounds import Found, measure, ratio
from benchmarks.stage import stage
from benchmarks.streams import RATE, course

_INTERRUPTED = 130
_PAIRS = 200
_STATELESS_TIMES = 2  # because they pass by so much faster


def main() -> int:
    options = parser().parse_args()
    console = Console(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        ratios = measured(options, console)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    fallen = history.fallen(ratios, history.load())
    for complaint in fallen:
        console.print(complaint, style="red", markup=False, highlight=False)
    if options.record:
        history.record(ratios)
    print(json.dumps(ratios), flush=True)
    return 1 if fallen else 0


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m benchmarks.quick",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    main.add_argument("--quotes", type=positive, default=400_000, help="default: %(default)s")
    main.add_argument("--record", action="store_true", help="add the ratios to the history")
    return main


def measured(options: argparse.Namespace, console: Console) -> dict[str, float]:
    """The ratios, which are shown as well."""
    with stage(console) as (bootstrap, folder, progress):
        stateful = _stateful(bootstrap, folder, progress, options)
        stateless = _stateless(bootstrap, folder, progress, options)
        loading = _loader(bootstrap, folder, progress, options)
    for title, found in (("stateful", stateful), ("stateless", stateless), ("loader", loading)):
        Report(f"{title}, quick", {}, found).show()
    return {
        name: round(value, 3)
        for name, value in {
            "stateful_exactly_once_vs_loop": _against_loop(stateful, OURS_EXACTLY_ONCE.name),
            "stateful_at_least_once_vs_loop": _against_loop(stateful, OURS_AT_LEAST_ONCE.name),
            "stateless_vs_loop": _against_loop(stateless, OURS_EXACTLY_ONCE.name),
            "loader_vs_copy": loader.against_copy(loading),
        }.items()
    }


def _stateful(
    bootstrap: str, folder: Path, progress: Progress, options: argparse.Namespace
) -> dict[str, Found]:
    with course(bootstrap, folder, "stateful", Quotes(options.quotes, _PAIRS)) as quotes:
        quotes.warm_up(WARM_UP)
        programs = (OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE, LOOP)
        subjects = [quotes.subject(program) for program in programs]
        return measure(subjects, options.rounds, progress, "stateful")


def _stateless(
    bootstrap: str, folder: Path, progress: Progress, options: argparse.Namespace
) -> dict[str, Found]:
    given = Snapshots(_STATELESS_TIMES * options.quotes, _PAIRS)
    with course(bootstrap, folder, "stateless", given) as snapshots:
        subjects = [snapshots.subject(program) for program in (OURS_EXACTLY_ONCE, LOOP)]
        return measure(subjects, options.rounds, progress, "stateless")


def _loader(
    bootstrap: str, folder: Path, progress: Progress, options: argparse.Namespace
) -> dict[str, Found]:
    return loader.compare(
        bootstrap, folder, progress, options.quotes, options.rounds, with_peers=False
    )


def _against_loop(found: dict[str, Found], name: str) -> float:
    return ratio(found, RATE, name, LOOP.name)


if __name__ == "__main__":
    sys.exit(main())
