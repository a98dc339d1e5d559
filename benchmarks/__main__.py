"""Measure what the guarantees cost, on an Apache Kafka that is started for it.

    python -m benchmarks latency --rounds 5
    python -m benchmarks recovery --keys 1000000

Tables are for people; each measurement also prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks import BenchmarkError, latency, recovery
from benchmarks.stage import SESSION_TIMEOUT
from tests.support.kafka_servers import start_kafka

_MEASUREMENTS = ("latency", "recovery", "both")
_INTERRUPTED = 130


def main() -> int:
    options = parser().parse_args()
    console = Console(stderr=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        if options.what in ("latency", "both"):
            with stage(console) as on:
                latencies = latency.measure(*on, options.rounds, options.rate, options.seconds)
            show_latencies(latencies, options)
        if options.what in ("recovery", "both"):
            with stage(console) as on:
                recoveries = recovery.measure(*on, options.rounds, options.keys)
            show_recoveries(recoveries, options)
    except BenchmarkError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted: everything is stopped")
        return _INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    main.add_argument("what", nargs="?", choices=_MEASUREMENTS, default="both")
    main.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    main.add_argument("--rate", type=positive, default=200, help="quotes a second, of latency")
    main.add_argument("--seconds", type=positive, default=20, help="of a round of latency")
    main.add_argument("--keys", type=positive, default=1_000_000, help="of the table, of recovery")
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


@contextmanager
def stage(console: Console) -> Iterator[tuple[str, Path, Progress]]:
    """Kafka's address, a folder and a progress bar. Nothing runs any more when this ends, whatever
    ends it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory(prefix="ratestream-benchmark-") as folder,
        start_kafka() as kafka,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        yield kafka.bootstrap, Path(folder), progress


def show_latencies(
    found: dict[latency.Variant, latency.Latencies], options: argparse.Namespace
) -> None:
    table = Table(
        "guarantee", "commit_interval", "p50", "p99", "p50 of each round", "more than at_least_once"
    )
    lines = []
    for variant, latencies in found.items():
        p50, p99 = latencies.medians()
        base50, base99 = found[replace(variant, guarantee="at_least_once")].medians()
        table.add_row(
            variant.guarantee,
            f"{variant.commit_interval} s",
            f"{p50:.0f} ms",
            f"{p99:.0f} ms",
            " ".join(f"{each:.0f}" for each in latencies.p50),
            f"p50 {p50 - base50:+.0f} ms, x{p50 / base50:.1f}; "
            f"p99 {p99 - base99:+.0f} ms, x{p99 / base99:.1f}",
        )
        lines.append(
            {
                "guarantee": variant.guarantee,
                "commit_interval_seconds": variant.commit_interval,
                "p50_ms": round(p50, 1),
                "p99_ms": round(p99, 1),
            }
        )
    Console().print(table)
    tell("latency", options, rate=options.rate, seconds=options.seconds, variants=lines)


def show_recoveries(found: dict[bool, recovery.Recoveries], options: argparse.Namespace) -> None:
    table = Table("standby", "takeover", "of which restore", "records restored", "of each round")
    lines = []
    for standby, recoveries in found.items():
        seconds, records, restored_seconds = recoveries.medians()
        table.add_row(
            "yes" if standby else "no",
            f"{seconds:.1f} s",
            f"{restored_seconds:.1f} s",
            f"{records:,.0f}",
            " ".join(f"{each:.1f}" for each in recoveries.seconds),
        )
        lines.append(
            {
                "standby": standby,
                "takeover_seconds": round(seconds, 2),
                "restore_seconds": round(restored_seconds, 2),
                "restored_records": round(records),
            }
        )
    Console().print(table)
    tell("recovery", options, keys=options.keys, session_timeout=SESSION_TIMEOUT, variants=lines)


def tell(benchmark: str, options: argparse.Namespace, **more: object) -> None:
    line = {"benchmark": benchmark, "rounds": options.rounds, "cpus": os.cpu_count(), **more}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
