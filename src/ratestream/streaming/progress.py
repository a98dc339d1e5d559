"""Whether a worker gets on: committed progress against what there is to read."""

from __future__ import annotations

import time


class Progress:
    """When a worker last got on. It gets on when it commits, restores, has nothing to do, or waits
    for something that it names; what it does not do is run in circles."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._made_at = time.monotonic()

    def made(self) -> None:
        self._made_at = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the worker last got on."""
        return time.monotonic() - self._made_at

    @property
    def is_doubtful(self) -> bool:
        return self.age > self._timeout / 2

    @property
    def has_stalled(self) -> bool:
        return self.age > self._timeout
