"""The pipeline: assign, restore, poll, decode, run, commit, revoke. `Pipeline.run` shows it all.

Two threads. The event loop runs agents, timers, tasks and pages. The broker thread owns the
consumer, the producer and the stores' writes; rebalance callbacks run there, inside the poll, and
ask the loop to drain. The loop never blocks on the broker, and nothing else touches it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog

from ratestream.streaming.app import App
from ratestream.streaming.errors import (
    AgentError,
    BrokerError,
    DecodeError,
    DeliveryError,
    FencedError,
    StreamingError,
)
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.outbox import BufferedOutbox
from ratestream.streaming.streams import Event, Rejections, RunningAgent, wait_until_idle
from ratestream.streaming.tables import AnyTable, Restorer, TableChanges
from ratestream.streaming.topics import AnyTopic, Work
from ratestream.streaming.types import (
    Broker,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    WorkerConfig,
)

T = TypeVar("T")
_POLL_SECONDS = 0.1
_LINGER_SECONDS = 0.005
_KEEP_ALIVE_SECONDS = 0.5
_LAG_SECONDS = 2.0
_BUSY_SECONDS = 10.0
_MAX_FENCED_COMMITS = 20
_LOOP_SECONDS = 2.0

log = structlog.get_logger("ratestream.pipeline")


class BrokerThread:
    """The one thread of a worker on which everything that blocks on the broker happens, one after
    another. What was called is done there even when its caller is cancelled."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        context = copy_context()  # what is logged there names the service, too
        return await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: context.run(function, *arguments)
        )

    def close(self) -> None:
        self._executor.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class Uncommitted:
    """What one commit makes durable, in this order: outputs and changelog, then positions, then
    the stores. This is where a transaction will go around the first two."""

    outputs: list[OutgoingRecord]
    changes: list[TableChanges]
    positions: dict[TopicPartition, int]

    def __bool__(self) -> bool:
        return bool(self.outputs or self.changes or self.positions)


@dataclass(frozen=True, slots=True)
class Identity:
    """The cluster and the topics that a worker found when it connected."""

    cluster_id: str
    topic_ids: Mapping[str, str]

    def changelog_id(self, table: AnyTable) -> str:
        return f"{self.cluster_id}/{self.topic_ids[table.changelog.name]}"


