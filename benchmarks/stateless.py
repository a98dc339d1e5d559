"""Snapshots of 50 pairs come in, a quote of each pair goes out."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.contestants import LOOP, OURS_AT_LEAST_ONCE, OURS_EXACTLY_ONCE
from benchmarks.inputs import Snapshots
from benchmarks.report import Report
from benchmarks.rounds import measure
from benchmarks.stage import stage
from benchmarks.streams import course


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=30, help="of a slow program (%(default)s)")


def run(options: argparse.Namespace, console: Console) -> Report:
    with (
        stage(console) as (bootstrap, folder, progress),
        course(
            bootstrap, folder, "stateless", Snapshots(options.quotes), options.seconds
        ) as snapshots,
    ):
        subjects = [
            snapshots.subject(program) for program in (OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE, LOOP)
        ]
        found = measure(subjects, options.rounds, progress, "stateless")
    measured_with = {"quotes": options.quotes, "seconds": options.seconds}
    return Report("stateless", measured_with, found)
