"""Kill everything while serial-numbered quotes flow, then compare what came out with an oracle.

    python -m tests.chaos --quotes 100000 --faults 20 --seed 1

Brings and starts three brokers, Postgres and the services by itself. The last line on stdout is
one line of JSON. The exit code is 0 only when everything is as the guarantee says and nothing
ended by itself; with `--guarantee at_least_once` repeats must be seen, or the comparison is blind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from tests.chaos import ChaosError, report
from tests.chaos.faults import make_schedule
from tests.chaos.oracle import judge
from tests.chaos.run import Evidence, Plan, run

GUARANTEES = ("exactly_once", "at_least_once")
INTERRUPTED = 130


def main() -> int:
    options = parser().parse_args()
    schedule = make_schedule(options.seed, options.faults)
    plan = Plan(options.quotes, schedule, options.guarantee)
    console = Console(stderr=True)
    console.print(
        f"{plan.quotes} quotes, {len(schedule)} faults, seed {options.seed}, {plan.guarantee}"
    )
    folder = Path(tempfile.mkdtemp(prefix="ratestream-chaos-"))
    folder.chmod(0o711)  # started by root, Postgres runs as somebody else
    is_good = False
    try:
        started = time.monotonic()
        evidence = asyncio.run(interruptible(plan, folder, console))
        is_good = tell(evidence, options, folder, time.monotonic() - started)
    except asyncio.CancelledError:
        console.print("interrupted: everything is stopped")
        return INTERRUPTED
    except (ChaosError, BaseExceptionGroup) as error:
        if not isinstance(first := first_of(error), ChaosError):
            raise
        console.print(f"chaos: {first}", style="red", markup=False)
    finally:
        clean_up(folder, console, keep_logs=not is_good)
    return 0 if is_good else 1


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__.splitlines()[0]
    )
    main.add_argument("--quotes", type=positive, default=100_000, help="default: %(default)s")
    main.add_argument("--faults", type=positive, default=20, help="default: %(default)s")
    main.add_argument("--seed", type=int, default=1, help="the same seed, the same faults")
    main.add_argument("--guarantee", choices=GUARANTEES, default=GUARANTEES[0])
    return main


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


async def interruptible(plan: Plan, folder: Path, console: Console) -> Evidence:
    """Ends with `CancelledError`, and with nothing left running, on SIGINT and SIGTERM."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not stop the stopping
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await run(plan, folder, console)


def first_of(error: BaseException) -> BaseException:
    """What is behind a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def tell(evidence: Evidence, options: argparse.Namespace, folder: Path, seconds: float) -> bool:
    """Print what was seen; returns whether it is what must be seen."""
    gc.freeze()  # millions of small objects that stay: not to be looked through again and again
    defects = judge(evidence.outcome)
    exactly_once = options.guarantee == GUARANTEES[0]
    verdict = report.verdict(defects, evidence.deaths, exactly_once)
    examples = [example for each in defects for example in each.examples]
    (folder / "logs" / "defects.txt").write_text("".join(f"{each}\n" for each in examples))
    report.show(Console(), evidence, defects)
    print(
        json.dumps(
            {
                "quotes": evidence.outcome.written,
                "faults": len(evidence.struck),
                "lost": verdict.lost,
                "repeated": verdict.repeated,
                "wrong": verdict.wrong,
                "died": verdict.died,
                "seed": options.seed,
                "guarantee": options.guarantee,
                "seconds": round(seconds),
            }
        ),
        flush=True,
    )
    return verdict.is_good


def clean_up(folder: Path, console: Console, *, keep_logs: bool) -> None:
    if not keep_logs:
        shutil.rmtree(folder)
        return
    for each in folder.iterdir():
        if each.name != "logs":
            shutil.rmtree(each)
    console.print(f"the logs are in {folder / 'logs'}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
