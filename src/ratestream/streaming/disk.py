"""How much room there is on a disk, asked without trusting the disk to answer."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from threading import Thread

_SECONDS = 0.1
_UNKNOWN = (math.nan, math.nan)


class Disk:
    """The file system that `folder` is on, or will be once it exists. A network's file system may
    hang and hang whoever asks it: the question is asked in a thread, one at a time, and the
    answer is NaN while there is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._asking: Thread | None = None
        self._answer = _UNKNOWN

    def free_bytes(self) -> float:
        """What this process may still write. Blocks for 0.1 s at most."""
        return self._asked()[0]

    def size_bytes(self) -> float:
        """What there is in all. Blocks for 0.1 s at most."""
        return self._asked()[1]

    def _asked(self) -> tuple[float, float]:
        if self._asking is None or not self._asking.is_alive():
            self._answer = _UNKNOWN
            self._asking = Thread(target=self._ask, name=f"disk {self._folder}", daemon=True)
            self._asking.start()
            self._asking.join(_SECONDS)
        return self._answer

    def _ask(self) -> None:
        try:
            usage = shutil.disk_usage(_nearest_existing(self._folder))
        except OSError:
            return
        self._answer = usage.free, usage.total


def _nearest_existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))
