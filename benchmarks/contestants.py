"""Who is compared: the programs of `programs/`, and how each is started."""

from __future__ import annotations

import sys

from benchmarks.streams import ROOT, Program


def _of_our_environment(name: str, module: str, guarantee: str = "at_least_once") -> Program:
    command = (sys.executable, "-m", f"benchmarks.programs.{module}")
    return Program(name, command, guarantee, {"PYTHONPATH": str(ROOT)})


OURS_EXACTLY_ONCE = _of_our_environment("ratestream, exactly once", "ours", "exactly_once")
OURS_AT_LEAST_ONCE = _of_our_environment("ratestream, at least once", "ours")
LOOP = _of_our_environment("loop without guarantees", "loop")
