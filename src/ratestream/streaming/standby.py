"""Standby copies: the tables of the partitions that other instances own, kept up to date here.

Which instance gets a partition next cannot be chosen, so that each follows all that are not its
own. A takeover then restores the last moments instead of the whole changelog. Nothing that befalls
a copy stops the work on owned partitions: the copy waits, or is made anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from ratestream.streaming.errors import BrokerError, StateError, StoreError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.restoring import Follower
from ratestream.streaming.tables import AnyTable
from ratestream.streaming.types import Broker, TopicPartition

_BUFFER_BYTES = 8 * 1024 * 1024
_LAG_SECONDS = 1.0

log = structlog.get_logger("ratestream.tables")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A partition to be followed, and where its store is."""

    table: AnyTable
    folder: Path
    changelog_id: str


class Standby:
    """Follows changelogs for as long as it may. Used by one thread at a time; the stores it has
    open are its own until `release`. After a failure it waits for `pause` seconds."""

    def __init__(
        self, broker: Broker, client_id: str, metrics: WorkerMetrics, pause: float = 30.0
    ) -> None:
        self._pause_seconds = pause
        self._follower = Follower(broker, f"{client_id}-standby", metrics, _BUFFER_BYTES)
        self._wanted: dict[TopicPartition, _Wanted] = {}
        self._paused_until = 0.0

    def follow(self, table: AnyTable, partition: int, folder: Path, changelog_id: str) -> None:
        """Keep a copy where `Table.open` would open it, from the next step on. Does nothing else
        yet, so that it can be called during a rebalance."""
        changelog = TopicPartition(table.changelog.name, partition)
        self._wanted[changelog] = _Wanted(table, folder, changelog_id)

    def release(self, table: AnyTable, partition: int) -> None:
        """Close the copy: its store can be opened by the owner of the partition, which is now
        this instance. Does nothing to what is not followed."""
        changelog = TopicPartition(table.changelog.name, partition)
        self._wanted.pop(changelog, None)
        self._close(changelog)

    def step(self, max_records: int) -> bool:
        """Open what is to be followed, or apply one batch, without waiting for more; returns
        whether there is likely to be more at once."""
        if time.monotonic() < self._paused_until:
            return False
        try:
            changelog = next((each for each in self._wanted if not self._has(each)), None)
            if changelog is not None:
                self._open(changelog)
                return True
            if self._wanted:
                return self._follower.step(max_records, 0.0) == max_records
        except BrokerError as error:
            self._pause(error)
        except (StateError, StoreError) as error:
            self._close_all_and_pause(error)
        return False

    def lag(self) -> int:
        """Changelog records that the copies do not have yet, at most; what has not been opened
        yet does not count. Raises `BrokerError`."""
        try:
            return self._follower.lag(_LAG_SECONDS)
        except StoreError as error:
            self._close_all_and_pause(error)
            return 0

    def close(self) -> None:
        """Close every copy; each store goes on from where it stands when it is opened again."""
        for changelog in list(self._wanted):
            self._close(changelog)
        self._wanted.clear()
        self._follower.close()

    def _close_all_and_pause(self, error: Exception) -> None:
        """A store that failed must be opened again; which one it was does not matter."""
        for changelog in list(self._wanted):
            self._close(changelog)
        self._pause(error)

    def _has(self, changelog: TopicPartition) -> bool:
        return changelog in self._follower.copies

    def _open(self, changelog: TopicPartition) -> None:
        wanted = self._wanted[changelog]
        store = wanted.table.store(changelog.partition, wanted.folder, wanted.changelog_id)
        try:
            self._follower.add(wanted.table, changelog.partition, store)
        except BaseException:
            store.close()
            raise

    def _close(self, changelog: TopicPartition) -> None:
        copy = self._follower.copies.get(changelog)
        if copy is not None:
            self._follower.remove([changelog])
            copy.store.close()

    def _pause(self, error: Exception) -> None:
        log.warning("standby_paused", reason=str(error), seconds=self._pause_seconds)
        self._paused_until = time.monotonic() + self._pause_seconds
