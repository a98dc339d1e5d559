"""The folder in which one instance keeps its tables and its name: `<data_dir>/<app id>/<n>`.

Instances of an app may share a data folder. Each takes the first number that is free, by locking
the file `lock` in it; the operating system lets go of that when the process ends, however it ends.
An instance may so find the stores of another one: a store knows up to where it mirrors which
changelog, so that it is only a nearer place to restore from.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import structlog

from ratestream.streaming.errors import StateError

log = structlog.get_logger("ratestream.state")


class StateFolder:
    """One instance's own until `close`. Raises `StateError` when `max_instances` others have
    theirs, or when the folder cannot be written."""

    def __init__(self, of_app: Path, max_instances: int) -> None:
        self._lock, self.path = _first_free(of_app, max_instances)
        self.instance_id = _kept_id(self.path / "instance-id")
        """The same whenever this folder is taken, and never that of another."""
        log.info("state_folder_taken", path=str(self.path), instance_id=self.instance_id)

    def adopt(self, tables: Iterable[str]) -> None:
        """Take over what ratestream 0.1, with one instance for each data folder, kept one level
        higher. What another instance has taken over meanwhile is rebuilt from the changelog.
        Raises `StateError` for what cannot be moved."""
        for table in tables:
            old, new = self.path.parent / table, self.path / table
            if table.isdigit() or not old.is_dir():
                continue
            if new.exists():
                log.warning("old_state_not_needed", path=str(old), hint="it can be removed")
                continue
            try:
                old.rename(new)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StateError(
                    f"the state folder {old} cannot be moved to {new} ({error.strerror}): make "
                    f"both writable for the user of this process (chown -R {os.geteuid()}), or "
                    "move it away: its table is rebuilt from the changelog"
                ) from error
            log.info("old_state_adopted", path=str(old), to=str(new))

    def close(self) -> None:
        self._lock.close()


def _first_free(of_app: Path, max_instances: int) -> tuple[IO[bytes], Path]:
    try:
        for number in range(max_instances):
            path = of_app / str(number)
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "lock").open("ab")
            if _is_locked(lock):
                return lock, path
            lock.close()
    except OSError as error:
        raise StateError(
            f"the state folder {of_app} cannot be written ({error.strerror}): "
            f"make it writable for the user of this process (chown -R {os.geteuid()}), move it "
            "away (tables are rebuilt from the changelog), or set another data_dir"
        ) from error
    raise StateError(
        f"the state folder {of_app} is shared by {max_instances} instances already, and "
        "max_instances allows no more: raise it, or set another data_dir"
    )


def _kept_id(file: Path) -> str:
    try:
        if kept := file.read_text().strip():
            return kept
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{file} cannot be read ({error}): remove it") from error
    try:
        file.write_text(made := secrets.token_hex(8))
    except OSError as error:
        raise StateError(f"{file} cannot be written ({error.strerror})") from error
    return made


def _is_locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
