"""Snapshots of 50 pairs come in, a quote of each pair goes out. Kafka Streams is compared warm, as
in `stateful.py`."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.contestants import (
    LOOP,
    OURS_AT_LEAST_ONCE,
    OURS_EXACTLY_ONCE,
    PEERS,
    WARM_UP,
    java_peers,
    peer_versions,
    python_peers,
)
from benchmarks.inputs import Snapshots
from benchmarks.report import Report
from benchmarks.rounds import Found, measure
from benchmarks.stage import stage
from benchmarks.streams import Program, course

_WARM_TIMES = 3
_WARM_SECONDS = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=30, help="of a slow program (%(default)s)")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, default=list(PEERS), help="default: all of them"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    ours = [OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE]
    cold = [*ours, LOOP, *python_peers(options.peers)]
    warm = java_peers(options.peers, states=["no"])
    with stage(console) as (bootstrap, folder, progress):

        def compared(programs: list[Program], is_warm: bool) -> dict[str, Found]:
            snapshots = Snapshots(options.quotes * (_WARM_TIMES if is_warm else 1))
            seconds = _WARM_SECONDS if is_warm else options.seconds
            after = options.quotes if is_warm else 0
            with course(bootstrap, folder, "stateless", snapshots, seconds, after) as each:
                each.warm_up(WARM_UP)
                subjects = [each.subject(program) for program in programs]
                return measure(subjects, options.rounds, progress, "stateless")

        found = compared(cold, is_warm=False)
        if warm:
            of_warm = compared([*ours, *warm], is_warm=True)
            found |= {f"{name}, warm": each for name, each in of_warm.items()}
    measured_with = {"quotes": options.quotes, "seconds": options.seconds}
    return Report("stateless", measured_with, found, (), peer_versions(options.peers))
