"""One partition of one table on disk: RocksDB, met here and nowhere else.

Values and the changelog offset they stand at are written in one WriteBatch, so that after a
kill -9 at any instruction a store is either right or knowingly old. Keys are prefixed: `d` for
the table's data, `m` for what the store knows about itself.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import structlog
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    Options,
    Rdict,
    RdictIter,
    WriteBatch,
    WriteBufferManager,
)

from ratestream.streaming.errors import StateError, StoreError

FORMAT = 1
"""Values alone."""
TIMED_FORMAT = 2
"""Values after the time they were written, 8 bytes."""

T = TypeVar("T")
_CHECKPOINT = b"mcheckpoint"
_FORMAT = b"mformat"
_CURRENT = b"mwritten"
_CHANGELOG = b"mchangelog"
_STREAM_TIME = b"mstreamtime"
_DAMAGED = "DAMAGED"
_TIME_BYTES = 8
_WRITE_BUFFER_BYTES = 2 * 1024 * 1024
_TOMBSTONES_SECONDS = 12 * 3600
_REFRESH_SECONDS = 3600

# However many partitions a process has, their stores share these: bytes of memory in all.
_CACHE = Cache(8 * 1024 * 1024)
_WRITE_BUFFERS = WriteBufferManager(8 * 1024 * 1024, False)


log = structlog.get_logger("ratestream.tables")


class Store:
    """A sorted map of bytes that knows which changelog it mirrors, and up to where. With `timed`
    it also keeps when each value was written.

    `changelog_id` names cluster and topic. A folder that mirrors another changelog, has a newer
    format, or is open in another process raises `StateError`. What cannot be trusted is wiped:
    what RocksDB finds damaged, or has no legible checkpoint, or has another format.
    """

    def __init__(self, path: Path, changelog_id: str, *, timed: bool = False) -> None:
        self.path = path
        self.timed = timed
        self.wiped: str | None = None
        """Why what was found here has been wiped; None when it has not."""
        self.stream_time = 0
        """The newest time in a timed store, also of what has been deleted; milliseconds."""
        self._changelog_id = changelog_id
        self._format = TIMED_FORMAT if timed else FORMAT
        try:
            if (path / _DAMAGED).exists():
                raise _UntrustedError("damaged")
            self._db = self._open()
        except _UntrustedError as error:
            self._db = self._open_anew(str(error))

    def _open(self) -> Rdict:
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_write_buffer_manager(_WRITE_BUFFERS)
        options.set_keep_log_file_num(2)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(_CACHE)
        options.set_block_based_table_factory(blocks)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = Rdict(str(self.path), options)
        except Exception as error:  # rocksdict raises nothing more precise
            if _is_damage(error):
                raise _UntrustedError("damaged") from error
            raise StateError(
                f"the state folder {self.path} cannot be opened ({error}); "
                "end what uses it, or move it away to rebuild the table from the changelog"
            ) from error
        try:
            self._claim(db)
        except ValueError as error:
            db.close()
            raise _UntrustedError("illegible") from error
        except BaseException:
            db.close()
            raise
        return db

    def _open_anew(self, reason: str) -> Rdict:
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise StateError(
                f"the state folder {self.path} is of no use ({reason}) and cannot be removed "
                f"({error.strerror}): remove it, the table is rebuilt from the changelog"
            ) from error
        self.wiped = reason
        return self._open()

    def _claim(self, db: Rdict) -> None:
        """Make sure that this is what it should be; a new folder becomes it."""
        format_version = int(db.get(_FORMAT) or self._format)
        changelog_id = (db.get(_CHANGELOG) or self._changelog_id.encode()).decode()
        if format_version > TIMED_FORMAT:
            raise StateError(
                f"the state folder {self.path} has format {format_version}, "
                f"this version of ratestream knows formats up to {TIMED_FORMAT}"
            )
        if changelog_id != self._changelog_id:
            raise StateError(
                f"the state folder {self.path} belongs to changelog {changelog_id}, "
                f"not to {self._changelog_id}: another cluster or a topic made anew; "
                "move the folder away to rebuild the table from the changelog"
            )
        if format_version != self._format:
            raise _UntrustedError(f"format {format_version}, not {self._format}")
        checkpoint = db.get(_CHECKPOINT)
        if checkpoint is not None:
            int(checkpoint)
        elif _holds_data(db):
            raise _UntrustedError("no checkpoint")
        self.stream_time = int(db.get(_STREAM_TIME) or 0)
        claim = WriteBatch(raw_mode=True)
        claim.put(_FORMAT, str(self._format).encode())
        claim.put(_CHANGELOG, self._changelog_id.encode())
        if checkpoint is None:
            claim.put(_CURRENT, _now())
        self._apply(db, claim)

    @property
    def checkpoint(self) -> int | None:
        """The changelog's next offset that this store does not contain; None when it is new."""
        value = self._db.get(_CHECKPOINT)
        return None if value is None else int(value)

    def get(self, key: bytes) -> bytes | None:
        """Raises `StoreError` when it is damaged there; it is then wiped when next opened."""
        try:
            value: bytes | None = self._db.get(b"d" + key)
        except DbClosedError:  # given away meanwhile: only a reader on another thread can be late
            return None
        except Exception as error:  # rocksdict raises nothing more precise
            raise self._damaged(error) from error
        return value

    def get_timed(self, key: bytes) -> tuple[bytes, int] | None:
        """Of a timed store: a value, and when it was written."""
        stored = self.get(key)
        if stored is None:
            return None
        return stored[_TIME_BYTES:], _time_of(stored)

    def write(
        self,
        changes: Mapping[bytes, bytes | None],
        checkpoint: int,
        times: Mapping[bytes, int] | None = None,
        *,
        is_current: bool = True,
    ) -> None:
        """Apply changes (None deletes) and the new checkpoint, all or nothing. A timed store
        wants the time of each change, milliseconds since the epoch. `is_current` says that the
        changelog has nothing more. Raises `StoreError`."""
        batch = WriteBatch(raw_mode=True)
        stream_time = self.stream_time
        if self.timed and times:
            stream_time = max(stream_time, *times.values())
            batch.put(_STREAM_TIME, str(stream_time).encode())
            changes = {
                key: None if value is None else _time_bytes(times[key]) + value
                for key, value in changes.items()
            }
        for key in sorted(changes):  # RocksDB adds a key near the last one in a third of the time
            value = changes[key]
            if value is None:
                batch.delete(b"d" + key)
            else:
                batch.put(b"d" + key, value)
        batch.put(_CHECKPOINT, str(checkpoint).encode())
        if is_current:
            batch.put(_CURRENT, _now())
        self._apply(self._db, batch)
        self.stream_time = stream_time

    def _apply(self, db: Rdict, batch: WriteBatch) -> None:
        try:
            db.write(batch)
        except Exception as error:  # rocksdict raises nothing more precise
            raise StoreError(
                f"the state folder {self.path} cannot be written ({error}): make room on its disk"
            ) from error

    def is_stale(self) -> bool:
        """Whether deletions that this store has not seen may be gone from the changelog by now:
        brokers keep tombstones for a day, unless told otherwise, after what they delete is gone."""
        return self._age() > _TOMBSTONES_SECONDS

    def refresh(self) -> None:
        """For whoever knows that it has all there is in the changelog. Raises `StoreError`."""
        if _REFRESH_SECONDS < self._age() <= _TOMBSTONES_SECONDS:
            batch = WriteBatch(raw_mode=True)
            batch.put(_CURRENT, _now())
            self._apply(self._db, batch)

    def _age(self) -> float:
        """Seconds since it had all there was, or was empty; infinite when that is not known."""
        current = self._db.get(_CURRENT)
        return math.inf if current is None else max(0.0, time.time() - int(current))

    def all_keys(self) -> list[bytes]:
        """In byte order. Read at once: a suspended iterator would keep the folder locked."""
        return self._scan(b"", None, _key)

    def timed_keys(self, start: bytes = b"", limit: int | None = None) -> list[tuple[bytes, int]]:
        """Of a timed store, from `start` on, in byte order: keys, and when each was written."""
        return self._scan(start, limit, lambda at: (_key(at), _time_of(at.value())))

    def _scan(self, start: bytes, limit: int | None, read: Callable[[RdictIter], T]) -> list[T]:
        found: list[T] = []
        try:
            at = self._db.iter()
            at.seek(b"d" + start)
            while at.valid() and len(found) != limit and at.key().startswith(b"d"):
                found.append(read(at))
                at.next()
            at.status()  # damage ends an iteration like the last key does
        except DbClosedError:  # as in `get`
            return []
        except Exception as error:  # rocksdict raises nothing more precise
            raise self._damaged(error) from error
        return found

    def _damaged(self, error: Exception) -> StoreError:
        (self.path / _DAMAGED).touch()
        return StoreError(
            f"the state folder {self.path} is damaged ({error}): the table is rebuilt from the "
            "changelog when it is next opened"
        )

    def estimated_bytes(self) -> int:
        """What the store takes on disk, as RocksDB estimates it."""
        return self._db.property_int_value("rocksdb.total-sst-files-size") or 0

    def estimated_entries(self) -> int:
        """Keys, as RocksDB estimates them: those written often count more than once for a time."""
        return self._db.property_int_value("rocksdb.estimate-num-keys") or 0

    def wipe(self, reason: str) -> None:
        """Forget everything, checkpoint included."""
        self.close()
        self.stream_time = 0
        self._db = self._open_anew(reason)

    def close(self) -> None:
        """Release the folder. What has been written stays, whatever the disk says now."""
        try:
            self._db.close()
        except DbClosedError:
            return
        except Exception as error:  # noqa: BLE001 - rocksdict raises nothing more precise
            log.warning("store_closed_uncleanly", path=str(self.path), error=str(error))


class _UntrustedError(Exception):
    """What is on the disk is of no use; the message says why."""


def _is_damage(error: Exception) -> bool:
    """Not a folder that is locked, full or forbidden: those are as good as they were."""
    return "Corruption" in str(error) or "No such file" in str(error)


def _holds_data(db: Rdict) -> bool:
    at = db.iter()
    at.seek(b"d")
    return at.valid() and bool(at.key().startswith(b"d"))


def _now() -> bytes:
    return str(int(time.time())).encode()


def _key(at: RdictIter) -> bytes:
    key: bytes = at.key()
    return key[1:]


def _time_bytes(milliseconds: int) -> bytes:
    return milliseconds.to_bytes(_TIME_BYTES, "big", signed=True)


def _time_of(stored: bytes) -> int:
    return int.from_bytes(stored[:_TIME_BYTES], "big", signed=True)
