"""Threads on which a worker meets its broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context, copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Call(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    context: Context
    future: Future[Any]


class BrokerThread:
    """A thread on which what blocks on the broker happens, one after another. What was called is
    done there even when its caller is cancelled. The end of the process does not wait for it: a
    call that never returns must not keep a worker from exiting."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        Thread(target=self._run, name=name, daemon=True).start()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self.start(function, *arguments)

    def start(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """As `call`; what it returns or raises is had by awaiting the future, and must be."""
        return asyncio.wrap_future(self._put(function, *arguments))

    def close(self, last: Callable[[], object] | None = None) -> None:
        """After what was called, and `last`, there is no more."""
        if last is not None:
            self._put(last)
        self._calls.put(None)

    def _put(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        context = copy_context()  # what is logged there names the service, too
        self._calls.put(_Call(function, arguments, context, future))
        return future

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.future.set_result(call.context.run(call.function, *call.arguments))
            except BaseException as error:  # noqa: BLE001 - the caller's to handle
                call.future.set_exception(error)
            del call  # nothing is kept alive by a thread that waits
