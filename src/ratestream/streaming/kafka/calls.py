"""Calls of librdkafka that have no time limit of their own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedCalls:
    """Makes calls one after another on a thread of its own, for which nobody has to wait: neither
    the caller longer than it says, nor the end of the process. A call that was given up is still
    made, and so are those behind it, when librdkafka comes back."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        Thread(target=self._run, name=name, daemon=True).start()

    def call(self, function: Callable[[], T], timeout: float) -> T:
        """What it returns or raises; `TimeoutError` after `timeout` seconds, or at once behind a
        call that was given up."""
        is_behind = self._last is not None and not self._last.done()
        self._last = future = Future[T]()
        self._calls.put((function, future))
        return future.result(0 if is_behind else timeout)

    def end(self) -> None:
        """After the calls that were asked for, there are no more."""
        self._calls.put(None)

    def _run(self) -> None:
        while (work := self._calls.get()) is not None:
            function, future = work
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - the caller's to handle
                future.set_exception(error)
