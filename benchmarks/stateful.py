"""The mean of the last ten prices of each pair, a new one for every quote: 200 pairs, which fit
into any cache, and 100,000 keys, which do not."""

from __future__ import annotations

import argparse
from functools import partial

from rich.console import Console

from benchmarks.comparing import add_options as add_options
from benchmarks.comparing import compared
from benchmarks.contestants import (
    EXACTLY_ONCE,
    FAUST_NAME,
    LOOP,
    OURS_AT_LEAST_ONCE,
    OURS_EXACTLY_ONCE,
    STATES,
    java_peers,
    kafka_streams_name,
    peer_versions,
    python_peers,
    quix_name,
)
from benchmarks.inputs import Quotes
from benchmarks.report import Report, Target
from benchmarks.rounds import Found, ratio
from benchmarks.stage import stage
from benchmarks.streams import RATE, Program

FEW, MANY = 200, 100_000
_MEMORY_MB = 200.0


def run(options: argparse.Namespace, console: Console) -> Report:
    found: dict[str, Found] = {}
    ours = [OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE]
    cold, warm = [*ours, LOOP, *python_peers(options.peers)], java_peers(options.peers)
    with stage(console) as on:

        def of_keys(programs: list[Program], keys: int, is_warm: bool) -> dict[str, Found]:
            inputs = partial(Quotes, pairs=keys)
            measured = compared(on, "stateful", inputs, programs, options, is_warm=is_warm)
            return {named(name, keys, is_warm): each for name, each in measured.items()}

        for keys in (FEW, MANY):
            found |= of_keys(cold, keys, is_warm=False)
            if warm:
                found |= of_keys([*ours, *warm], keys, is_warm=True)
    measured_with = {"quotes": options.quotes, "seconds": options.seconds}
    return Report("stateful", measured_with, found, targets(found), peer_versions(options.peers))


def named(name: str, keys: int, is_warm: bool = False) -> str:
    return f"{name}, {keys:,} keys{', warm' if is_warm else ''}"


def targets(found: dict[str, Found]) -> list[Target]:
    """Those whose subjects have been measured."""
    once, more = OURS_EXACTLY_ONCE.name, OURS_AT_LEAST_ONCE.name
    quix = quix_name(EXACTLY_ONCE)
    kafka_streams = [kafka_streams_name(EXACTLY_ONCE, state) for state in STATES]
    wanted = [
        *_against(found, once, [LOOP.name], FEW, 0.6),
        *_against(found, more, [LOOP.name], FEW, 0.7),
        *_against(found, once, [FAUST_NAME], FEW, 50.0),
        *_against(found, once, [quix], FEW, 6.0),
        *_against(found, once, kafka_streams, FEW, 1.25, is_warm=True),
        *_against(found, once, kafka_streams, MANY, 1.5, is_warm=True),
    ]
    memory = found[named(once, MANY)].median("memory_mb")
    return [*wanted, Target("MB of a worker with 100,000 keys", memory, at_most=_MEMORY_MB)]


def _against(
    found: dict[str, Found],
    ours: str,
    theirs: list[str],
    keys: int,
    at_least: float,
    is_warm: bool = False,
) -> list[Target]:
    """Against the fastest of `theirs`; nothing when they were not measured."""
    names = [named(each, keys, is_warm) for each in theirs]
    if not all(name in found for name in names):
        return []
    fastest = max(names, key=lambda name: found[name].median(RATE))
    value = ratio(found, RATE, named(ours, keys, is_warm), fastest)
    return [Target(f"{ours}, against {fastest}", value, at_least=at_least)]
