"""Instances of the services, as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS = 30.0

_RESTART_SECONDS = 1.0
_LAST_BYTES = 6000


RATESTREAM = (sys.executable, "-m", "ratestream.cli")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Ours, with these settings of ratestream and no others. SIGABRT makes Python say where every
    thread is."""
    ours = {name: value for name, value in os.environ.items() if "RATESTREAM_" not in name}
    return {**ours, "PYTHONFAULTHANDLER": "1", **settings}


@dataclass(frozen=True)
class Death:
    """An instance that ended though nobody ended it, or did not end as it should."""

    instance: str
    how: str
    last_words: str


class Instance:
    """One process of a service. When it ends by itself, that is noted in `deaths`, and it is
    started again, as a supervisor would."""

    def __init__(
        self, name: str, settings: Mapping[str, str], log: Path, deaths: list[Death]
    ) -> None:
        self.name = name
        self.turn = asyncio.Lock()
        """Held by whoever lets something happen to it."""
        self._settings = settings
        self._log = log
        self._deaths = deaths
        self._process: Process | None = None
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def service(self) -> str:
        return self.name.rpartition("-")[0]

    async def start(self) -> None:
        with self._log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(*RATESTREAM, "run", self.service),
                env=environment(self._settings),
                cwd=self._log.parent,
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in this terminal is for us
            )
        watching = asyncio.create_task(self._watch(self._process))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):  # it may have ended by itself just now
            self._process.send_signal(number)

    async def kill(self) -> None:
        """As a power cut would: no handler runs. Does nothing when it does not run."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self._ended().wait()

    async def stop(self) -> None:
        """Ask it to end, which it must do with exit code 0 and within `STOP_SECONDS`."""
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        process = self._ended()
        try:
            code = await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.send_signal(signal.SIGABRT)
            await process.wait()
            self._note(f"did not stop within {STOP_SECONDS:.0f} s")
        else:
            # It may have been asked before it could listen.
            if code not in (0, -signal.SIGTERM):
                self._note(f"was asked to stop and ended with code {code}")

    def _ended(self) -> Process:
        """From now on its end is no surprise."""
        process, self._process = self._process, None
        assert process is not None
        return process

    async def _watch(self, process: Process) -> None:
        code = await process.wait()
        if self._process is process:
            self._note(f"ended by itself with code {code}")
            await asyncio.sleep(_RESTART_SECONDS)
        if self._process is process:
            await self.start()

    def _note(self, how: str) -> None:
        last = self._log.read_bytes()[-_LAST_BYTES:].decode(errors="replace")
        self._deaths.append(Death(self.name, how, last))
