"""Bringing stores up to date with their changelogs, before a partition is worked on.

What restores reads as a reader of committed records does, with a consumer of its own, and is done
when its *position* has come to where the log ended when it began. The last record's offset says
nothing: a log may end in the marks of transactions, in aborted records, or in compacted ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from ratestream.streaming.errors import StateError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.store import Store
from ratestream.streaming.tables import AnyTable
from ratestream.streaming.types import Broker, ConsumerConfig, OffsetOutOfRange, TopicPartition

_RESTORE_BATCH_RECORDS = 20_000
_BUFFER_BYTES = 32 * 1024 * 1024
_REPORT_SECONDS = 10.0

log = structlog.get_logger("ratestream.tables")


@dataclass(slots=True)
class Copy:
    """A store, the position up to which it has its changelog, and where that ended when asked."""

    table: AnyTable
    store: Store
    position: int
    end: int

    @property
    def remaining(self) -> int:
        return max(0, self.end - self.position)


class Follower:
    """Applies changelogs to stores, a batch at a time, with a consumer of its own. Copies can come
    and go between any two calls; their stores are the caller's to close."""

    def __init__(
        self, broker: Broker, client_id: str, metrics: WorkerMetrics, buffer_bytes: int
    ) -> None:
        self._consumer = broker.consumer(
            ConsumerConfig(client_id=client_id, offset_reset="error", buffer_bytes=buffer_bytes)
        )
        self._metrics = metrics
        self._must_assign = False
        self.copies: dict[TopicPartition, Copy] = {}

    def add(self, table: AnyTable, partition: int, store: Store) -> Copy:
        """Follow from where the store stands; one that cannot be trusted is rebuilt, as is later
        one that the changelog can no longer complete. Raises `StateError` when the store is ahead
        of the changelog: it then belongs to another history. Raises `BrokerError`, `StoreError`.
        """
        changelog = TopicPartition(table.changelog.name, partition)
        low, end = self._consumer.watermarks(changelog).low, self._consumer.log_end(changelog)
        start = store.checkpoint
        if start is not None and start > end:
            raise StateError(
                f"the state folder {store.path} stands at offset {start} of "
                f"{changelog.topic}[{partition}], which ends at {end}: the topic was made anew; "
                "move the folder away to rebuild the table from the changelog"
            )
        copy = Copy(table, store, low if start is None else start, end)
        if store.wiped is not None:
            self._tell_rebuilt(changelog, copy, store.wiped)
        elif start is not None and start < end and store.is_stale():
            self._rebuild(changelog, copy, low, "too old to know all deletions")
        self.copies[changelog] = copy
        self._must_assign = True
        return copy

    def remove(self, changelogs: Iterable[TopicPartition]) -> None:
        """They stay assigned, paused, until there are others: to assign anew would throw away what
        is fetched already of those that stay."""
        removed = [each for each in changelogs if self.copies.pop(each, None) is not None]
        if removed and not self._must_assign:
            self._consumer.pause(removed)

    def step(self, max_records: int, timeout: float) -> int:
        """Read one batch, and write it to the stores; returns the number of records. Raises
        `BrokerError` and `StoreError`: what is not written then is read again."""
        if self._must_assign:
            self._consumer.assign({each: copy.position for each, copy in self.copies.items()})
        self._must_assign = True
        try:
            found = self._consumer.poll_changes(max_records, timeout)
        except OffsetOutOfRange as error:
            self._start_over(error.partition)
            return 0
        for changelog, changes in found.items():
            copy = self.copies[changelog]
            copy.store.write(changes.values, changes.next, changes.times, is_current=False)
            copy.position = changes.next
            self._metrics.restored.labels(copy.table.name).inc(changes.records)
        for changelog, copy in self.copies.items():
            copy.position = max(copy.position, self._consumer.position(changelog) or 0)
        self._must_assign = False
        return sum(changes.records for changes in found.values())

    def lag(self, timeout: float) -> int:
        """Offsets between the copies and the ends that their changelogs have now; a copy without
        any is marked as current. Raises `BrokerError`, `StoreError`."""
        lag = 0
        for changelog, copy in self.copies.items():
            copy.end = self._consumer.log_end(changelog, timeout)
            lag += copy.remaining
            if not copy.remaining:
                copy.store.refresh()
        return lag

    def close(self) -> None:
        self._consumer.close()

    def _start_over(self, changelog: TopicPartition) -> None:
        copy = self.copies[changelog]
        low, copy.end = self._consumer.watermarks(changelog).low, self._consumer.log_end(changelog)
        self._rebuild(changelog, copy, low, "the changelog begins later")

    def _rebuild(self, changelog: TopicPartition, copy: Copy, low: int, reason: str) -> None:
        copy.store.wipe(reason)
        copy.position = low
        self._tell_rebuilt(changelog, copy, reason)

    def _tell_rebuilt(self, changelog: TopicPartition, copy: Copy, reason: str) -> None:
        log.warning(
            "table_rebuilt",
            table=copy.table.name,
            partition=changelog.partition,
            reason=reason,
            from_offset=copy.position,
            to_offset=copy.end,
        )
        self._metrics.rebuilt.labels(copy.table.name).inc()


