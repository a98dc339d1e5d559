"""Retention and compaction: what keeps the local broker's file within its bounds."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock

from ratestream.streaming.local.storage import (
    Batch,
    LocalBrokerConfig,
    Log,
    Storage,
    Topic,
    decode,
    delete_batches,
    encode,
    insert_batches,
)

# Giving pages back to the disk is this much slower, for each byte, than reading or deleting.
SHRINKING_COSTS = 16


@dataclass(slots=True)
class _Compaction:
    """One pass over a log: first learn the newest offset of each key that is new since the last
    pass, from `learned` up to `end`; then sweep what it supersedes, from the beginning."""

    learned: int
    end: int
    newest: dict[bytes | None, int] = field(default_factory=dict)
    swept: int = 0
    swept_bytes: int = 0


class Cleaner:
    """Retention and compaction. Locks the storage for one small transaction at a time."""

    def __init__(self, storage: Storage, config: LocalBrokerConfig) -> None:
        self._storage = storage
        self._config = config
        self._running = Lock()
        self._compactions: dict[Log, _Compaction] = {}

    def run(self, now: int) -> bool:
        """True when a bound stopped it somewhere."""
        with self._running:
            stopped = [
                self._clean(topic, log, now)
                for topic in list(self._storage.topics.values())
                for log in topic.logs
            ]
            self._storage.shrink(self._config.maintenance_bytes // SHRINKING_COSTS)
            return any(stopped)

    def _clean(self, topic: Topic, log: Log, now: int) -> bool:
        if topic.config.cleanup_policy == "compact":
            return self._compact(log, now)
        retention_ms = topic.config.retention_ms
        oldest = -1 if retention_ms < 0 else now - retention_ms
        return self._delete_oldest(log, oldest, self._excess(topic, log))

    def _excess(self, topic: Topic, log: Log) -> int:
        """The part of what `topic` has too much that is in `log`."""
        total = sum(each.extent.bytes for each in topic.logs)
        if self._config.retention_bytes < 0 or total <= self._config.retention_bytes:
            return 0
        return log.extent.bytes * (total - self._config.retention_bytes) // total

    def _delete_oldest(self, log: Log, oldest: int, excess: int) -> bool:
        """Whole batches from the beginning, all of whose records are from before `oldest`
        (milliseconds), and further ones until `excess` bytes are gone."""
        with self._storage.changed:
            low, freed, stopped = log.extent.low, 0, False
            with closing(self._storage.batch_sizes(log)) as batches:
                for next_, timestamp, size in batches:
                    if timestamp >= oldest and freed >= excess:
                        break
                    if stopped := freed >= self._config.maintenance_bytes:
                        break
                    low, freed = next_, freed + size
            if freed:
                extent = log.extent._replace(low=low, bytes=log.extent.bytes - freed)
                with self._storage.update({log: extent}) as connection:
                    delete_batches(connection, log, 0, low)
        return stopped

    def _compact(self, log: Log, now: int) -> bool:
        if log not in self._compactions:
            extent = log.extent
            new = extent.bytes - extent.compacted_bytes
            if new <= extent.compacted_bytes + self._config.compaction_min_bytes:
                return False
            self._compactions[log] = _Compaction(learned=extent.compacted, end=extent.high)
        compaction = self._compactions[log]
        if compaction.learned < compaction.end:
            self._learn(log, compaction)
        else:
            self._sweep(log, compaction, now)
        return log in self._compactions

    def _learn(self, log: Log, compaction: _Compaction) -> None:
        size = self._config.maintenance_bytes
        batches = self._chunk(log, compaction.learned, compaction.end, size)
        for batch in batches:
            for record in decode(batch.records):
                compaction.newest[record.key] = record.offset
            compaction.learned = batch.next
            if len(compaction.newest) >= self._config.compaction_max_keys:
                compaction.end = batch.next
                return
        if not batches:
            compaction.learned = compaction.end

    def _sweep(self, log: Log, compaction: _Compaction, now: int) -> None:
        allowed = self._config.maintenance_bytes
        while allowed > 0:
            size = self._config.batch_bytes
            batches = self._chunk(log, compaction.swept, compaction.end, size)
            if not batches:
                self._finish(log, compaction)
                return
            compaction.swept_bytes += self._rewrite(log, compaction, batches, now)
            compaction.swept = batches[-1].next
            allowed -= sum(len(batch.records) for batch in batches)

    def _rewrite(self, log: Log, compaction: _Compaction, batches: list[Batch], now: int) -> int:
        """Make one batch of what is left of these; returns its bytes."""
        expired = now - round(self._config.delete_retention * 1000)
        before = [(batch, record) for batch in batches for record in decode(batch.records)]
        after = [
            record
            for batch, record in before
            if compaction.newest.get(record.key, record.offset) <= record.offset
            and (record.value is not None or batch.written >= expired)
        ]
        old_size = sum(len(batch.records) for batch in batches)
        if len(batches) == 1 and len(after) == len(before):
            return old_size
        merged = Batch(
            batches[-1].next,
            max(batch.timestamp for batch in batches),
            max(batch.written for batch in batches),
            encode(after),
        )
        new_size = len(merged.records) if after else 0
        with self._storage.changed:
            extent = log.extent._replace(bytes=log.extent.bytes - old_size + new_size)
            with self._storage.update({log: extent}) as connection:
                delete_batches(connection, log, compaction.swept, merged.next)
                insert_batches(connection, [(log.id, merged)] if after else [])
        return new_size

    def _finish(self, log: Log, compaction: _Compaction) -> None:
        with self._storage.changed:
            extent = log.extent._replace(
                compacted=compaction.end, compacted_bytes=compaction.swept_bytes
            )
            with self._storage.update({log: extent}):
                del self._compactions[log]

    def _chunk(self, log: Log, start: int, end: int, max_bytes: int) -> list[Batch]:
        """Batches after `start` until `end` or, sooner, until `max_bytes` are reached."""
        found: list[Batch] = []
        with self._storage.changed, closing(self._storage.batches(log, start)) as batches:
            for batch in batches:
                if batch.next > end or max_bytes <= 0:
                    break
                found.append(batch)
                max_bytes -= len(batch.records)
        return found
