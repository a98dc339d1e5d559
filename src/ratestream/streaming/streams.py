"""Streams and agents: how a program reads.

The worker feeds a stream one batch at a time. An agent iterates it with a plain `async for`, which
does not suspend between records except to give the event loop a turn every few milliseconds.
A record is done when the agent asks for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar

import msgspec

from ratestream.streaming.errors import (
    AgentError,
    ConfigurationError,
    FencedError,
    SetbackError,
    StoreError,
)
from ratestream.streaming.sinks import Move, OffsetKeeper
from ratestream.streaming.topics import AnyTopic, Outbox, Work, current_work
from ratestream.streaming.types import Headers, OutgoingRecord, Record, Run, TopicPartition

V = TypeVar("V")
RecordId = tuple[str, int, int]
"""Topic, partition and offset."""

_TURN_SECONDS = 0.01
_RECORDS_A_LOOK = 8
"""From one look at the clock to the next: a look for each record can be measured."""
_value, _key_and_value = attrgetter("value"), attrgetter("key", "value")
_REASON_BYTES = 1_000


class Event(msgspec.Struct, frozen=True, gc=False):
    """A record with its decoded key and value."""

    key: Any
    value: Any
    run: Run
    """What was read together with it; it is the one at `index`."""
    index: int

    @property
    def record(self) -> Record:
        """Everything the broker knows of it; made anew at each look."""
        return self.run.record(self.index)

    @property
    def partition(self) -> TopicPartition:
        return self.run.partition

    @property
    def offset(self) -> int:
        return self.run.offset(self.index)


def _whole(event: Event) -> Event:
    return event


@dataclass(frozen=True)
class Batch(Generic[V]):
    """Events, in the order read, and where their sink stands before them. What is made of them is
    made once: a sink that tries again asks again."""

    events: Sequence[Event]
    starts: Mapping[TopicPartition, int | None]

    @cached_property
    def values(self) -> list[V]:
        return [event.value for event in self.events]

    @cached_property
    def moves(self) -> list[Move]:
        """What the sink has to be moved by, in one transaction with the values."""
        ends = self._ends.items()
        return [Move(partition, self.starts.get(partition), end) for partition, end in ends]

    def halves(self) -> tuple[Batch[V], Batch[V]]:
        """To be written one after the other: the second starts where the first ends."""
        middle = len(self.events) // 2
        first: Batch[V] = Batch(self.events[:middle], self.starts)
        return first, Batch(self.events[middle:], {**self.starts, **first._ends})

    @cached_property
    def _ends(self) -> dict[TopicPartition, int]:
        last = {event.run: event.index for event in self.events}
        return {run.partition: run.offset(index) + 1 for run, index in last.items()}


class Stream(Generic[V]):
    """What an agent reads: the values of one topic, from this instance's partitions."""

    def __init__(
        self,
        topic: AnyTopic,
        work: Work,
        rejections: Rejections,
        alone: Collection[RecordId] = (),
        *,
        has_sink: bool = False,
    ) -> None:
        self.topic = topic
        self._has_sink = has_sink
        self._work = work
        self._rejections = rejections
        self._waiting: deque[Event] = deque()
        self._held: list[Event] = []
        self._current: Event | None = None
        self._fed = asyncio.Event()
        self._idle = asyncio.Event()
        self._begun = asyncio.Event()
        self._turn_ends = 0.0
        self._alone = alone
        self._sink_positions: dict[TopicPartition, int | None] = {}

    def __aiter__(self) -> AsyncIterator[V]:
        return self._each(_value)

    def items(self) -> AsyncIterator[tuple[Any, V]]:
        """Keys and values."""
        return self._each(_key_and_value)

    def records(self) -> AsyncIterator[Event]:
        """Key, value and everything the broker knows of each record."""
        return self._each(_whole)

    async def _each(self, part: Callable[[Event], Any]) -> AsyncIterator[Any]:
        waiting, work = self._waiting, self._work
        if self._has_sink:
            raise ConfigurationError(
                f"{self.topic.name}: an agent whose sink keeps the offsets reads `batches`, which "
                "know by what the sink has to be moved"
            )
        while True:
            while waiting:
                self._current = event = waiting.popleft()
                run = event.run
                if run is not work.run:
                    work.run, work.partition = run, run.partition.partition
                work.index = event.index
                yield part(event)
                if work.outbox.is_full:
                    await self._pause_to_be_fed()
                elif not event.index % _RECORDS_A_LOOK and time.monotonic() > self._turn_ends:
                    await self._give_turn()
            await self._pause_to_be_fed()

    async def _pause_to_be_fed(self) -> None:
        """Between two records: none is current."""
        self._current = self._work.run = self._work.partition = None
        await self._wait_to_be_fed(None)

    async def take(self, n: int, *, within: float) -> AsyncIterator[list[Event]]:
        """Up to `n` events at a time, sooner when `within` seconds have passed since the first.
        They count as done, all of them, when the next list is asked for."""
        if n < 1 or within < 0:
            raise ConfigurationError(f"take({n}, within={within}): n >= 1 and within >= 0")
        while True:
            if self._work.outbox.is_full:
                await self._wait_to_be_fed(None)
            await self._fill(n, within)
            yield list(self._held)
            self._held.clear()

    async def batches(self, n: int, *, within: float) -> AsyncIterator[Batch[V]]:
        """As `take`, for an agent whose sink keeps the offsets: each batch knows by what the sink
        has to be moved."""
        async for events in self.take(n, within=within):
            batch: Batch[V] = Batch(events, dict(self._sink_positions))
            yield batch
            self._sink_positions.update((each.partition, each.next) for each in batch.moves)

    async def _fill(self, n: int, within: float) -> None:
        deadline = None
        while len(self._held) < n:
            while self._waiting and len(self._held) < n:
                if self._is_alone(self._waiting[0]) and self._held:
                    return
                self._held.append(self._waiting.popleft())
                if self._is_alone(self._held[-1]):
                    self._note_begun()
                    return
            self._note_begun()
            if len(self._held) == n:
                return
            if self._held and deadline is None:
                deadline = time.monotonic() + within
            if not self._held:  # a rebalance may have taken them away
                deadline = None
            if not await self._wait_to_be_fed(deadline) and self._held:
                return

    def _note_begun(self) -> None:
        if not self._waiting:
            self._begun.set()

    def _is_alone(self, event: Event) -> bool:
        return bool(self._alone) and (*event.partition, event.offset) in self._alone

    async def _wait_to_be_fed(self, deadline: float | None) -> bool:
        """Idle meanwhile; False when the deadline passed first."""
        self._fed.clear()
        self._idle.set()
        try:
            if deadline is None:
                await self._fed.wait()
            else:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await self._fed.wait()
        except TimeoutError:
            return False
        finally:
            self._idle.clear()
            self._turn_ends = time.monotonic() + _TURN_SECONDS
        return True

    async def _give_turn(self) -> None:
        await asyncio.sleep(0)
        self._turn_ends = time.monotonic() + _TURN_SECONDS

    async def reject(
        self, reason: str, *, of: Record | None = None, value: bytes | None = None
    ) -> None:
        """Put the record the agent is at (or the one given, inside `take`) on the dead-letter
        topic as it was received, or only `value` of it, with the reason in a header."""
        record = of or (self._current.record if self._current else None)
        if record is None:
            raise ConfigurationError("reject: no record is current; name it with `of`")
        await self._work.outbox.put(self._rejections.record(record, reason, value))

    # What the worker does with a stream.

    def place(self, positions: Mapping[TopicPartition, int | None]) -> None:
        """Where the agent's sink stands in partitions that are about to be read."""
        self._sink_positions.update(positions)

    def feed(self, events: Iterable[Event]) -> None:
        """Give the agent more to read, or let it go on with what it has."""
        self._waiting.extend(events)
        if self._waiting:
            self._begun.clear()
            self._idle.clear()
            self._fed.set()

    @property
    def is_idle(self) -> bool:
        """Whether the agent waits to be fed: everything it was fed is done, or held by `take`, or
        it `has_more` and waits for its outbox to be emptied."""
        return self._idle.is_set()

    @property
    def has_more(self) -> bool:
        """Whether it has been fed records that the agent has not begun."""
        return bool(self._waiting)

    async def wait_idle(self) -> None:
        await self._idle.wait()

    @property
    def is_committable(self) -> bool:
        """Whether what the agent has done can be committed now. What a sink keeps is always done
        or not, whatever the agent is at."""
        return self._has_sink or self.is_idle

    async def wait_ready(self) -> None:
        """Until everything that was fed is done, or taken if a sink keeps the offsets."""
        if not self._has_sink:
            await self.wait_idle()
            return
        while self._waiting:
            await self._begun.wait()

    def first_undone(self) -> dict[TopicPartition, int]:
        """For each partition with records not done, the offset of the first."""
        of_run = {event.run: event.index for event in reversed((*self._held, *self._waiting))}
        first: dict[TopicPartition, int] = {}
        for run, index in of_run.items():
            offset = run.offset(index)
            first[run.partition] = min(offset, first.get(run.partition, offset))
        return first

    def drop(self, partitions: Collection[TopicPartition]) -> None:
        """Forget what is not done of these partitions: another instance will read it."""
        kept = [each for each in self._waiting if each.partition not in partitions]
        self._waiting.clear()
        self._waiting.extend(kept)
        self._note_begun()
        self._held[:] = [e for e in self._held if e.partition not in partitions]

    def current(self) -> list[RecordId]:
        """What the agent is at: one record, those of a list of `take`, or none."""
        events = [self._current] if self._current else self._held
        return [(*e.partition, e.offset) for e in events]

    @property
    def at(self) -> str:
        """Where the agent is, for errors."""
        for topic, partition, offset in self.current():
            return f"{topic}[{partition}]@{offset}"
        return "no record"


