"""Timers: functions called at a steady beat."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ratestream.streaming.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Timer:
    """Calls `function` every `interval` seconds, first after one interval.

    Never overlaps itself and does not drift: ticks lie at whole multiples of the interval after
    the start, and those that a slow run covers are left out. With `on_leader` it runs on one
    instance of the app at a time.
    """

    name: str
    interval: float
    function: Callable[[], Awaitable[None]]
    on_leader: bool = False

    def __post_init__(self) -> None:
        if not self.interval > 0:
            raise ConfigurationError(f"timer {self.name}: interval {self.interval}, must be > 0")

    async def run(self, is_leader: Callable[[], bool], skipped: Callable[[int], None]) -> None:
        """Tick until cancelled; reports how many ticks were left out."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        tick = 0
        while True:
            due = max(tick + 1, int((loop.time() - start) / self.interval))
            skipped(due - tick - 1)
            tick = due
            await asyncio.sleep(start + tick * self.interval - loop.time())
            if not self.on_leader or is_leader():
                await self.function()