class Pipeline:
    """One consumer, one producer, and the agents between them, from the first assignment to the
    close. A `BrokerError` ends it; what was not committed is then read again by the next one."""

    def __init__(
        self,
        app: App,
        broker: Broker,
        config: WorkerConfig,
        metrics: WorkerMetrics,
        thread: BrokerThread,
        identity: Identity,
        tables_folder: Path,
    ) -> None:
        self._app = app
        self._broker = broker
        self._config = config
        self._metrics = metrics
        self._identity = identity
        self._tables_folder = tables_folder
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._outbox = BufferedOutbox(config, self._spill)
        self._rejections = Rejections(app.id, app.dead_letter)
        self._agents: list[RunningAgent] = []
        self._positions: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        self._assigned: set[TopicPartition] = set()
        self._to_open: list[TopicPartition] = []
        self._to_resume: set[TopicPartition] = set()
        self._last_commit = self._last_lag = time.monotonic()
        self._records_since_commit = 0
        self._sent: Counter[str] = Counter()
        self._fenced_commits = 0
        self._aborted: StreamingError | None = None
        self._closing = False
        self.busy_since: float | None = None
        self.has_progressed = False
        """Whether it has committed; without agents, whether it was given partitions."""

    # poll → decode → run → commit

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`. Raises `BrokerError` to be tried again, anything else to give up."""
        try:
            await self._thread.call(self._connect)
            self._start_agents()
            while not stopping.is_set():
                records = await self._thread.call(self._poll)
                if self._aborted:
                    raise self._aborted
                if records:
                    await self._process(records)
                if self._commit_is_due(drained=not records):
                    await self._commit()
            await self._process_rest()
        finally:
            await self._close()

    def _connect(self) -> None:
        config, app = self._config, self._app
        self._consumer = self._broker.consumer(
            ConsumerConfig(
                group=app.id,
                client_id=app.id,
                session_timeout=config.session_timeout,
                heartbeat_interval=config.heartbeat_interval,
                max_poll_interval=config.max_poll_interval,
                buffer_bytes=config.fetch_buffer_bytes,
            )
        )
        self._producer = self._broker.producer(
            ProducerConfig(client_id=app.id, delivery_timeout=config.delivery_timeout)
        )
        self._restorer = Restorer(self._broker, app.id, self._metrics)
        self._consumer.subscribe(app.input_topics(), self)

    def _start_agents(self) -> None:
        self._agents = [
            RunningAgent(agent, Work(self._outbox), self._rejections) for agent in self._app.agents
        ]

    def _poll(self) -> list[Record]:
        self._update_gauges()
        if self._restorer.active:
            timeout = 0.0
        elif self._records_since_commit:
            timeout = _LINGER_SECONDS
        else:
            timeout = _POLL_SECONDS
        records = self._consumer.poll(self._config.batch_max_records, timeout)
        if not self._aborted:
            self._open_and_restore()
        return records

    async def _process(self, records: Sequence[Record]) -> None:
        self._metrics.batch_size.observe(len(records))
        with self._metrics.batch_seconds.time():
            events = self._decode(records)
            for running in self._agents:
                running.stream.feed(events.get(running.agent.topic.name, ()))
            await self._wait_for_agents()
        self._records_since_commit += len(records)

    def _decode(self, records: Sequence[Record]) -> dict[str, list[Event]]:
        """Events by topic, in the order of their records; the undecodable ones are rejected."""
        events: dict[str, list[Event]] = {}
        topic: AnyTopic | None = None
        for record in records:
            if topic is None or topic.name != record.topic:
                topic = self._app.topics[record.topic]
                of_topic = events.setdefault(topic.name, [])
            try:
                key = topic.key_codec.decode(record.key)
                of_topic.append(Event(key, topic.value_codec.decode(record.value), record))
            except DecodeError as error:
                self._reject(record, str(error))
            self._positions[record.topic_partition] = record.offset + 1
        for name, decoded in events.items():
            self._metrics.records_in.labels(name).inc(len(decoded))
        return events

    def _reject(self, record: Record, reason: str) -> None:
        self._outbox.add(self._rejections.record(record, reason))
        self._metrics.records_in.labels(record.topic).inc()

    async def _wait_for_agents(self) -> None:
        """Until every agent has done its batch. Meanwhile the consumer is paused and polled, so
        that slow agents neither lose their partitions nor hold up a rebalance."""
        idle = asyncio.create_task(wait_until_idle(self._agents))
        self.busy_since = time.monotonic()
        kept_alive = False
        try:
            while not (await asyncio.wait((idle,), timeout=_KEEP_ALIVE_SECONDS))[0]:
                kept_alive = True
                await self._thread.call(self._keep_alive)
                if self._aborted:
                    raise self._aborted
            await idle
            if kept_alive:
                await self._thread.call(self._resume_after_keep_alive)
        finally:
            self.busy_since = None
            idle.cancel()

    def _keep_alive(self) -> None:
        self._consumer.pause(list(self._consumer.assignment()))
        self._consumer.poll(1, 0.0)
        self._update_gauges()

    def _resume_after_keep_alive(self) -> None:
        self._consumer.resume([each for each in self._assigned if self._is_active(each)])

    async def _process_rest(self) -> None:
        """The last commit of a clean stop; what agents do not finish in time is dropped."""
        work = await self._drain()
        if isinstance(self._aborted, AgentError):
            raise self._aborted
        if work:
            await self._thread.call(self._write, work)

    # commit

    def _commit_is_due(self, *, drained: bool) -> bool:
        return (
            drained
            or self._records_since_commit >= self._config.commit_max_records
            or time.monotonic() - self._last_commit >= self._config.commit_interval
        )

    async def _commit(self) -> None:
        await self._wait_for_agents()
        work = self._collect()
        if work:
            await self._thread.call(self._write, work)

    def _collect(self) -> Uncommitted:
        """Everything done and not yet committed; only while all agents are idle."""
        positions = dict(self._positions)
        for running in self._agents:
            for partition, offset in running.stream.first_undone().items():
                positions[partition] = min(offset, positions[partition])
        self._records_since_commit = 0
        self._last_commit = time.monotonic()
        changes = [each for table in self._app.tables.values() for each in table.take_changes()]
        advanced = {
            partition: offset
            for partition, offset in positions.items()
            if offset != self._committed.get(partition)
        }
        return Uncommitted(self._outbox.take(), changes, advanced)

    def _write(self, work: Uncommitted) -> None:
        if self._aborted:
            raise self._aborted
        with self._metrics.commit_seconds.time():
            self._send(work.outputs)
            for change in work.changes:
                self._send(change.records())
            ends = self._producer.flush()
            self._metrics.count_sent(self._sent)
            self._sent.clear()
            self._commit_positions(work.positions)
            for change in work.changes:
                change.table.commit(change, _end(ends, change.changelog_partition))
        self._metrics.last_commit.set_to_current_time()
        self.has_progressed = True

    def _send(self, records: Sequence[OutgoingRecord]) -> None:
        self._producer.send(records)
        self._sent.update(record.topic for record in records)

    def _commit_positions(self, positions: Mapping[TopicPartition, int]) -> None:
        """A group that is rebalancing may refuse: the next commit then includes these again."""
        owned = {each: at for each, at in positions.items() if each in self._assigned}
        if not owned:
            return
        try:
            self._consumer.commit(owned)
        except FencedError:
            self._fenced_commits += 1
            if self._fenced_commits > _MAX_FENCED_COMMITS:
                raise
            return
        self._fenced_commits = 0
        self._committed.update(owned)

    async def _spill(self) -> None:
        """Send outputs before the commit that they belong to, because there are too many.
        Shielded: an agent's own timeout must not take back what has left the outbox. An agent
        never sees a failure here, which it might catch; the pipeline ends and cancels it."""
        await asyncio.shield(self._thread.call(self._send_early, self._outbox.take()))
        if self._aborted:
            await asyncio.Event().wait()

    def _send_early(self, records: list[OutgoingRecord]) -> None:
        try:
            self._send(records)
        except StreamingError as error:
            self._aborted = error

    # assign, restore, revoke: on the broker thread, inside its poll

    def assigned(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self._metrics.rebalances.labels("assigned").inc()
        self._assigned.update(partitions)
        self.has_progressed |= not self._app.agents
        self._to_open.extend(partitions)
        self._metrics.partitions.set(len(self._assigned))
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._metrics.rebalances.labels("revoked").inc()
        try:
            work = self._on_loop(self._drain())
            if work:
                self._write(work)
        except BrokerError as error:
            log.warning("commit_before_revocation_failed", error=str(error))
            self._aborted = error
        finally:
            self._release(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._metrics.rebalances.labels("lost").inc()
        log.warning("partitions_lost", partitions=len(partitions))
        self._release(partitions)
        if self.busy_since is not None:
            self._aborted = BrokerError("partitions were lost while agents worked on them")

    def _release(self, partitions: Sequence[TopicPartition]) -> None:
        """Close what belongs to partitions given away, before the new owner may open it."""
        gone = set(partitions)
        self._assigned -= gone
        self._to_resume -= gone
        self._to_open = [each for each in self._to_open if each not in gone]
        self._on_loop(self._forget(gone))
        self._restorer.drop(gone)
        for partition in gone:
            for table in self._tables_of(partition):
                table.close(partition.partition)
            self._forget_lag(partition)
        self._metrics.partitions.set(len(self._assigned))

    def _on_loop(self, step: Coroutine[Any, Any, T]) -> T:
        """The broker thread waits for the loop; each step has a bound of its own."""
        timeout = self._config.drain_timeout + _LOOP_SECONDS
        try:
            return asyncio.run_coroutine_threadsafe(step, self._loop).result(timeout)
        except TimeoutError:
            raise BrokerError(
                f"the event loop was blocked for {timeout} s during a rebalance"
            ) from None

    async def _forget(self, partitions: set[TopicPartition]) -> None:
        for running in self._agents:
            running.stream.drop(partitions)
        for partition in partitions:
            self._positions.pop(partition, None)
            self._committed.pop(partition, None)

    async def _drain(self) -> Uncommitted | None:
        """Let the agents finish, within bounds, and collect; None when they did not, or when
        this pipeline has already dropped their work."""
        if self._closing:
            return None
        self._outbox.holds_everything = True
        try:
            async with asyncio.timeout(self._config.drain_timeout):
                await wait_until_idle(self._agents)
            return self._collect()
        except TimeoutError:
            self._aborted = BrokerError(
                f"agents did not finish their batch within drain_timeout "
                f"({self._config.drain_timeout} s)"
            )
            log.warning("drain_timed_out", agents=[each.stream.at for each in self._agents])
        except StreamingError as error:
            self._aborted = error
        finally:
            self._outbox.holds_everything = False
        return None

    def _open_and_restore(self) -> None:
        """Open what has been assigned, go on restoring, resume what is complete."""
        opening, self._to_open = self._to_open, []
        for partition in opening:
            for table in self._tables_of(partition):
                self._open(table, partition.partition)
            if self._is_wanted(partition):
                self._to_resume.add(partition)
        if self._restorer.active:
            self._restorer.step(_LINGER_SECONDS)
        ready = [each for each in self._to_resume if self._is_active(each)]
        if ready:
            self._consumer.resume(ready)
            self._to_resume.difference_update(ready)

    def _open(self, table: AnyTable, partition: int) -> None:
        table.cache_entries = self._config.table_cache_entries
        changelog_id = self._identity.changelog_id(table)
        store = table.open(partition, self._tables_folder, changelog_id)
        self._restorer.add(table, partition, store)

    def _is_active(self, partition: TopicPartition) -> bool:
        """Whether records of this partition may be read: an agent wants them, and every table
        split like it is restored."""
        return (
            self._is_wanted(partition)
            and partition not in self._to_open
            and not self._restorer.waits_for(partition)
        )

    def _is_wanted(self, partition: TopicPartition) -> bool:
        """Whether an agent reads it; a leader topic may only be there to elect."""
        return any(agent.topic.name == partition.topic for agent in self._app.agents)

    def _tables_of(self, partition: TopicPartition) -> list[AnyTable]:
        return [t for t in self._app.tables.values() if t.source.name == partition.topic]

    # what others ask

    def owns(self, topic: str, partition: int) -> bool:
        return TopicPartition(topic, partition) in self._assigned

    def readiness(self) -> list[str]:
        reasons = []
        if self._to_open or self._to_resume:
            reasons.append("restoring tables")
        busy = time.monotonic() - self.busy_since if self.busy_since is not None else 0.0
        if busy > _BUSY_SECONDS:
            at = ", ".join(each.stream.at for each in self._agents if not each.stream.is_idle)
            reasons.append(f"agents have been busy for {busy:.0f} s, at {at}")
        return reasons

    def _update_gauges(self) -> None:
        if time.monotonic() - self._last_lag < _LAG_SECONDS:
            return
        for table in self._app.tables.values():
            self._metrics.table_bytes.labels(table.name).set(table.estimated_bytes())
        try:
            for partition in self._assigned:
                self._update_lag(partition)
        except BrokerError as error:
            log.debug("lag_unknown", error=str(error))
        self._last_lag = time.monotonic()

    def _update_lag(self, partition: TopicPartition) -> None:
        if not self._is_wanted(partition):
            return
        low, high = self._consumer.watermarks(partition, 1.0)
        position = self._positions.get(partition)
        if position is None:
            position = self._consumer.position(partition) or low
        labels = (partition.topic, str(partition.partition))
        self._metrics.lag.labels(*labels).set(max(0, high - position))

    def _forget_lag(self, partition: TopicPartition) -> None:
        try:
            self._metrics.lag.remove(partition.topic, str(partition.partition))
        except KeyError:
            return

    # close

    async def _close(self) -> None:
        self._closing = True
        try:
            for running in self._agents:
                await running.cancel()
            self._agents = []
        finally:
            await self._thread.call(self._disconnect)

    def _disconnect(self) -> None:
        with ExitStack() as closing:  # all of them, whichever fails; the consumer first
            closing.callback(self._metrics.lag.clear)
            closing.callback(self._metrics.partitions.set, 0)
            closing.callback(self._assigned.clear)
            for table in self._app.tables.values():
                closing.callback(table.close_all)
            for name in ("_restorer", "_producer", "_consumer"):
                opened = getattr(self, name, None)
                if opened is not None:
                    closing.callback(opened.close)


def _end(ends: Mapping[TopicPartition, int], partition: TopicPartition) -> int:
    try:
        return ends[partition]
    except KeyError:
        raise DeliveryError(
            f"{partition.topic}[{partition.partition}]: acknowledged without an offset"
        ) from None
