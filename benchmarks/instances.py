"""Growth: how many quotes a second 1, 2 and 4 instances of data_aggregator get through, exactly
once, with 8 partitions and 200 keys.

All of it on one machine: `busy_cores` says how much of it was busy, `aggregators_cores` and
`kafka_cores` with what. Where these add up to all there are, the machine is the bound, and an
instance more only has less for each.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks.backlog import PAIRS, SERVICE, Backlog, quotes, quotes_per_second
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import (
    PARTITIONS,
    metric,
    running,
    service,
    stage,
    wait_until,
)
from benchmarks.usage import Cores, listening
from tests.support.processes import ServiceProcess

_READY_SECONDS = 120.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--instances",
        type=int,
        nargs="+",
        choices=(1, 2, 4, 8),
        default=[1, 2, 4],
        help="numbers of instances (default: 1 2 4)",
    )
    parser.add_argument(
        "--backlog",
        type=int,
        default=2_000_000,
        help="quotes that wait for the instances (%(default)s)",
    )
    parser.add_argument(
        "--watch", type=float, default=10.0, help="seconds that instances are watched (%(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress):
        backlog = Backlog(bootstrap)
        _fill(backlog, options.backlog, progress)
        subjects = [
            Subject(
                f"{number} instance{'s' if number > 1 else ''}",
                partial(_figures, bootstrap, folder, backlog, number, options),
            )
            for number in options.instances
        ]
        found = measure(subjects, options.rounds, progress, "instances")
    return Report("instances", {"quotes": options.backlog, "seconds": options.watch}, found)


def _fill(backlog: Backlog, total: int, progress: Progress) -> None:
    backlog.start_over()
    backlog.write(quotes(PAIRS, total), total, progress, "quotes written")


def _figures(
    bootstrap: str, folder: Path, backlog: Backlog, number: int, options: argparse.Namespace
) -> Figures:
    backlog.start_over("processed-data")
    instances = [
        service(SERVICE, bootstrap, folder / f"instance-{each}", {}) for each in range(number)
    ]
    try:
        with running(*instances):
            wait_until(lambda: _have_shared(instances), _READY_SECONDS, "shared", *instances)
            processes = {"aggregators": map(_number, instances), "kafka": [listening(bootstrap)]}
            with Cores(processes) as cores:
                rate = quotes_per_second(backlog, options.backlog // PARTITIONS, options.watch)
    finally:
        for each in instances:
            shutil.rmtree(each.data_dir, ignore_errors=True)
    return {"quotes_per_second": rate, "busy_cores": cores.machine, **_named(cores.used)}


def _have_shared(instances: list[ServiceProcess]) -> bool:
    share = PARTITIONS // len(instances)
    return all(
        metric(each, "ratestream_assigned_partitions") == share
        and metric(each, "ratestream_restoring_partitions") == 0
        for each in instances
    )


def _number(instance: ServiceProcess) -> int:
    assert instance.process is not None
    return instance.process.pid


def _named(used: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_cores": cores for name, cores in used.items()}