class Restorer:
    """Brings stores up to the end of their changelogs, a batch at a time. It can be given more
    partitions, or told to drop some, between any two steps."""

    def __init__(self, broker: Broker, client_id: str, metrics: WorkerMetrics) -> None:
        self._follower = Follower(broker, f"{client_id}-restore", metrics, _BUFFER_BYTES)
        self._metrics = metrics
        self._started: float | None = None
        self._reported = 0.0
        self._records = 0

    @property
    def active(self) -> bool:
        return bool(self._follower.copies)

    def remaining(self) -> int:
        """Records still to be read, at most: compacted ones count, too."""
        copies = list(self._follower.copies.values())  # asked by other threads as well
        return sum(copy.remaining for copy in copies)

    def progress(self) -> str | None:
        """For people who wait; None when nothing is being restored."""
        return f"restoring tables: {self.remaining():,} records to go" if self.active else None

    def add(self, table: AnyTable, partition: int, store: Store) -> None:
        """Restore `store` up to the end its changelog has now; see `Follower.add`."""
        self._follower.add(table, partition, store)

    def drop(self, sources: set[TopicPartition]) -> None:
        """Stop restoring what is split like these partitions; the stores are the caller's."""
        self._follower.remove(
            [
                changelog
                for changelog, copy in self._follower.copies.items()
                if TopicPartition(copy.table.source.name, changelog.partition) in sources
            ]
        )
        if not self.active:
            self._started = None  # not to be told as done
        self._report()

    def waits_for(self, source: TopicPartition) -> bool:
        """Whether a table that is split like this partition's topic is still being restored."""
        return any(
            TopicPartition(copy.table.source.name, changelog.partition) == source
            for changelog, copy in self._follower.copies.items()
        )

    def step(self, timeout: float) -> None:
        """Apply one batch. Raises `BrokerError` and `StoreError`; stores then stand where they
        stood, and the next step goes on from there."""
        self._finish()  # what has nothing to read need not wait for a poll
        self._report()
        if self.active:
            self._records += self._follower.step(_RESTORE_BATCH_RECORDS, timeout)
            self._finish()
            self._report()

    def close(self) -> None:
        self._follower.close()

    def _finish(self) -> None:
        copies = self._follower.copies
        done = [changelog for changelog, copy in copies.items() if not copy.remaining]
        for changelog in done:
            copies[changelog].store.write({}, copies[changelog].position)
        self._follower.remove(done)

    def _report(self) -> None:
        """To the log at the start, at the end and now and then; to the metrics always."""
        now, partitions, remaining = time.monotonic(), len(self._follower.copies), self.remaining()
        self._metrics.restoring.set(partitions)
        self._metrics.restore_remaining.set(remaining)
        if self._started is None and partitions:
            self._started = self._reported = now
            self._records = 0
            log.info("restoring_tables", partitions=partitions, records_to_go=remaining)
        elif self._started is not None and not partitions:
            seconds = round(now - self._started, 3)
            self._started = None
            log.info("tables_restored", records=self._records, seconds=seconds)
        elif self._started is not None and now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            log.info("restoring_tables", partitions=partitions, records_to_go=remaining)
