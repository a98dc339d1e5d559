"""An app: what a service declares. Nothing here connects to anything; a `Worker` runs it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp
from typing_extensions import TypeVar

from ratestream.streaming.errors import ConfigurationError
from ratestream.streaming.sinks import OffsetKeeper
from ratestream.streaming.streams import Agent, AgentFunction, OnError
from ratestream.streaming.tables import AnyTable, Table
from ratestream.streaming.timers import Timer
from ratestream.streaming.topics import AnyTopic, Topic
from ratestream.streaming.types import ProcessingGuarantee, TopicSpec

K = TypeVar("K", default=str)
V = TypeVar("V")
Page = Callable[[Request], Awaitable[Response]]
Task = Callable[[], Awaitable[None]]
Lifespan = Callable[["App"], AsyncIterator[None]]
TRANSACTION_PROBE = TopicSpec("transaction-probe", partitions=1, retention_ms=3_600_000)
"""Where a worker finds out whether transactions work here, before it trusts them."""

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,200}")


class App:
    """The declarations of one service.

    `id` is its consumer group, and the prefix of its changelogs. `dead_letter`, once set, takes
    the records that cannot be decoded. With "exactly_once" what agents send, tables and positions
    are committed in one Kafka transaction; with "at_least_once" some of it may be done again after
    a failure. `leader_topic`, once set, elects: the instance to which
    the group gives its partition 0 runs the timers declared with `on_leader`. `cluster_id` is
    known from the lifespan on.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - Faust's name for it
        *,
        processing_guarantee: ProcessingGuarantee = "at_least_once",
    ) -> None:
        self.id = _checked_name("app id", id)
        if processing_guarantee not in get_args(ProcessingGuarantee):
            raise ConfigurationError(
                f"{id}: processing_guarantee={processing_guarantee!r}, must be one of "
                f"{get_args(ProcessingGuarantee)}"
            )
        self.processing_guarantee = processing_guarantee
        self.registry = CollectorRegistry()
        self.dead_letter: AnyTopic | None = None
        self.leader_topic: AnyTopic | None = None
        self.cluster_id = ""
        self.topics: dict[str, AnyTopic] = {}
        self.tables: dict[str, AnyTable] = {}
        self.agents: list[Agent] = []
        self.timers: list[Timer] = []
        self.tasks: list[Task] = []
        self.pages: dict[str, Page] = {}
        self.mounted: ASGIApp | None = None
        self.readiness_checks: dict[str, Callable[[], str | None]] = {}
        self._lifespan: Callable[[App], AbstractAsyncContextManager[None]] | None = None

    def topic(
        self,
        name: str,
        *,
        value_type: type[V],
        key_type: type[K] = str,  # type: ignore[assignment]  # a default for a type variable
        partitions: int = 8,
        cleanup_policy: Literal["delete", "compact"] = "delete",
        retention_ms: int = 7 * 24 * 3600 * 1000,
        max_message_bytes: int = 1_048_576,
    ) -> Topic[K, V]:
        """Declare a topic to read or to send to. Types: `bytes` as they are, `str` UTF-8 text,
        anything else JSON. The rest is used if the worker has to make the topic."""
        if name in self.topics:
            raise ConfigurationError(f"{self.id}: topic {name} is declared twice")
        spec = TopicSpec(
            name=_checked_name("topic", name),
            partitions=partitions,
            cleanup_policy=cleanup_policy,
            retention_ms=retention_ms,
            max_message_bytes=max_message_bytes,
        )
        topic: Topic[K, V] = Topic(spec, key_type, value_type)
        self.topics[name] = topic
        return topic

    def Table(  # noqa: N802 - Faust's name for it
        self,
        name: str,
        *,
        value_type: type[V],
        partitions_of: AnyTopic,
        key_type: type[K] = str,  # type: ignore[assignment]  # a default for a type variable
        default: Callable[[], V] | None = None,
        ttl: float | None = None,
    ) -> Table[K, V]:
        """Declare a table that is split like `partitions_of`, whose agents may write it. An entry
        not written for `ttl` seconds of stream time is missing; see `Table`."""
        if name in self.tables:
            raise ConfigurationError(f"{self.id}: table {name} is declared twice")
        changelog = TopicSpec(
            name=f"{self.id.replace('_', '-')}-{_checked_name('table', name)}-changelog",
            partitions=partitions_of.spec.partitions,
            cleanup_policy="compact",
            retention_ms=-1,
            max_message_bytes=partitions_of.spec.max_message_bytes,
        )
        types = (key_type, value_type)
        table: Table[K, V] = Table(name, changelog, partitions_of, types, default, ttl)
        self.tables[name] = table
        return table

    def agent(
        self,
        topic: AnyTopic,
        *,
        on_error: OnError = OnError(),  # noqa: B008 - it cannot be changed
        offsets_in: OffsetKeeper | None = None,
    ) -> Callable[[AgentFunction], AgentFunction]:
        """Declare a function that reads `topic` for ever. With `offsets_in` it starts where that
        sink stands; what it sends and rejects is then acknowledged at once, before the sink moves
        on, so that it may be repeated but never lost."""
        if offsets_in is not None and self.processing_guarantee == "exactly_once":
            raise ConfigurationError(
                f"{self.id}: an agent has its offsets in a sink or in a Kafka transaction, not in "
                "both: declare the app with processing_guarantee='at_least_once'"
            )

        def declare(function: AgentFunction) -> AgentFunction:
            agent = Agent(_name_of(function), topic, function, offsets_in, on_error)
            of_topic = [agent, *(each for each in self.agents if each.topic is topic)]
            if len(of_topic) > 1 and any(each.wants_its_topic_alone for each in of_topic):
                raise ConfigurationError(
                    f"{self.id}: {topic.name} has several agents, and one of them has offsets_in "
                    "or sends records to the dead letters when it fails: it would decide for all"
                )
            self.agents.append(agent)
            return function

        return declare

    def timer(
        self, interval: float, *, on_leader: bool = False, name: str | None = None
    ) -> Callable[[Task], Task]:
        """Declare a function to be called every `interval` seconds; see `Timer`."""

        def declare(function: Task) -> Task:
            self.timers.append(Timer(name or _name_of(function), interval, function, on_leader))
            return function

        return declare

    def task(self, function: Task) -> Task:
        """Declare a function to be called once, when the worker starts."""
        self.tasks.append(function)
        return function

    def page(self, path: str) -> Callable[[Page], Page]:
        """Declare a function that answers GET requests for `path`."""

        def declare(function: Page) -> Page:
            self.pages[path] = function
            return function

        return declare

    def mount(self, asgi: ASGIApp) -> None:
        """Serve an ASGI application for every path that is neither a page nor the runtime's."""
        self.mounted = asgi

    def lifespan(self, function: Lifespan) -> Lifespan:
        """Declare an async generator function: what is before its `yield` runs before any agent,
        timer or task, what is after it when all of them have ended."""
        self._lifespan = asynccontextmanager(function)
        return function

    def resources(self) -> AbstractAsyncContextManager[None]:
        """The lifespan, to be entered once by the worker."""
        return self._lifespan(self) if self._lifespan else _nothing()

    def add_readiness_check(self, name: str, check: Callable[[], str | None]) -> None:
        """`check` returns None when ready, otherwise the reason why not. It must not block."""
        self.readiness_checks[name] = check

    @property
    def is_exactly_once(self) -> bool:
        return self.processing_guarantee == "exactly_once"

    def input_topics(self) -> list[str]:
        """What the consumer group subscribes to."""
        topics = [agent.topic for agent in self.agents]
        if self.leader_topic is not None:
            topics.append(self.leader_topic)
        return sorted({topic.name for topic in topics})

    def topic_specs(self) -> list[TopicSpec]:
        """Every topic the app needs, changelogs included."""
        specs = [topic.spec for topic in self.topics.values()]
        specs += [table.changelog for table in self.tables.values()]
        return [*specs, TRANSACTION_PROBE] if self.is_exactly_once else specs


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _checked_name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"{what} {name!r}: allowed are 1 to 200 of a-z A-Z 0-9 . _ -")
    return name
