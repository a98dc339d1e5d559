"""Snapshots of 50 pairs come in, a quote of each pair goes out."""

from __future__ import annotations

import argparse

from rich.console import Console

from benchmarks.comparing import add_options as add_options
from benchmarks.comparing import compared
from benchmarks.contestants import (
    LOOP,
    OURS_AT_LEAST_ONCE,
    OURS_EXACTLY_ONCE,
    java_peers,
    peer_versions,
    python_peers,
)
from benchmarks.inputs import Snapshots
from benchmarks.report import Report
from benchmarks.stage import stage


def run(options: argparse.Namespace, console: Console) -> Report:
    ours = [OURS_EXACTLY_ONCE, OURS_AT_LEAST_ONCE]
    cold = [*ours, LOOP, *python_peers(options.peers)]
    warm = java_peers(options.peers, states=["no"])
    with stage(console) as on:
        found = compared(on, "stateless", Snapshots, cold, options)
        if warm:
            of_warm = compared(on, "stateless", Snapshots, [*ours, *warm], options, is_warm=True)
            found |= {f"{name}, warm": each for name, each in of_warm.items()}
    measured_with = {"quotes": options.quotes, "seconds": options.seconds}
    return Report("stateless", measured_with, found, (), peer_versions(options.peers))
