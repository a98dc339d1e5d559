"""Signals that ask a process to end, as events."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType


@dataclass(frozen=True, slots=True)
class StopSignals:
    """`first` is set by the first Ctrl-C, SIGTERM or closed terminal, `second` by the next."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch them within, in the main thread and a running event loop; on every platform."""
    loop = asyncio.get_running_loop()
    signals = StopSignals()

    def handle(_: int, __: FrameType | None) -> None:
        loop.call_soon_threadsafe(signals.receive)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
