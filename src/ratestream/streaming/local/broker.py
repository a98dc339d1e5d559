"""The local broker itself: what makes consumers, producers and topics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ratestream.streaming.local.cleaner import Cleaner
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.groups import Group
from ratestream.streaming.local.producer import LocalProducer, LocalTransactionalProducer
from ratestream.streaming.local.storage import LocalBrokerConfig, Storage, now_ms
from ratestream.streaming.types import (
    ConsumerConfig,
    ProducerConfig,
    TopicConfig,
    TopicDescription,
    TopicSpec,
)


class LocalBroker:
    """Topics in the file `path`, or in memory when it is None.

    Raises `StateError` when the file belongs to another process or another format, or is not
    ours. Every call raises `BrokerError` when SQLite fails, with what it said. `clock` (seconds)
    tells how long a member of a group has been silent, and a transaction open.
    """

    def __init__(
        self,
        path: Path | None,
        config: LocalBrokerConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or LocalBrokerConfig()
        self._clock = clock
        self._storage = Storage(path, self._config)
        self._groups: dict[str, Group] = {}
        self._transactional: dict[str, LocalTransactionalProducer] = {}
        self._cleaner = Cleaner(self._storage, self._config)

    def consumer(self, config: ConsumerConfig) -> LocalConsumer:
        return LocalConsumer(self._storage, self._group(config.group), config, self._clock)

    def producer(self, config: ProducerConfig) -> LocalProducer:
        return LocalProducer(self._storage, config)

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> LocalTransactionalProducer:
        return LocalTransactionalProducer(
            self._storage, config, transactional_id, self._transactional, self._clock
        )

    def require_transactions(self, probe: str, group: str, transactional_id: str) -> None:
        """Nothing to find out: transactions here are what `types.py` asks for."""

    def cluster_id(self) -> str:
        return self._storage.cluster_id

    def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        with self._storage.changed:
            self._storage.create_topics(specs)
            for group in self._groups.values():
                group.rebalance()

    def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        topics = self._storage.topics
        return {name: topics[name].description for name in names if name in topics}

    def topic_configs(self, names: Sequence[str]) -> dict[str, TopicConfig]:
        topics = self._storage.topics
        return {name: topics[name].config for name in names if name in topics}

    def is_reachable(self) -> bool:
        return self._storage.is_open

    def trouble(self) -> str | None:
        return None if self._storage.is_open else "the local broker is closed"

    def run_maintenance(self) -> bool:
        """Retention, compaction, and giving disk space back: a bounded piece of it, to be called
        about once a second. True when there is more to do already."""
        return self._cleaner.run(now_ms())

    def close(self) -> None:
        """Waiting polls raise `BrokerError`, as does everything else from now on."""
        self._storage.close()

    def _group(self, name: str | None) -> Group | None:
        if name is None:
            return None
        with self._storage.changed:
            if name not in self._groups:
                self._groups[name] = Group(
                    self._storage.partitions_of, self._storage.changed.notify_all
                )
            return self._groups[name]
