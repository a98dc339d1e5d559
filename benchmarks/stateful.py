"""The mean of the last ten prices of each pair, a new one for every quote: 200 pairs, which fit
into any cache, and 100,000 keys, which do not."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.contestants import LOOP, OURS_AT_LEAST_ONCE, OURS_EXACTLY_ONCE
from benchmarks.inputs import Quotes
from benchmarks.report import Report, Target
from benchmarks.rounds import Found, measure, ratio
from benchmarks.stage import stage
from benchmarks.streams import RATE, course

_FEW, _MANY = 200, 100_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quotes", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=30, help="of a slow program (%(default)s)")


def run(options: argparse.Namespace, console: Console) -> Report:
    found: dict[str, Found] = {}
    with stage(console) as (bootstrap, folder, progress):
        for keys in (_FEW, _MANY):
            quotes = Quotes(options.quotes, keys)
            with course(bootstrap, folder, "stateful", quotes, options.seconds) as of_keys:
                subjects = [
                    of_keys.subject(program)
                    for program in (OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE, LOOP)
                ]
                of_these = measure(subjects, options.rounds, progress, f"stateful, {keys:,} keys")
            found |= {_named(name, keys): each for name, each in of_these.items()}
    measured_with = {"quotes": options.quotes, "seconds": options.seconds}
    return Report("stateful", measured_with, found, targets(found))


def _named(name: str, keys: int) -> str:
    return f"{name}, {keys:,} keys"


def targets(found: dict[str, Found]) -> list[Target]:
    """Those of them whose subjects have been measured."""
    return [
        Target(f"{ours} against {theirs}, {keys:,} keys", value, at_least=at_least)
        for ours, theirs, keys, at_least in (
            (OURS_EXACTLY_ONCE.name, LOOP.name, _FEW, 0.6),
            (OURS_AT_LEAST_ONCE.name, LOOP.name, _FEW, 0.7),
        )
        for value in [ratio(found, RATE, _named(ours, keys), _named(theirs, keys))]
    ]
