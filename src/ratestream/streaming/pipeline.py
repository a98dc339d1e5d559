"""The pipeline: assign, restore, poll, decode, run, commit, revoke. `Pipeline.run` shows it all.

What a commit holds is collected while all agents are idle, so that it ends between two records.
It is sent before the next batch is polled and ended while agents work on that batch: only one is
under way at a time.

A setback (an aborted transaction, lost partitions, agents too slow for a rebalance, an agent that
raised) does not end it: what is not committed is dropped and read again, in the same group. An
error of the broker does; the next pipeline then finds out what was committed.

Two threads. The event loop runs agents, timers, tasks and pages. The broker thread owns the
consumer, the producer and the stores' writes; rebalance callbacks run there, inside the poll, and
ask the loop to drain. The loop never blocks on the broker, and nothing else touches it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count, repeat
from typing import Any, TypeVar

import structlog

from ratestream.streaming.committer import AtLeastOnce, Committer, ExactlyOnce, Uncommitted
from ratestream.streaming.errors import (
    AgentError,
    BrokerError,
    DecodeError,
    SetbackError,
    StreamingError,
    TransactionAbortedError,
)
from ratestream.streaming.outbox import AcknowledgedOutbox, BufferedOutbox
from ratestream.streaming.partitions import Partitions, Surroundings
from ratestream.streaming.progress import Progress
from ratestream.streaming.retries import Retries
from ratestream.streaming.streams import (
    Agent,
    Event,
    Rejections,
    RunningAgent,
    wait_until_idle,
    wait_until_ready,
)
from ratestream.streaming.threads import BrokerThread
from ratestream.streaming.topics import AnyTopic
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Run,
    TopicPartition,
)

T = TypeVar("T")
_POLL_SECONDS = 0.1
_LINGER_SECONDS = 0.002
_KEEP_ALIVE_SECONDS = 0.5
_GAUGES_SECONDS = 2.0
_BUSY_SECONDS = 10.0
_LOOP_SECONDS = 2.0
_CLOSE_SECONDS = 60.0
_FIRST_SETBACK_SECONDS = 0.05

# A position that only control records have moved need not be committed at once.
_IDLE_COMMIT_INTERVALS = 10

log = structlog.get_logger("ratestream.pipeline")


class Pipeline:
    """One consumer, one committer, and the agents between them, from the first assignment to the
    close. A `BrokerError` ends it; what was not committed is then read again by the next one."""

    def __init__(
        self,
        around: Surroundings,
        thread: BrokerThread,
        direct: AcknowledgedOutbox,
        progress: Progress,
    ) -> None:
        self._around = around
        self._app = around.app
        self._broker = around.broker
        self._config = around.config
        self._metrics = around.metrics
        self._loop = asyncio.get_running_loop()
        self._thread = thread
        self._direct = direct
        self._progress = progress
        self._outbox = BufferedOutbox(around.config)
        self._rejections = Rejections(around.app.id, around.app.dead_letter)
        self._retries = Retries()
        self._agents: list[RunningAgent] = []
        self._positions: dict[TopicPartition, int] = {}
        self._committed: dict[TopicPartition, int] = {}
        """Up to where each partition is committed, or where it was first read: the way back."""
        self._passed: dict[TopicPartition, int] = {}
        """Positions that only control records have moved, found by the last poll."""
        self._ended: asyncio.Future[None] | None = None
        """That the commit which had begun before this turn has ended."""
        self._placing: asyncio.Task[dict[TopicPartition, int | None]] | None = None
        self._last_commit = self._last_gauges = self._last_passed = time.monotonic()
        self._records_since_commit = 0
        self._keeps_up = True
        """Whether the last poll gave everything that there was to read."""
        self._to_restore: int | None = None
        self._setbacks = 0
        self._commit_moves = False
        """Whether the commit that has begun is of more than control records."""
        self._broken: StreamingError | None = None
        """What went wrong inside a rebalance, where it cannot be raised."""
        self._is_connected = False
        self._has_broker = True
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
                try:
                    await self._turn()
                except (AgentError, SetbackError, TransactionAbortedError) as error:
                    await self._go_back(error)
            await self._process_rest()
        except BrokerError:
            self._has_broker = False
            raise
        finally:
            await self._close()

    async def _turn(self) -> None:
        runs = await self._thread.call(self._poll)
        for run in runs:  # whatever becomes of them now, this is where to read them again
            self._committed.setdefault(run.partition, run.offset(0))
        self._raise_broken()
        self._ended = self._thread.start(self._end)
        try:
            if self._partitions.unplaced:
                await self._place_sinks()
            self._positions |= self._passed
            await self._process(runs)
        finally:
            await self._ended
        if self._commit_is_due(drained=not runs):
            await self._commit_with(self._begin)

    def _connect(self) -> None:
        config, app = self._config, self._app
        producer = ProducerConfig(
            client_id=app.id,
            delivery_timeout=config.delivery_timeout,
            transaction_timeout=config.transaction_timeout,
        )
        self._consumer = self._broker.consumer(
            ConsumerConfig(
                group=app.id,
                client_id=app.id,
                instance_id=self._name if config.static_membership else None,
                session_timeout=config.session_timeout,
                heartbeat_interval=config.heartbeat_interval,
                max_poll_interval=config.max_poll_interval,
                buffer_bytes=config.fetch_buffer_bytes,
            )
        )
        # Whatever died with this name is fenced before the group gives this instance anything.
        self._committer = self._new_committer(producer)
        self._partitions = Partitions(self._around, self._consumer)
        self._is_connected = True
        self._consumer.subscribe(app.input_topics(), self)

    @property
    def _name(self) -> str:
        return f"{self._app.id}-{self._around.instance.id}"

    def _new_committer(self, config: ProducerConfig) -> Committer:
        common = (self._broker, config, self._consumer, self._metrics)
        if self._app.is_exactly_once:
            return ExactlyOnce(*common, transactional_id=self._name)
        return AtLeastOnce(*common, interval=self._config.commit_interval)

    def _start_agents(self) -> None:
        self._agents = [self._started(agent) for agent in self._app.agents]

    def _started(self, agent: Agent) -> RunningAgent:
        outbox = self._outbox if agent.offsets_in is None else self._direct
        return RunningAgent(agent, outbox, self._rejections, self._retries.alone)

    def _poll(self) -> list[Run]:
        """What may take long waits until no commit is open."""
        if self._gauges_are_due:
            self._end_or_break()
            self._update_gauges()
        if (to_restore := self._partitions.to_restore) is not None:
            timeout = 0.0
            if to_restore != self._to_restore:
                self._progress.made()
        elif self._records_since_commit:
            timeout = min(_LINGER_SECONDS, max(0.0, self._commit_due_at() - time.monotonic()))
        elif self._partitions.is_catching_up:
            timeout = _LINGER_SECONDS
        else:
            timeout = _POLL_SECONDS
        if self._committer.has_begun:
            timeout = 0.0
        self._to_restore = to_restore
        runs = self._consumer.poll_runs(self._config.batch_max_records, timeout)
        self._committer.serve()
        self._keeps_up = sum(map(len, runs)) < self._config.batch_max_records
        if self._partitions.is_behind:
            self._end_or_break()
        if not self._broken:
            self._partitions.advance()
        self._passed = {} if runs else self._passed_by_now()
        return runs

    def _passed_by_now(self) -> dict[TopicPartition, int]:
        """Positions that only control records have moved, now and then."""
        interval = _IDLE_COMMIT_INTERVALS * self._config.commit_interval
        if time.monotonic() - self._last_passed < interval:
            return {}
        self._last_passed = time.monotonic()
        return self._partitions.passed(self._positions, self._committed)

    async def _process(self, runs: Sequence[Run]) -> None:
        if not runs:
            return
        records = sum(map(len, runs))
        self._metrics.batch_size.observe(records)
        with self._metrics.batch_seconds.time():
            events, rejected = self._decode(runs)
            if rejected:  # acknowledged before a sink can move past them
                await self._while_polled(self._put_directly(rejected))
            for running in self._agents:
                running.stream.feed(events.get(running.agent.topic.name, ()))
            await self._wait_for_agents()
            while any(running.stream.has_more for running in self._agents):
                await self._commit_with(self._write)  # they wait for the outbox to be emptied
                for running in self._agents:
                    running.stream.feed(())
                await self._wait_for_agents()
        self._records_since_commit += records

    def _decode(self, runs: Sequence[Run]) -> tuple[dict[str, list[Event]], list[OutgoingRecord]]:
        """Events by topic, in the order of their records. Those that cannot be decoded, and those
        whose agent has failed for good, are rejected; what a sink would have read is returned."""
        events: dict[str, list[Event]] = {}
        rejected: list[OutgoingRecord] = []
        for run in runs:
            topic = self._app.topics[run.partition.topic]
            of_topic = events.setdefault(topic.name, [])
            try:
                of_topic += self._decoded(topic, run)
            except DecodeError:
                letters = self._decode_one_by_one(topic, run, of_topic)
                if self._partitions.sink_of(run.partition):
                    rejected += letters
                else:
                    self._outbox.add(*letters)
            self._positions[run.partition] = run.offset(len(run) - 1) + 1
            self._metrics.records_in.labels(topic.name).inc(len(run))
        return events, rejected

    def _decoded(self, topic: AnyTopic, run: Run) -> Iterable[Event]:
        """All of it, or `DecodeError`. Column by column, so that no line of Python is run for each
        record."""
        self._retries.check(run)
        keys = topic.key_codec.decode_all(run.keys)
        values = topic.value_codec.decode_all(run.values)
        return map(Event, keys, values, repeat(run), count())

    def _decode_one_by_one(
        self, topic: AnyTopic, run: Run, events: list[Event]
    ) -> list[OutgoingRecord]:
        """The rejections of those that fail; the others become `events`."""
        letters = []
        for index, (raw_key, raw_value) in enumerate(zip(run.keys, run.values, strict=True)):
            try:
                self._retries.check(run, index)
                key, value = topic.key_codec.decode(raw_key), topic.value_codec.decode(raw_value)
                events.append(Event(key, value, run, index))
            except DecodeError as error:
                letters.append(self._rejections.record(run.record(index), str(error)))
        return letters

    async def _put_directly(self, records: Sequence[OutgoingRecord]) -> None:
        await asyncio.gather(*map(self._direct.put, records))

    async def _wait_for_agents(self) -> None:
        """Until every agent has done its batch, or has begun it if its sink keeps the offsets."""
        await self._while_polled(wait_until_ready(self._agents))

    async def _while_polled(self, work: Coroutine[Any, Any, None]) -> None:
        """Until `work` is done. Meanwhile the consumer is paused and polled, so that slow agents
        neither lose their partitions nor hold up a rebalance."""
        idle = asyncio.create_task(work)
        self.busy_since = time.monotonic()
        kept_alive = False
        try:
            while not (await asyncio.wait((idle,), timeout=_KEEP_ALIVE_SECONDS))[0]:
                kept_alive = True
                await self._thread.call(self._keep_alive)
                self._raise_broken()
            await idle
            if kept_alive:
                await self._thread.call(self._partitions.resume)
        finally:
            self.busy_since = None
            idle.cancel()

    def _keep_alive(self) -> None:
        self._consumer.pause(list(self._consumer.assignment()))
        self._consumer.poll(1, 0.0)
        self._committer.serve()
        if self._gauges_are_due:
            self._update_gauges()

    async def _process_rest(self) -> None:
        """The last commits of a clean stop; what agents do not finish in time is dropped."""
        with suppress(SetbackError):
            await self._thread.call(self._end)
            if work := await self._drain():
                await self._thread.call(self._write, work)
            await self._thread.call(self._committer.settle)
        if isinstance(self._broken, AgentError):
            raise self._broken

    # commit

    def _commit_is_due(self, *, drained: bool) -> bool:
        return (
            drained
            or self._outbox.is_full
            or self._records_since_commit >= self._config.commit_max_records
            or time.monotonic() >= self._commit_due_at()
        )

    def _commit_due_at(self) -> float:
        interval = self._config.commit_interval
        if self._keeps_up:
            interval = min(interval, self._committer.soonest_seconds)
        return self._last_commit + interval

    async def _commit_with(self, step: Callable[[Uncommitted], None]) -> None:
        """Everything done until now, when the commit before has ended."""
        if self._ended is not None:
            await self._ended
        work = await self._collect_from_idle(self._wait_for_agents)
        if work:
            self._last_commit = time.monotonic()
            await self._thread.call(step, work)

    async def _collect_from_idle(self, wait: Callable[[], Awaitable[None]]) -> Uncommitted:
        """When all agents can be committed at once: the time of a list of `take` may come at any
        moment, and half of what is sent for it must not be committed."""
        await wait()
        while not all(running.stream.is_committable for running in self._agents):
            await wait()
        return self._collect()

    def _collect(self) -> Uncommitted:
        """Everything done and not yet committed; only while all agents can be committed."""
        positions = dict(self._positions)
        for running in self._agents:
            for partition, offset in running.stream.first_undone().items():
                positions[partition] = min(offset, positions[partition])
        self._records_since_commit = 0
        changes = [each for table in self._app.tables.values() for each in table.take_changes()]
        advanced = {  # a sink stands before the ends of transactions that the group has passed
            partition: offset
            for partition, offset in positions.items()
            if offset > self._committed.get(partition, -1)
        }
        return Uncommitted(self._outbox.take(), changes, advanced)

    def _write(self, work: Uncommitted) -> None:
        self._begin(work)
        self._end()

    def _begin(self, work: Uncommitted) -> None:
        self._raise_broken()
        with self._breaking():
            if not work.positions.keys() <= self._partitions.owned:
                raise SetbackError("partitions went away before what was read was committed")
            self._commit_moves = any(
                self._passed.get(partition) != offset
                for partition, offset in work.positions.items()
            )
            self._committer.begin(work)

    def _end(self) -> None:
        """The commit that has begun, if one has."""
        if not self._committer.has_begun:
            return
        with self._breaking():
            done = self._committer.end()
        self._committed.update(done)
        self._retries.forget_before(done)
        self._metrics.last_commit.set_to_current_time()
        self.has_progressed = True
        if self._commit_moves:
            self._setbacks = 0
            self._progress.made()

    def _end_or_break(self) -> None:
        """Where nothing can be raised, because records are in hand."""
        with suppress(StreamingError):
            self._end()

    @contextmanager
    def _breaking(self) -> Iterator[None]:
        """What fails keeps all that comes after it from being committed, too."""
        try:
            yield
        except StreamingError as error:
            self._broken = error
            raise

    # setbacks

    def _raise_broken(self) -> None:
        if self._broken:
            raise self._broken

    async def _go_back(self, error: StreamingError) -> None:
        """Drop what is not committed, wait, and read it again. Raises what is not to be tried
        again."""
        delay = self._delay_after(error)
        self._metrics.setbacks.inc()
        log.warning("setback", service=self._app.id, error=str(error), again_in=round(delay, 3))
        await self._stop_agents()
        self._outbox.take()
        for table in self._app.tables.values():
            table.rollback()
        self._positions = dict(self._committed)
        self._records_since_commit = 0
        self._broken = None
        await self._thread.call(self._partitions.go_back, self._committed)
        until = time.monotonic() + delay
        while (remaining := until - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining, _KEEP_ALIVE_SECONDS))
            await self._thread.call(self._keep_alive)
        self._start_agents()
        await self._thread.call(self._partitions.resume)

    def _delay_after(self, error: StreamingError) -> float:
        """Seconds; longer after each setback without a commit in between, with jitter."""
        if isinstance(error, AgentError):
            self._metrics.agent_errors.labels(error.agent).inc()
            policies = {agent.name: agent.on_error for agent in self._app.agents}
            return self._retries.delay_after(error, policies.get(error.agent))
        limit = self._config.retry_backoff_max
        delay = min(limit, _FIRST_SETBACK_SECONDS * 2.0 ** min(self._setbacks, 16))
        self._setbacks += 1
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    # assign, revoke: on the broker thread, inside its poll

    def assigned(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        self._metrics.rebalances.labels("assigned").inc()
        self._partitions.add(partitions)
        self.has_progressed |= not self._app.agents
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self._metrics.rebalances.labels("revoked").inc()
        try:
            if not self._closing:
                self._end()
                if work := self._on_loop(self._drain()):
                    self._write(work)
                self._committer.settle()
        except (BrokerError, SetbackError) as error:
            log.warning("commit_before_revocation_failed", error=str(error))
            self._broken = error
        finally:
            self._release(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """What they have put into the outbox and the tables belongs to their new owner."""
        self._metrics.rebalances.labels("lost").inc()
        log.warning("partitions_lost", partitions=len(partitions))
        lost = SetbackError(f"{len(partitions)} partitions were lost to other instances")
        self._broken = self._broken or lost
        try:
            with suppress(BrokerError), self._breaking():
                self._committed.update(self._committer.give_up(partitions))
        finally:
            self._release(partitions)

    def _release(self, partitions: Sequence[TopicPartition]) -> None:
        self._committer.forget(partitions)
        self._on_loop(self._forget(set(partitions)))
        self._partitions.remove(partitions)

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
        their work is to be dropped."""
        if self._broken:
            return None
        try:
            async with asyncio.timeout(self._config.drain_timeout):
                return await self._collect_from_idle(lambda: wait_until_idle(self._agents))
        except TimeoutError:
            self._broken = SetbackError(
                f"agents did not finish their batch within drain_timeout "
                f"({self._config.drain_timeout} s)"
            )
            log.warning("drain_timed_out", agents=[each.stream.at for each in self._agents])
        except StreamingError as error:
            self._broken = error
        return None

    # sinks that keep the offsets

    async def _place_sinks(self) -> None:
        """Ask the sinks where they stand, and go there when they have answered. One may be away
        for long: its partitions wait, paused; the group and the others do not."""
        if self._placing is None:
            self._placing = asyncio.create_task(
                self._sink_positions(sorted(self._partitions.unplaced))
            )
        if not self._placing.done():
            return
        positions, self._placing = self._placing.result(), None
        self._positions |= await self._thread.call(
            self._partitions.place, positions, self._committed
        )
        for running in self._agents:
            topic = running.agent.topic.name
            running.stream.place({p: at for p, at in positions.items() if p.topic == topic})

    async def _sink_positions(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, int | None]:
        found: dict[TopicPartition, int | None] = dict.fromkeys(partitions)
        for agent in self._app.agents:
            of_agent = [each for each in partitions if each.topic == agent.topic.name]
            if agent.offsets_in and of_agent:
                ids = {agent.topic.name: self._around.identity.of(agent.topic.name)}
                found |= await agent.offsets_in.positions(of_agent, ids)
        return found

    # what others ask

    def owns(self, topic: str, partition: int) -> bool:
        return self._is_connected and TopicPartition(topic, partition) in self._partitions.owned

    def readiness(self) -> list[str]:
        reasons = self._partitions.readiness() if self._is_connected else ["connecting"]
        busy = time.monotonic() - self.busy_since if self.busy_since is not None else 0.0
        if busy > _BUSY_SECONDS:
            at = ", ".join(each.stream.at for each in self._agents if not each.stream.is_idle)
            reasons.append(f"agents have been busy for {busy:.0f} s, at {at}")
        return reasons

    @property
    def _gauges_are_due(self) -> bool:
        return time.monotonic() - self._last_gauges >= _GAUGES_SECONDS

    def _update_gauges(self) -> None:
        try:
            lag = self._partitions.update_gauges(self._positions, self._committed)
            if lag == 0 and self.busy_since is None:
                self._progress.made()
        except BrokerError as error:
            log.debug("lag_unknown", error=str(error))
        self._last_gauges = time.monotonic()

    # close

    async def _stop_agents(self) -> None:
        if self._placing is not None:
            self._placing.cancel()
            self._placing = None
        stopping, self._agents = self._agents, []
        for running in stopping:
            await running.cancel(self._config.drain_timeout)

    async def _close(self) -> None:
        self._closing = True
        try:
            await self._stop_agents()
        finally:
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._thread.call(self._disconnect)
            except TimeoutError:
                log.error("not_closed", service=self._app.id, seconds=_CLOSE_SECONDS)

    def _disconnect(self) -> None:
        if self._is_connected and self._has_broker:
            with suppress(BrokerError):
                self._committer.settle()
        with ExitStack() as closing:  # all of them, whichever fails; the consumer first
            for name in ("_partitions", "_committer", "_consumer"):
                opened = getattr(self, name, None)  # connecting may have failed half-way
                if opened is not None:
                    closing.callback(opened.close)
