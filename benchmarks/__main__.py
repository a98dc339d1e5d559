"""Measure ratestream beside its peers, on servers that are started for it.

    python -m benchmarks                        # all of them, one after the other
    python -m benchmarks latency recovery
    python -m benchmarks latency --rounds 3 --rate 1000
    python -m benchmarks latency --help

Each prints a table and writes its figures to `benchmarks/results/<name>.json`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from typing import Protocol, cast

from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.report import Report

BENCHMARKS = (
    "stateful",
    "stateless",
    "steps",
    "threads",
    "restore",
    "loader",
    "api",
    "latency",
    "recovery",
    "instances",
    "keys",
    "queries",
    "weight",
)
"""Modules of this package, in the order in which they run; each is a `Benchmark`."""

_INTERRUPTED = 130


class Benchmark(Protocol):
    """What a module of `BENCHMARKS` has. Its docstring says what is measured."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Beside --rounds, which all of them have."""
        ...

    def run(self, options: argparse.Namespace, console: Console) -> Report:
        """Start what it needs, measure, and stop everything. Raises `BenchmarkError`."""
        ...


def main() -> int:
    names = chosen(sys.argv[1:])
    options = parser(names).parse_args()
    console = Console(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        for name in names:
            report = benchmark(name).run(options, console)
            report.show()
            console.print(f"written to {report.write()}", markup=False, highlight=False)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped")
        return _INTERRUPTED
    return 0


def chosen(arguments: list[str]) -> list[str]:
    """Those that are named before the first option; all, when none is."""
    names = []
    for argument in arguments:
        if argument.startswith("-"):
            break
        names.append(argument)
    return [name for name in names if name in BENCHMARKS] or list(BENCHMARKS)


def benchmark(name: str) -> Benchmark:
    return cast(Benchmark, import_module(f"benchmarks.{name}"))


def parser(names: list[str]) -> argparse.ArgumentParser:
    """The options of the benchmarks that are to be run; one that two of them have is shared."""
    main = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
    )
    main.add_argument("what", nargs="*", choices=[*BENCHMARKS, []], metavar="BENCHMARK")
    main.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    for name in names:
        benchmark(name).add_options(main)
    return main


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def interrupt(*_: object) -> None:
    """A second one must not stop the stopping."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
