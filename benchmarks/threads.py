"""Where processor time goes while the stateful job runs: microseconds a record of each of the
program's threads, of Kafka, and of cores that had nothing to do.

Agents run on the thread "main", what talks to Kafka on "broker"; the loop does both on one. Where
the two add up to `wall_us`, the time that a record took, the interpreter is the bound, which only
one of them has at a time.

`--beside before=../other/src` measures another version of ratestream in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console

from benchmarks.contestants import LOOP, OURS_AT_LEAST_ONCE, OURS_EXACTLY_ONCE, WARM_UP
from benchmarks.environments import ROOT
from benchmarks.inputs import Quotes
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import stage
from benchmarks.streams import RATE, Course, Program, Spent, course
from benchmarks.usage import cpu_seconds, idle_seconds, listening, thread_seconds

_LIBRARIES = {"rdk:": "librdkafka", "rocksdb:": "rocksdb"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--pairs", type=int, default=200, help="default: %(default)s")
    parser.add_argument(
        "--beside",
        type=_version,
        nargs="*",
        default=[],
        metavar="NAME=FOLDER",
        help="other versions' sources",
    )


def _version(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not (source := Path(folder).resolve()).joinpath("ratestream").is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no folder `ratestream` in {folder or 'nothing'}")
    return name, source


def run(options: argparse.Namespace, console: Console) -> Report:
    ours = (OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE)
    others = [_of(version, each) for version in options.beside for each in ours]
    with (
        stage(console) as (bootstrap, folder, progress),
        course(bootstrap, folder, "stateful", Quotes(options.quotes, options.pairs)) as given,
    ):
        given.warm_up(WARM_UP)
        watched = replace(given, spent=_spent(bootstrap))
        subjects = [_subject(watched, program) for program in (*ours, *others, LOOP)]
        found = measure(subjects, options.rounds, progress, "threads")
    return Report("threads", {"quotes": options.quotes, "pairs": options.pairs}, found)


def _of(version: tuple[str, Path], ours: Program) -> Program:
    name, source = version
    environment = {"PYTHONPATH": f"{source}:{ROOT}"}
    return replace(ours, name=f"{ours.name}, {name}", environment=environment)


def _subject(watched: Course, program: Program) -> Subject:
    def figures() -> Figures:
        found = watched.run(program)
        return {"wall_us": 1e6 / found[RATE], **found}

    return Subject(program.name, figures)


def _spent(bootstrap: str) -> Callable[[int], Spent]:
    kafka = psutil.Process(listening(bootstrap))

    def spent(program: int) -> Spent:
        threads = thread_seconds(program, _thread)
        return {**threads, "kafka": cpu_seconds(kafka), "idle": idle_seconds()}

    return spent


def _thread(name: str) -> str:
    """Whose it is. Python's threads have a name of their own only since 3.14."""
    return next((its for start, its in _LIBRARIES.items() if name.startswith(start)), "broker")
