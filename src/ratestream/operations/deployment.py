"""What operations work on, and the topics and groups that its services need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

from ratestream.settings import Settings
from ratestream.streaming import App, Broker, TopicSpec

DEAD_LETTER = "dead-letter"

R = TypeVar("R", covariant=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the services together need: their topics by name, for each changelog the topic it is
    split like, and for each service the topics whose records it has to work through."""

    topics: Mapping[str, TopicSpec]
    sources: Mapping[str, str]
    inputs: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Deployment:
    """The settings, the way to the broker, how each service is built, and whether this process
    runs the services itself."""

    settings: Settings
    connect: Callable[[], Broker]
    builders: Mapping[str, Callable[[Settings], App]]
    runs_services: bool = False

    @cached_property
    def broker(self) -> Broker:
        """Made when first asked for: what concerns Postgres only needs no settings of Kafka."""
        return self.connect()

    @cached_property
    def plan(self) -> Plan:
        """Builds every service's app, which connects to nothing."""
        apps = {name: build(self.settings) for name, build in self.builders.items()}
        copies = self.settings.topics.replication_factor
        topics: dict[str, TopicSpec] = {}
        for app in apps.values():
            for spec in app.topic_specs():
                topics.setdefault(spec.name, replace(spec, replication_factor=copies))
        tables = [table for app in apps.values() for table in app.tables.values()]
        return Plan(
            topics,
            {table.changelog.name: table.source.name for table in tables},
            {
                app.id: tuple(sorted({agent.topic.name for agent in app.agents}))
                for app in apps.values()
                if app.agents
            },
        )


class Operation(Protocol[R]):
    """The arguments, and what is done with them."""

    async def run(self, deployment: Deployment) -> R:
        """Raises `OperationError`, `StreamingError` or `StorageError`."""
        ...
