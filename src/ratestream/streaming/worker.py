"""The worker: one app's life. It serves pages, finds the cluster and its topics, keeps a pipeline
going, and calls timers and tasks. What a pipeline does is in `pipeline.py`."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path

import structlog

from ratestream.streaming.app import TRANSACTION_PROBE, App
from ratestream.streaming.errors import (
    AccessError,
    AuthorizationError,
    BrokerError,
    ConfigurationError,
    StalledError,
    StreamingError,
    TopicError,
)
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.outbox import AcknowledgedOutbox
from ratestream.streaming.partitions import Identity, Instance, Surroundings
from ratestream.streaming.pipeline import Pipeline
from ratestream.streaming.progress import Progress
from ratestream.streaming.statefolder import StateFolder
from ratestream.streaming.threads import BrokerThread
from ratestream.streaming.types import Broker, TopicSpec, WorkerConfig
from ratestream.streaming.web import WebServer, build_web

_STOP_SECONDS = 2.0
_WATCH_SECONDS = 1.0
_ENDING_SECONDS = 75.0
_BLOCKED_SECONDS = 30.0
_COLLECTED_OBJECTS = 50_000

log = structlog.get_logger("ratestream.worker")


class WorkerState(Enum):
    """Where a worker is in its life."""

    NEW = "new"
    CONNECTING = "connecting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_NEXT_STATES = {
    WorkerState.NEW: {WorkerState.CONNECTING},
    WorkerState.CONNECTING: {WorkerState.RUNNING, WorkerState.WAITING},
    WorkerState.RUNNING: {WorkerState.WAITING},
    WorkerState.WAITING: {WorkerState.RUNNING, WorkerState.CONNECTING},
    WorkerState.STOPPING: {WorkerState.STOPPED},
    WorkerState.STOPPED: set(),
    WorkerState.FAILED: set(),
}
_ENDING = {WorkerState.STOPPING, WorkerState.FAILED}
_NOT_YET_RUNNING = {WorkerState.NEW, WorkerState.CONNECTING}


class Worker:
    """Runs one app: serves its pages, keeps its pipeline going, calls its timers and tasks.

    A broker that fails is waited for, with growing delays and jitter. Anything else that fails
    ends `run` with that error.
    """

    def __init__(self, app: App, broker: Broker, config: WorkerConfig) -> None:
        self.app = app
        self.state = WorkerState.NEW
        self.address = ""
        self._broker = broker
        self._config = config
        self._metrics = self._new_metrics()
        self._thread = BrokerThread(f"{app.id}-broker")
        self._pipeline: Pipeline | None = None
        self._outbox: AcknowledgedOutbox | None = None
        self._stopping = asyncio.Event()
        self._waiting_for = ""
        self._has_progressed = False
        self._progress = Progress(config.progress_timeout)
        self._ending_since: float | None = None

    def _new_metrics(self) -> WorkerMetrics:
        app = self.app
        dead_letter = app.dead_letter.name if app.dead_letter else None
        metrics = WorkerMetrics(app.registry, Path(self._config.data_dir), dead_letter)
        inputs = {agent.topic.name for agent in app.agents}
        outputs = {spec.name for spec in app.topic_specs()} - inputs
        metrics.expect(inputs, outputs, app.tables)
        metrics.broker_up.set_function(self._has_broker)
        metrics.ready.set_function(lambda: not self.readiness())
        metrics.progress_age.set_function(
            lambda: self._progress.age if self._pipeline is not None else 0.0
        )
        for agent in app.agents:
            metrics.agent_errors.labels(agent.name)
        return metrics

    def _has_broker(self) -> bool:
        """Whether the broker has answered, and has not failed the worker since."""
        if not self.app.topics:
            return True
        answers = self.app.cluster_id != "" and self.state is not WorkerState.WAITING
        return answers and self._broker.is_reachable()

    async def run(self) -> None:
        """Until `stop` is called. Python's collector of cycles has less to do from then on, in the
        whole process. Raises `ConfigurationError` for what trying again cannot help,
        `AgentError` for what an agent raised, and whatever a timer or task raised."""
        _collect_cycles_less_often()
        body = asyncio.create_task(self._run(), name=f"worker {self.app.id}")
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((body, stop), return_when=asyncio.FIRST_COMPLETED)
            if not body.done() and self.state not in _NOT_YET_RUNNING:
                await asyncio.wait((body,), timeout=self._config.drain_timeout + _STOP_SECONDS)
        finally:
            stop.cancel()
            body.cancel()
            await asyncio.wait((body,))
        if not body.cancelled():
            body.result()

    def stop(self) -> None:
        """Ask `run` to finish its batch, commit, hand its partitions over and return."""
        self._stopping.set()
        self._is_ending()

    def _is_ending(self) -> None:
        self._ending_since = self._ending_since or time.monotonic()

    def overdue(self) -> str | None:
        """Why the process should be ended whatever still runs in it: it was to end long ago, or
        its event loop stands still. To be asked from another thread."""
        if self._ending_since is not None:
            seconds = time.monotonic() - self._ending_since
            return f"still not ended after {seconds:.0f} s" if seconds > _ENDING_SECONDS else None
        if self._pipeline is None or self._progress.age < (
            self._config.progress_timeout + _BLOCKED_SECONDS
        ):
            return None
        return f"the event loop stands still, and nothing is done for {self._progress.age:.0f} s"

    def readiness(self) -> list[str]:
        """Why this instance should get no traffic; empty when it is ready."""
        reasons = []
        if self.state is WorkerState.WAITING:
            reasons.append(f"waiting to try again: {self._waiting_for}")
        elif self.state is not WorkerState.RUNNING:
            reasons.append(self.state.value)
        if self.app.topics and (trouble := self._broker.trouble()):
            reasons.append(f"the broker cannot be reached: {trouble}")
        if self._pipeline is not None and self._progress.is_doubtful:
            reasons.append(f"nothing committed for {self._progress.age:.0f} s, against a lag")
        if self._outbox is not None and self._outbox.trouble:
            reasons.append(f"records cannot be sent: {self._outbox.trouble}")
        if self._pipeline is not None:
            reasons.extend(self._pipeline.readiness())
        elif self.app.input_topics() and not reasons:
            reasons.append("nothing is being read")
        return reasons + self._own_reasons()

    def _own_reasons(self) -> list[str]:
        """Those that the app itself gives."""
        checks = {name: check() for name, check in self.app.readiness_checks.items()}
        return [f"{name}: {reason}" for name, reason in checks.items() if reason is not None]

    @property
    def is_leader(self) -> bool:
        """Whether this is the app's one instance that runs the timers declared `on_leader`."""
        topic, pipeline = self.app.leader_topic, self._pipeline
        if topic is None:
            return True
        return pipeline is not None and pipeline.owns(topic.name, 0)

    async def _run(self) -> None:
        web = WebServer(build_web(self.app, self.readiness), self._config.host, self._config.port)
        try:
            await web.start()
            self.address = web.address
            async with self._instance() as instance:
                await self._live(instance)
            self._transition_to(WorkerState.STOPPING)
        except asyncio.CancelledError:
            self._transition_to(WorkerState.STOPPING)
            raise
        except Exception:
            self._transition_to(WorkerState.FAILED)
            raise
        finally:
            self._thread.close()
            await web.stop()
            if self.state is WorkerState.STOPPING:
                self._transition_to(WorkerState.STOPPED)
                log.info("stopped", service=self.app.id)

    @asynccontextmanager
    async def _instance(self) -> AsyncIterator[Instance]:
        """This instance's own folder and name. What needs neither claims nothing."""
        of_app = Path(self._config.data_dir) / self.app.id
        has_name = self.app.is_exactly_once or self._config.static_membership
        if not self.app.tables and not (has_name and self.app.input_topics()):
            yield Instance("", of_app)
            return
        own = StateFolder(of_app, self._config.max_instances)
        try:
            own.adopt(self.app.tables)
            yield Instance(own.instance_id, own.path)
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._thread.call(own.close)  # after the stores, even when cancelled

    async def _live(self, instance: Instance) -> None:
        self._transition_to(WorkerState.CONNECTING)
        identity = await self._connected(instance)
        if identity is None:
            return
        async with self.app.resources():
            self._transition_to(WorkerState.RUNNING)
            self._progress.made()  # until now there was nothing to get on with
            log.info("running", service=self.app.id, address=self.address)
            outbox = AcknowledgedOutbox(self.app.id, self._broker, self._config, self._metrics)
            side_work = self._side_work(outbox)
            await self._first_to_end([self._pipelines(identity, instance, outbox), *side_work])

    def _side_work(self, outbox: AcknowledgedOutbox) -> list[Awaitable[None]]:
        """What goes on beside the pipeline; none of it ends by itself."""
        parts: list[Awaitable[None]] = []
        if self.app.topics:
            self._outbox = outbox
            for topic in self.app.topics.values():
                topic.direct = outbox
            parts.append(outbox.run())
        if self.app.input_topics():
            parts.append(self._watch())
        for timer in self.app.timers:
            skipped = self._metrics.timer_skips.labels(timer.name).inc
            parts.append(timer.run(lambda: self.is_leader, skipped))
        return parts + [self._task(task) for task in self.app.tasks]

    async def _task(self, task: Callable[[], Awaitable[None]]) -> None:
        await task()
        await asyncio.Event().wait()

    async def _watch(self) -> None:
        """Raises `StalledError` when the worker has not got on for too long, and nobody says why:
        what is waited for by name, the broker or something of the app, is not its fault."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            is_waiting = self.state is WorkerState.WAITING or self._broker.trouble()
            if is_waiting or self._own_reasons():
                self._progress.made()
            if self._progress.has_stalled:
                raise StalledError(
                    f"{self.app.id}: nothing committed for {self._progress.age:.0f} s against a "
                    f"lag (progress_timeout={self._config.progress_timeout}): "
                    f"{'; '.join(self.readiness())}"
                )

    async def _first_to_end(self, parts: Sequence[Awaitable[None]]) -> None:
        """Until the pipelines have stopped or anything fails; the rest is then cancelled."""
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            while not all(task.done() for task in tasks):  # what they own is closed after them
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(tasks)
        for task in done:
            if task.cancelled():
                raise StreamingError(f"{self.app.id}: something that a task awaited was cancelled")
            task.result()

    async def _pipelines(
        self, identity: Identity, instance: Instance, outbox: AcknowledgedOutbox
    ) -> None:
        """Until stopping: one pipeline after another, for as long as the broker fails them."""
        if not self.app.input_topics():
            await self._stopping.wait()
        around = Surroundings(
            self.app, self._broker, self._config, self._metrics, identity, instance
        )
        attempt = -1
        while not self._stopping.is_set():
            self._pipeline = Pipeline(around, self._thread, outbox, self._progress)
            try:
                await self._pipeline.run(self._stopping)
            except BrokerError as error:
                self._has_progressed |= self._pipeline.has_progressed
                if isinstance(error, AuthorizationError) and not self._has_progressed:
                    raise ConfigurationError(str(error)) from error
                attempt = 0 if self._pipeline.has_progressed else attempt + 1
                await self._back_off(attempt, error)
                self._transition_to(WorkerState.RUNNING)
            finally:
                self._pipeline = None

    async def _connected(self, instance: Instance) -> Identity | None:
        """The cluster, once it answers, has every topic, and is seen to keep what the app's
        guarantee needs; None when stopped before."""
        attempt = -1
        while not self._stopping.is_set():
            try:
                return await asyncio.to_thread(self._identify, instance)
            except AccessError as error:
                raise ConfigurationError(str(error)) from error
            except BrokerError as error:
                attempt += 1
                await self._back_off(attempt, error)
                self._transition_to(WorkerState.CONNECTING)
        return None

    def _identify(self, instance: Instance) -> Identity:
        if not self.app.topics:
            return Identity("", {}, {})
        cluster_id = self._broker.cluster_id()
        found = self._broker.describe_topics([each.name for each in self.app.topic_specs()])
        sizes = {name: topic.partitions for name, topic in found.items()}
        missing = [s for s in self._wanted_topics(sizes) if s.name not in found]
        if missing and not self._config.create_topics:
            names = ", ".join(spec.name for spec in missing)
            raise TopicError(f"topics missing: {names}; make them, or set create_topics")
        if missing:
            self._broker.create_topics(missing)
            found |= self._broker.describe_topics([spec.name for spec in missing])
        partitions = {name: topic.partitions for name, topic in found.items()}
        self._check_changelogs(partitions)
        if self.app.is_exactly_once:
            probing = f"{self.app.id}-{instance.id}-probe"
            self._broker.require_transactions(TRANSACTION_PROBE.name, self.app.id, probing)
        self.app.cluster_id = cluster_id
        topic_ids = {name: topic.topic_id for name, topic in found.items()}
        return Identity(cluster_id, topic_ids, partitions)

    def _wanted_topics(self, sizes: Mapping[str, int]) -> list[TopicSpec]:
        """Every topic; a changelog gets as many partitions as its source really has."""
        source_of = {t.changelog.name: t.source.name for t in self.app.tables.values()}
        return [
            replace(
                spec,
                partitions=sizes.get(source_of.get(spec.name, ""), spec.partitions),
                replication_factor=self._config.replication_factor,
            )
            for spec in self.app.topic_specs()
        ]

    def _check_changelogs(self, sizes: Mapping[str, int]) -> None:
        for table in self.app.tables.values():
            source, changelog = table.source.name, table.changelog.name
            if sizes[source] != sizes[changelog]:
                raise TopicError(
                    f"{changelog} has {sizes[changelog]} partitions and {source} has "
                    f"{sizes[source]}: a changelog must have as many as its source"
                )

    async def _back_off(self, attempt: int, error: BrokerError) -> None:
        """Wait, longer each time, with jitter; say so once, and when it becomes a refusal."""
        is_refusal = isinstance(error, AccessError)
        is_news = attempt == 0 or (is_refusal and str(error) != self._waiting_for)
        self._transition_to(WorkerState.WAITING)
        self._waiting_for = str(error)
        self._metrics.retries.inc()
        limit = self._config.retry_backoff_max
        delay = min(limit, self._config.retry_backoff_min * 2 ** min(attempt, 16))
        if is_news:
            log.warning("broker_failed", service=self.app.id, error=str(error))
        try:
            async with asyncio.timeout(delay * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter
                await self._stopping.wait()
        except TimeoutError:
            return

    def _transition_to(self, state: WorkerState) -> None:
        if state not in _NEXT_STATES[self.state] and state not in _ENDING:
            raise StreamingError(f"{self.app.id}: {self.state.value} cannot become {state.value}")
        self.state = state
        if state in _ENDING:
            self._is_ending()


def _collect_cycles_less_often() -> None:
    """A batch is tens of thousands of objects and no cycle, and by default Python would look
    through them each time that there are 700 more. Off stays off."""
    if 0 < gc.get_threshold()[0] < _COLLECTED_OBJECTS:
        gc.set_threshold(_COLLECTED_OBJECTS)
