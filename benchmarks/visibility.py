"""When rows can be seen by others: `stored_at` is written before its transaction commits, so
somebody has to look.

A watcher asks Postgres again and again which transactions a reader would see now. Afterwards each
row names the transaction that wrote it (`xmin`), and so the first answer that showed it. That costs
the server next to nothing however many rows there are, and is late by `ASK_SECONDS` at most, or by
as long as the watcher itself was held up: never early.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import asyncpg

from benchmarks import BenchmarkError

ASK_SECONDS = 0.002
_JOIN_SECONDS = 10.0

_NOW = "SELECT pg_current_snapshot()::text"


@dataclass(frozen=True)
class Seen:
    """What a reader that began at `at` (seconds since the epoch) would see: the transactions
    below `end` but for those that were `running`."""

    at: float
    end: int
    running: frozenset[int]

    @classmethod
    def parse(cls, at: float, snapshot: str) -> Seen:
        """`snapshot` as Postgres writes a pg_snapshot, `xmin:xmax:xip,xip`."""
        _, end, running = snapshot.split(":")
        return cls(at, int(end), frozenset(map(int, filter(None, running.split(",")))))

    def shows(self, transaction: int) -> bool:
        return transaction < self.end and transaction not in self.running


def first_seen(transactions: Iterable[int], answers: Sequence[Seen]) -> dict[int, float]:
    """When each was first seen; those that never were are absent. `answers` are in order."""
    found: dict[int, float] = {}
    waiting = sorted(set(transactions))
    for answer in answers:
        begun = waiting[: bisect_left(waiting, answer.end)]
        found.update(dict.fromkeys(filter(answer.shows, begun), answer.at))
        waiting = [each for each in waiting if each not in found]
    return found


class Watcher:
    """Asks from a thread of its own; only answers that differ from the last one are kept."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = Event()
        self._failure: BaseException | None = None
        self._thread = Thread(target=self._run, name="watcher")
        self.answers: list[Seen] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Raises `BenchmarkError` when it has not been watching all the time."""
        self._stopping.set()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive() or self._failure:
            raise BenchmarkError(f"nobody watched what can be seen: {self._failure}")

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._failure = error

    async def _watch(self) -> None:
        connection = await asyncpg.connect(self._url)
        last = ""
        try:
            while True:
                is_last = self._stopping.is_set()
                snapshot = await connection.fetchval(_NOW)
                if snapshot != last:
                    self.answers.append(Seen.parse(time.time(), snapshot))
                    last = snapshot
                if is_last:
                    return
                await asyncio.sleep(ASK_SECONDS)
        finally:
            await connection.close()


@contextmanager
def watching(url: str) -> Iterator[Watcher]:
    watcher = Watcher(url)
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.stop()
