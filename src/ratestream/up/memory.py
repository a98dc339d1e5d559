"""The memory of this process and its children, where the system tells it cheaply (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def resident_bytes() -> int | None:
    """Of this process and of all that it started, Postgres too. Memory that several share is
    counted once (proportional set size). None where /proc does not tell."""
    sizes = [_proportional_bytes(pid) for pid in _with_children(os.getpid())]
    known = [size for size in sizes if size is not None]
    return sum(known) if known else None


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for tasks in _PROC.glob(f"{pid}/task/*/children"):
        try:
            children = tasks.read_text().split()
        except OSError:  # ended meanwhile
            continue
        for child in children:
            yield from _with_children(int(child))


def _proportional_bytes(pid: int) -> int | None:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
