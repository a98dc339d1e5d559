"""Start and weight: how long each service imports, how long from its start until it is ready, what
it has in memory when it has nothing to do, and the sizes of the wheel and of all it installs.

Topics and schema are there, as after any first start. Each service runs alone on one broker of
Apache Kafka and one Postgres; `ratestream up` has all six and a broker in one process, beside a
Postgres that is not counted. "Python itself" is what no program in Python can be below.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import is_ready, postgres, running, service, stage, wait_until
from benchmarks.usage import MEGABYTE, cpu_seconds, private_megabytes, resident_megabytes
from ratestream.settings import SERVICES, variable
from tests.support.kafka_servers import free_port
from tests.support.processes import ServiceProcess

ROOT = Path(__file__).resolve().parents[1]

_READY_SECONDS = 60.0
_LOOK_SECONDS = 0.01
_ANSWER_SECONDS = 5.0
_STOP_SECONDS = 30.0

_IMPORTS = """
import time
started = time.perf_counter()
import ratestream.cli, ratestream.cli.builders, ratestream.services.{service}
import ratestream.monitoring, ratestream.observability, ratestream.streaming.kafka
import ratestream.up.signals
print(time.perf_counter() - started)
"""
"""What `ratestream run` imports for a service."""

_NOTHING = "print('ready', flush=True); input()"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rest",
        type=float,
        default=3.0,
        help="seconds after being ready at which memory is looked at (%(default)s)",
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress), postgres(folder) as database:
        services = {name: _service(name, bootstrap, database, folder) for name in SERVICES}
        with running(*services.values()):  # makes topics and schema
            ready = partial(all, map(is_ready, services.values()))
            wait_until(ready, _READY_SECONDS, "all services ready", *services.values())
        subjects = [
            Subject("Python itself", partial(_python_figures, options.rest)),
            *(
                Subject(name, partial(_service_figures, each, options.rest))
                for name, each in services.items()
            ),
            Subject("ratestream up", partial(_up_figures, folder / "up", options.rest)),
            Subject("the wheel, installed", package_figures),
        ]
        found = measure(subjects, options.rounds, progress, "weight")
    return Report("weight", {"rest_seconds": options.rest}, found)


def _service(name: str, bootstrap: str, database: str, folder: Path) -> ServiceProcess:
    nobody = {"kind": "demo", "url": "http://127.0.0.1:9", "interval_seconds": 3600}
    return service(
        name,
        bootstrap,
        folder / name,
        {
            "RATESTREAM_POSTGRES__URL": database,
            "RATESTREAM_DATA_REQUESTER__SOURCES": json.dumps([nobody]),
        },
    )


def _service_figures(each: ServiceProcess, rest: float) -> Figures:
    code = _IMPORTS.format(service=each.service)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    started = time.monotonic()
    with running(each):
        assert each.process is not None
        _wait_for(lambda: _answers_ready(each), each.process)
        return {
            "import_ms": float(done.stdout) * 1000,
            **_at_rest(started, each.process.pid, rest),
        }


def _python_figures(rest: float) -> Figures:
    return _printing_figures([sys.executable, "-c", _NOTHING], ["ready"], rest)


def _up_figures(folder: Path, rest: float) -> Figures:
    """On a data folder that an earlier start has made."""
    ports = {variable(f"{name}.port"): str(free_port()) for name in SERVICES}
    command = [sys.executable, "-m", "ratestream.cli", "up", "--plain", "--data-dir", str(folder)]
    if not folder.exists():
        _printing_figures(command, [f"{name} ready at " for name in SERVICES], 0, ports)
    return _printing_figures(command, [f"{name} ready at " for name in SERVICES], rest, ports)


def _printing_figures(
    command: Sequence[str],
    lines: Iterable[str],
    rest: float,
    environment: dict[str, str] | None = None,
) -> Figures:
    """Of a program that is ready when it has printed lines that begin with these."""
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(environment or {})},
    ) as process:
        try:
            assert process.stdout is not None
            _read_until(set(lines), process.stdout)
            return _at_rest(started, process.pid, rest)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()


def _read_until(wanted: set[str], output: IO[str]) -> None:
    seen = []
    for line in output:
        seen.append(line)
        wanted -= {each for each in wanted if line.startswith(each)}
        if not wanted:
            return
    raise BenchmarkError(f"it ended before it was ready: {''.join(seen[-20:])}")


def _at_rest(started: float, number: int, rest: float) -> dict[str, float]:
    ready = time.monotonic() - started
    used = cpu_seconds(psutil.Process(number))
    time.sleep(rest)
    return {
        "ready_seconds": ready,
        "ready_cpu_seconds": used,
        "resident_mb": resident_megabytes(number),
        "private_mb": private_megabytes(number),
    }


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchmarkError(f"not ready after {_READY_SECONDS} s, or ended: {process.args!r}")
        time.sleep(_LOOK_SECONDS)


def _answers_ready(each: ServiceProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{each.url}/health/ready", timeout=_ANSWER_SECONDS):
            return True
    except (urllib.error.URLError, OSError):
        return False


def package_figures() -> Figures:
    """The wheel is built here; of what it needs, sizes are those in this environment."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [Path(sys.executable).with_name("hatchling"), "build", "-t", "wheel", "-d", folder],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        (wheel,) = Path(folder).glob("*.whl")
        own = sum(each.file_size for each in ZipFile(wheel).infolist()) / MEGABYTE
        kilobytes = wheel.stat().st_size / 1000
    needed = closure("ratestream", _requirements) - {"ratestream"}
    with_postgres = closure("ratestream[local]", _requirements) - {"ratestream"}
    return {
        "wheel_kb": kilobytes,
        "packages": len(needed),
        "installed_mb": own + _megabytes(needed),
        "with_postgres_mb": own + _megabytes(with_postgres),
    }


def closure(root: str, requirements: Callable[[str], Iterable[str]]) -> set[str]:
    """The names of all that `root` ("name" or "name[extra]") needs here, its own included.
    `requirements` are those of one name, as its metadata has them."""
    waiting, seen = [Requirement(root)], set[tuple[str, str]]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for each in map(Requirement, requirements(name)):
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    waiting.append(each)
    return {name for name, _ in seen}


def _requirements(name: str) -> Sequence[str]:
    return distribution(name).requires or ()


def _megabytes(names: Iterable[str]) -> float:
    return sum(_bytes(distribution(name)) for name in names) / MEGABYTE


def _bytes(installed: Distribution) -> int:
    """As pip has installed it, bytecode included."""
    paths = (Path(str(installed.locate_file(file))) for file in installed.files or ())
    return sum(path.stat().st_size for path in paths if path.is_file())
