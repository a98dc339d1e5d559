"""What processes take of the machine, asked of the system: cores and memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks import BenchmarkError

MEGABYTE = 1_000_000


class Cores:
    """How many cores each group of processes was busy with, on average, in the time of the block;
    `machine` are those that anything was busy with: when it has no more, the machine is the bound.
    """

    def __init__(self, groups: Mapping[str, Iterable[int]] | None = None) -> None:
        self._groups = {
            name: [psutil.Process(number) for number in numbers]
            for name, numbers in (groups or {}).items()
        }
        self._began: dict[str, float] = {}
        self.used: dict[str, float] = {}
        self.machine = 0.0

    def __enter__(self) -> Cores:
        self._began = self._seconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        began, ended = self._began, self._seconds()
        elapsed = ended.pop("") - began.pop("")
        self.machine = (ended.pop("machine") - began.pop("machine")) / elapsed
        self.used = {name: (ended[name] - began[name]) / elapsed for name in ended}

    def _seconds(self) -> dict[str, float]:
        """Busy seconds of each group, and under no name what a clock says."""
        groups = {name: sum(map(cpu_seconds, each)) for name, each in self._groups.items()}
        return {"": time.monotonic(), "machine": _machine_seconds(), **groups}


def cpu_seconds(process: psutil.Process) -> float:
    """Of the process alone, without those that it has started."""
    times = process.cpu_times()
    return float(times.user + times.system)


def thread_seconds(number: int, of: Callable[[str], str]) -> dict[str, float]:
    """Busy seconds of the process's first thread, "main", and of the others that are there now,
    added up by what `of` says of the system's name for them. Nothing once it has ended."""
    spent = defaultdict[str, float](float)
    with suppress(psutil.NoSuchProcess):
        for thread in psutil.Process(number).threads():
            with suppress(FileNotFoundError):  # it has ended meanwhile
                name = Path(f"/proc/{number}/task/{thread.id}/comm").read_text()
                whose = "main" if thread.id == number else of(name.strip())
                spent[whose] += thread.user_time + thread.system_time
    return dict(spent)


def idle_seconds() -> float:
    """Of all cores of the machine, since it started."""
    times = psutil.cpu_times()
    return float(times.idle) + float(getattr(times, "iowait", 0.0))


def resident_megabytes(number: int) -> float:
    """What the process has in memory now, shared libraries included."""
    return float(psutil.Process(number).memory_info().rss) / MEGABYTE


def most_resident_megabytes(number: int) -> float:
    """What it has ever had in memory at once."""
    status = Path(f"/proc/{number}/status").read_text()
    (kibibytes,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(kibibytes) * 1024 / MEGABYTE


def private_megabytes(number: int) -> float:
    """What would be free if the process ended."""
    return float(psutil.Process(number).memory_full_info().uss) / MEGABYTE


def listening(address: str) -> int:
    """The process that listens at `host:port` of this machine."""
    port = int(address.rpartition(":")[2])
    for each in psutil.net_connections("tcp"):
        listens = each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
        if listens and each.pid:
            return int(each.pid)
    raise BenchmarkError(f"no process is seen to listen at {address}")


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - guests) - idle_seconds()  # guests are in user time already
