"""Keeps the services running: one that fails is started again, and none disturbs another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import structlog

from ratestream.monitoring import run_monitored
from ratestream.observability import service_name
from ratestream.settings import Settings, SettingsError
from ratestream.storage.errors import ClusterMismatchError, SchemaError
from ratestream.streaming import App, Broker, ConfigurationError, Worker
from ratestream.up.throughput import Throughput

Build = Callable[[Settings], App]

_STEADY_SECONDS = 60.0
"""A service that ran this long before it failed is restarted as if it had failed first now."""

_HOPELESS = (ConfigurationError, SettingsError, SchemaError, ClusterMismatchError)

log = structlog.get_logger("ratestream.up")


class ServiceState(Enum):
    """Where a supervised service is; every state but the first and the last two may repeat."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What there is to show of one service."""

    name: str
    state: ServiceState
    reason: str
    address: str
    throughput: Throughput
    restarts: int


class Supervised:
    """One service: built anew, with a worker of its own, each time it is started.

    After a failure it waits between `runtime.retry_backoff_min` and `…_max` seconds, longer each
    time, with jitter. What trying again cannot help is final: the state is FAILED.
    """

    def __init__(self, name: str, build: Build, settings: Settings, broker: Broker) -> None:
        self.name = name
        self.restarts = 0
        self._build = build
        self._settings = settings
        self._broker = broker
        self._worker: Worker | None = None
        self._throughput = Throughput()
        self._reason = ""
        self._state: ServiceState | None = None
        """What holds while there is no worker to ask."""
        self._was_ready = False
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[None] | None = None

    def start(self) -> None:
        with service_name(self.name):
            self._task = asyncio.create_task(self._run(), name=f"supervise {self.name}")

    @property
    def has_failed(self) -> bool:
        return self._state is ServiceState.FAILED

    def status(self) -> ServiceStatus:
        """As of now; rates are those since the last call of `sample`."""
        state, reason = self._state_and_reason()
        address = self._worker.address if self._worker else ""
        return ServiceStatus(self.name, state, reason, address, self._throughput, self.restarts)

    def sample(self) -> None:
        """Measure the throughput since the last sample."""
        if self._worker is not None:
            self._throughput = self._throughput.next(self._worker.app.registry)

    async def stop(self, timeout: float) -> None:
        """Finish and commit what is begun; after `timeout` seconds it is dropped instead."""
        self._stopping.set()
        if self._worker is not None:
            self._worker.stop()
        if self._task is None:
            return
        done, _ = await asyncio.wait((self._task,), timeout=timeout)
        if not done:
            log.warning("stop_timed_out", service=self.name, seconds=round(timeout, 1))
            self.cancel()

    def cancel(self) -> None:
        """End without finishing anything; what is not committed will be read again."""
        self._stopping.set()
        if self._attempt is not None and not self._attempt.cancelling():
            self._attempt.cancel()

    async def ended(self, timeout: float) -> None:
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=timeout)

    def _state_and_reason(self) -> tuple[ServiceState, str]:
        if self._state is not None:
            return self._state, self._reason
        if self._worker is None:
            return ServiceState.STARTING, ""
        reasons = self._worker.readiness()
        if not reasons:
            self._was_ready = True
            return ServiceState.READY, ""
        state = ServiceState.NOT_READY if self._was_ready else ServiceState.STARTING
        return state, reasons[0]

    async def _run(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            error = await self._run_once()
            if self._stopping.is_set():
                break
            if isinstance(error, _HOPELESS):
                self._give_up(error)
                return
            attempt = 0 if time.monotonic() - started > _STEADY_SECONDS else attempt
            await self._wait_before_restart(attempt, error)
            attempt += 1
        self._state = ServiceState.STOPPED

    async def _run_once(self) -> BaseException | None:
        """Until the service ends or is cancelled; returns what it failed with."""
        self._state, self._was_ready = None, False
        self._attempt = asyncio.create_task(self._run_worker(), name=f"run {self.name}")
        await asyncio.wait((self._attempt,))
        return None if self._attempt.cancelled() else self._attempt.exception()

    async def _run_worker(self) -> None:
        app = self._build(self._settings)
        self._throughput = Throughput()
        self._worker = Worker(app, self._broker, self._settings.worker_config(self.name))
        try:
            await run_monitored(self._worker, self._settings, owns_process=False)
        finally:
            self._worker = None

    def _give_up(self, error: BaseException) -> None:
        self._state, self._reason = ServiceState.FAILED, _one_line(error)
        log.error("service_failed", service=self.name, reason=self._reason)

    async def _wait_before_restart(self, attempt: int, error: BaseException | None) -> None:
        runtime = self._settings.runtime
        delay = min(runtime.retry_backoff_max, runtime.retry_backoff_min * 2 ** min(attempt, 30))
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads restarts, guards nothing
        self.restarts += 1
        self._reason = _one_line(error) if error else "ended by itself"
        self._state = ServiceState.RESTARTING
        log.error(
            "service_restarting",
            service=self.name,
            restarts=self.restarts,
            in_seconds=round(delay, 1),
            reason=self._reason,
            exc_info=error,
        )
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return


async def stop_all(services: Sequence[Supervised], seconds: float, at_once: asyncio.Event) -> None:
    """Stop the services, last started first, within `seconds` together; `at_once` cuts that
    short. One that does not end even when cancelled is left behind."""
    orderly = asyncio.create_task(_stop_in_order(services, seconds))
    hurry = asyncio.create_task(at_once.wait())
    await asyncio.wait((orderly, hurry), return_when=asyncio.FIRST_COMPLETED)
    for task in (orderly, hurry):
        task.cancel()
    for service in services:
        service.cancel()
    await asyncio.gather(*(service.ended(1.0) for service in services))


async def _stop_in_order(services: Sequence[Supervised], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for left, service in zip(range(len(services), 0, -1), reversed(services), strict=True):
        share = max(0.1, (deadline - time.monotonic()) / left)
        await service.stop(max(share, min(1.0, deadline - time.monotonic())))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
