"""The data folder of `ratestream up`: whose it is, and in which format.

`lock` is locked by the process that uses the folder and names its id; the operating system lets
go of it when that process ends, however it ends. `format.json` is `{"version": 1}`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from ratestream.up.errors import StartError

FORMAT = 1
MIGRATIONS: Mapping[int, Callable[[Path], None]] = {}
"""By the version that each one starts from; it leaves the folder in the next version."""


class DataFolder:
    """Made if missing, migrated if older, and this process's own until `close`.

    Raises `StartError` when it cannot be written, is in use, or has a format that this version
    of ratestream does not know.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = self._locked()
        try:
            self._migrate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._lock.close()

    def _locked(self) -> IO[str]:
        file: IO[str] | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+", encoding="ascii")
            if not _lock(file):
                raise StartError(
                    f"data_dir {self.path} is in use by {_owner(file)}: "
                    "end that one, or give another folder with --data-dir"
                )
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        except OSError as error:
            raise StartError(
                f"data_dir {self.path} cannot be written ({error.strerror}): "
                "give another folder with --data-dir"
            ) from error
        return file

    def _migrate(self) -> None:
        file = self.path / "format.json"
        version = _version(file)
        if version > FORMAT:
            raise StartError(
                f"data_dir {self.path} has format {version}, this version of ratestream knows "
                f"formats up to {FORMAT}: use a newer ratestream, or another folder"
            )
        for step in range(version, FORMAT):
            MIGRATIONS[step](self.path)
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps({"version": FORMAT}) + "\n", encoding="ascii")
        unfinished.replace(file)


def _version(file: Path) -> int:
    """What the folder says; a new one has today's format."""
    try:
        version = json.loads(file.read_bytes())["version"]
    except FileNotFoundError:
        return FORMAT
    except (ValueError, LookupError, TypeError):
        version = None
    if not isinstance(version, int) or version < min(MIGRATIONS, default=FORMAT):
        raise StartError(f'{file} should say {{"version": {FORMAT}}}: not a folder of ratestream?')
    return version


def _lock(file: IO[str]) -> bool:
    """Whether this process has the file now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(file: IO[str]) -> str:
    file.seek(0)
    pid = file.read(20).strip()
    file.close()
    return f"process {pid}" if pid else "another process"
