"""One partition of one table on disk: RocksDB, met here and nowhere else.

Values and the changelog offset they stand at are written in one WriteBatch, so that after a
kill -9 at any instruction a store is either right or knowingly old. Keys are prefixed: `d` for
the table's data, `m` for what the store knows about itself.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DbClosedError,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
)

from ratestream.streaming.errors import StateError, StoreError

FORMAT = 1
_CHECKPOINT = b"mcheckpoint"
_FORMAT = b"mformat"
_WRITTEN = b"mwritten"
_CHANGELOG = b"mchangelog"
_WRITE_BUFFER_BYTES = 8 * 1024 * 1024

# However many partitions a process has, their stores share these: bytes of memory in all.
_CACHE = Cache(32 * 1024 * 1024)
_WRITE_BUFFERS = WriteBufferManager(32 * 1024 * 1024, False)


class Store:
    """A sorted map of bytes that knows which changelog it mirrors, and up to where.

    `changelog_id` names cluster and topic. A folder that mirrors another changelog, has a newer
    format, or is open in another process raises `StateError`.
    """

    def __init__(self, path: Path, changelog_id: str) -> None:
        self.path = path
        self._changelog_id = changelog_id
        self._open()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_write_buffer_manager(_WRITE_BUFFERS)
        options.set_keep_log_file_num(2)
        blocks = BlockBasedOptions()
        blocks.set_block_cache(_CACHE)
        options.set_block_based_table_factory(blocks)
        try:
            self._db = Rdict(str(self.path), options)
        except Exception as error:  # rocksdict raises nothing more precise
            raise StateError(
                f"the state folder {self.path} cannot be opened ({error}); "
                "end what uses it, or move it away to rebuild the table from the changelog"
            ) from error
        self._claim()

    def _claim(self) -> None:
        format_version = int(self._db.get(_FORMAT) or FORMAT)
        changelog_id = (self._db.get(_CHANGELOG) or self._changelog_id.encode()).decode()
        if format_version > FORMAT:
            self.close()
            raise StateError(
                f"the state folder {self.path} has format {format_version}, "
                f"this version of ratestream knows formats up to {FORMAT}"
            )
        if changelog_id != self._changelog_id:
            self.close()
            raise StateError(
                f"the state folder {self.path} belongs to changelog {changelog_id}, "
                f"not to {self._changelog_id}: another cluster or a topic made anew; "
                "move the folder away to rebuild the table from the changelog"
            )
        self._db[_FORMAT] = str(FORMAT).encode()
        self._db[_CHANGELOG] = self._changelog_id.encode()

    @property
    def checkpoint(self) -> int | None:
        """The changelog's next offset that this store does not contain; None when it is new."""
        value = self._db.get(_CHECKPOINT)
        return None if value is None else int(value)

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(b"d" + key)
        except DbClosedError:  # given away meanwhile: only a reader on another thread can be late
            return None
        return value

    def write(self, changes: Mapping[bytes, bytes | None], checkpoint: int) -> None:
        """Apply changes (None deletes) and the new checkpoint, all or nothing. Raises
        `StoreError`."""
        batch = WriteBatch(raw_mode=True)
        for key, value in changes.items():
            if value is None:
                batch.delete(b"d" + key)
            else:
                batch.put(b"d" + key, value)
        batch.put(_CHECKPOINT, str(checkpoint).encode())
        batch.put(_WRITTEN, str(int(time.time())).encode())
        try:
            self._db.write(batch)
        except Exception as error:  # rocksdict raises nothing more precise
            raise StoreError(
                f"the state folder {self.path} cannot be written ({error}): make room on its disk"
            ) from error

    def age(self) -> float:
        """Seconds since the last write; infinite when that is not known."""
        written = self._db.get(_WRITTEN)
        return math.inf if written is None else max(0.0, time.time() - int(written))

    def all_keys(self) -> list[bytes]:
        """In byte order. Read at once: a suspended iterator would keep the folder locked."""
        keys: list[bytes] = []
        for key in self._db.keys(from_key=b"d"):
            if not isinstance(key, bytes) or not key.startswith(b"d"):
                break
            keys.append(key[1:])
        return keys

    def estimated_bytes(self) -> int:
        """What the store takes on disk, as RocksDB estimates it."""
        return self._db.property_int_value("rocksdb.total-sst-files-size") or 0

    def wipe(self) -> None:
        """Forget everything, checkpoint included."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._open()

    def close(self) -> None:
        self._db.close()