AnyStream = Stream[Any]


class Rejections:
    """Makes the records of the dead-letter topic."""

    def __init__(self, service: str, topic: AnyTopic | None) -> None:
        self._service = service
        self._topic = topic

    def record(self, rejected: Record, reason: str, value: bytes | None = None) -> OutgoingRecord:
        """`rejected` as received (or `value` in its place), with headers `topic`, `partition`,
        `offset`, `timestamp`, `service` and `reason`. Raises `ConfigurationError` without a topic
        for it: a record is never skipped silently."""
        if self._topic is None:
            raise ConfigurationError(
                f"{self._service}: {rejected.topic}[{rejected.partition}]@{rejected.offset} cannot "
                f"be processed ({reason}) and the app declares no dead_letter topic"
            )
        headers: Headers = (
            ("topic", rejected.topic.encode()),
            ("partition", str(rejected.partition).encode()),
            ("offset", str(rejected.offset).encode()),
            ("timestamp", str(rejected.timestamp).encode()),
            ("service", self._service.encode()),
            ("reason", reason.encode()[:_REASON_BYTES]),
        )
        content = rejected.value if value is None else value
        # Sent with the time of the rejection: retention must not delete what is already old.
        return self._topic.encode(rejected.key, content, None, headers)


AgentFunction = Callable[[AnyStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class OnError:
    """What happens when an agent raises for a record. Everything that is not committed is dropped
    and read again, up to `retries` times, after `backoff` seconds that double each time. Then the
    worker stops, or the record goes to the dead-letter topic, in the same commit as its
    neighbours, with the error as the reason. A record of a list of `take` is first tried alone.
    """

    retries: int = 0
    backoff: float = 1.0
    then: Literal["stop", "dead_letter"] = "stop"

    def __post_init__(self) -> None:
        if self.retries < 0 or self.backoff < 0 or self.then not in ("stop", "dead_letter"):
            raise ConfigurationError(
                f"{self}: retries and backoff must be >= 0, then is 'stop' or 'dead_letter'"
            )


@dataclass(frozen=True, slots=True)
class Agent:
    """A function that reads one topic for ever."""

    name: str
    topic: AnyTopic
    function: AgentFunction
    offsets_in: OffsetKeeper | None = None
    on_error: OnError = OnError()

    @property
    def wants_its_topic_alone(self) -> bool:
        return self.offsets_in is not None or self.on_error.then == "dead_letter"


class RunningAgent:
    """One run of an agent's coroutine. A setback ends it; only tables and sinks survive that."""

    def __init__(
        self,
        agent: Agent,
        outbox: Outbox,
        rejections: Rejections,
        alone: Collection[RecordId] = (),
    ) -> None:
        work = Work(outbox)
        self.agent = agent
        has_sink = agent.offsets_in is not None
        self.stream: AnyStream = Stream(agent.topic, work, rejections, alone, has_sink=has_sink)
        context = copy_context()
        context.run(current_work.set, work)
        self.task = asyncio.get_running_loop().create_task(
            self._run(), name=f"agent {agent.name}", context=context
        )

    async def _run(self) -> None:
        try:
            await self.agent.function(self.stream)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise self._error("something that it awaited was cancelled") from error
        except FencedError as error:  # only a sink raises it to an agent
            raise SetbackError(f"agent {self.agent.name}: {error}") from error
        except StoreError:  # no fault of the record that it was at
            raise
        except Exception as error:  # the boundary: whatever an agent raises is its policy's
            raise self._error(f"{type(error).__name__}: {error}") from error
        raise AgentError(f"agent {self.agent.name} returned; an agent reads for ever")

    def _error(self, what: str) -> AgentError:
        agent, stream = self.agent, self.stream
        message = f"agent {agent.name} failed at {stream.at}: {what}"
        return AgentError(message, agent.name, stream.current())

    async def cancel(self, timeout: float) -> None:
        """Raises `AgentError` when it does not end within `timeout` seconds."""
        self.task.cancel()
        if not (await asyncio.wait((self.task,), timeout=timeout))[0]:
            raise AgentError(f"agent {self.agent.name} does not end when it is cancelled")


async def wait_until_idle(agents: Sequence[RunningAgent]) -> None:
    """Until every agent has done what it was fed. Raises `AgentError` as soon as one fails."""
    await _wait_until(agents, [each.stream.wait_idle for each in agents])


async def wait_until_ready(agents: Sequence[RunningAgent]) -> None:
    """As `wait_until_idle`, but an agent whose sink keeps the offsets need only have begun: while
    it writes one batch, the next can be read."""
    await _wait_until(agents, [each.stream.wait_ready for each in agents])


async def _wait_until(
    agents: Sequence[RunningAgent], conditions: Iterable[Callable[[], Awaitable[None]]]
) -> None:
    tasks = [running.task for running in agents]
    for condition in conditions:
        met = asyncio.ensure_future(condition())
        try:
            await asyncio.wait((met, *tasks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            met.cancel()
        for task in tasks:
            if task.done():
                task.result()
