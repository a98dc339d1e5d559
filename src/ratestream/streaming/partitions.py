"""The partitions that an instance has, and what has to be there before one of them is read: its
tables restored, and its sink asked where it stands. All of it belongs to the broker thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from ratestream.streaming.app import App
from ratestream.streaming.errors import StateError
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.restoring import Restorer
from ratestream.streaming.sinks import OffsetKeeper
from ratestream.streaming.standby import Standby
from ratestream.streaming.tables import AnyTable
from ratestream.streaming.types import Broker, Consumer, TopicPartition, WorkerConfig

_RESTORE_SECONDS = 0.005
# What restoring may take between two polls: the partitions that need none go on meanwhile.
_RESTORE_TURN_SECONDS = 0.05
_STANDBY_BATCH_RECORDS = 1_000
_LAG_SECONDS = 1.0

log = structlog.get_logger("ratestream.partitions")


@dataclass(frozen=True, slots=True)
class Identity:
    """The cluster and the topics that a worker found when it connected."""

    cluster_id: str
    topic_ids: Mapping[str, str]
    partitions: Mapping[str, int]

    def of(self, topic: str) -> str:
        """Names a topic for ever: made again, it is another."""
        return f"{self.cluster_id}/{self.topic_ids[topic]}"


@dataclass(frozen=True, slots=True)
class Instance:
    """What is one instance's own: a name that it keeps over restarts, and a folder for tables."""

    id: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What one run of a worker finds: its app, and where that runs."""

    app: App
    broker: Broker
    config: WorkerConfig
    metrics: WorkerMetrics
    identity: Identity
    instance: Instance


class Partitions:
    """Those that the group has given to `consumer`, from the moment it says so."""

    def __init__(self, around: Surroundings, consumer: Consumer) -> None:
        app, broker, metrics = around.app, around.broker, around.metrics
        self._app = app
        self._config = around.config
        self._metrics = metrics
        self._identity = around.identity
        self._instance = around.instance
        self._consumer = consumer
        self._restorer = Restorer(broker, app.id, metrics)
        self._standby = Standby(broker, app.id, metrics) if around.config.standby else None
        self.owned: set[TopicPartition] = set()
        self.unplaced: set[TopicPartition] = set()
        """Those whose sink has not yet said where it stands."""
        self.is_catching_up = False
        """Whether copies of others' tables have more to read at once."""
        self._to_open: list[TopicPartition] = []
        self._to_resume: set[TopicPartition] = set()

    # They come and go, inside the consumer's poll.

    def add(self, partitions: Collection[TopicPartition]) -> None:
        """Paused, until `advance` has everything that they need."""
        self.owned.update(partitions)
        self._to_open.extend(partitions)
        self._metrics.partitions.set(len(self.owned))

    def remove(self, partitions: Collection[TopicPartition]) -> None:
        """Close what belongs to them, before their new owner may open it."""
        gone = set(partitions)
        self.owned -= gone
        self.unplaced -= gone
        self._to_resume -= gone
        self._to_open = [each for each in self._to_open if each not in gone]
        self._restorer.drop(gone)
        for partition in gone:
            for table in self._tables_of(partition):
                table.close(partition.partition)
            self._forget_lag(partition)
        self._follow_the_others()
        self._metrics.partitions.set(len(self.owned))

    # What has to be there

    @property
    def is_behind(self) -> bool:
        """Whether there is something to open or to restore."""
        return bool(self._to_open) or self._restorer.active

    @property
    def to_restore(self) -> int | None:
        """Changelog records still to be read, at most; None when nothing is being restored."""
        return self._restorer.remaining() if self._restorer.active else None

    def advance(self) -> None:
        """Open what has come, go on restoring, resume what is complete; a bounded piece of it."""
        opening = list(self._to_open)
        for partition in opening:
            for table in self._tables_of(partition):
                self._open(table, partition.partition)
            if self.is_wanted(partition):
                self._to_resume.add(partition)
            if self.sink_of(partition):
                self.unplaced.add(partition)
        if opening:
            self._follow_the_others()
            self._to_open = []  # not before: others ask meanwhile whether everything is there
        until = time.monotonic() + _RESTORE_TURN_SECONDS
        while self._restorer.active and time.monotonic() < until:
            self._restorer.step(_RESTORE_SECONDS)
        if self._standby:
            self.is_catching_up = self._standby.step(_STANDBY_BATCH_RECORDS)
        ready = [each for each in self._to_resume if self._is_complete(each)]
        if ready:
            self._consumer.resume(ready)
            self._to_resume.difference_update(ready)

    def resume(self) -> None:
        """Everything that may be read, after a pause of all."""
        self._consumer.resume([each for each in self.owned if self._is_complete(each)])

    def is_wanted(self, partition: TopicPartition) -> bool:
        """Whether an agent reads it; a leader topic may only be there to elect."""
        return any(agent.topic.name == partition.topic for agent in self._app.agents)

    def _is_complete(self, partition: TopicPartition) -> bool:
        return (
            self.is_wanted(partition)
            and partition not in self._to_open
            and partition not in self.unplaced
            and self._is_restored(partition)
        )

    def _is_restored(self, partition: TopicPartition) -> bool:
        return not self._restorer.waits_for(partition)

    def _tables_of(self, partition: TopicPartition) -> list[AnyTable]:
        return [t for t in self._app.tables.values() if t.source.name == partition.topic]

    def _open(self, table: AnyTable, partition: int) -> None:
        if self._standby:
            self._standby.release(table, partition)
        table.cache_entries = self._config.table_cache_entries
        changelog_id = self._identity.of(table.changelog.name)
        store = table.open(partition, self._instance.folder, changelog_id)
        self._restorer.add(table, partition, store)

    def _follow_the_others(self) -> None:
        """Keep copies of the partitions that other instances own."""
        if self._standby is None:
            return
        for table in self._app.tables.values():
            changelog_id = self._identity.of(table.changelog.name)
            for number in range(self._identity.partitions[table.source.name]):
                if TopicPartition(table.source.name, number) not in self.owned:
                    self._standby.follow(table, number, self._instance.folder, changelog_id)

    # Where they are read

    def sink_of(self, partition: TopicPartition) -> OffsetKeeper | None:
        for agent in self._app.agents:
            if agent.topic.name == partition.topic and agent.offsets_in:
                return agent.offsets_in
        return None

    def go_back(self, committed: Mapping[TopicPartition, int]) -> None:
        """Pause everything, and read it again from what is committed. Sinks are asked again."""
        self._consumer.pause(list(self._consumer.assignment()))
        for partition in self.owned:
            if self.sink_of(partition):
                self.unplaced.add(partition)
                self._to_resume.add(partition)
            elif partition in committed:
                self._consumer.seek(partition, committed[partition])

    def place(
        self,
        sinks: Mapping[TopicPartition, int | None],
        committed: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """Read on from where sinks stand, or from what is committed if they have never been
        written; returns those positions. Raises `StateError` for one beyond the end."""
        placed = {}
        for partition in self.unplaced & sinks.keys():
            position = sinks[partition]
            if position is None:
                position = committed.get(partition)
            else:
                self._check_is_there(partition, position)
            if position is not None:
                self._consumer.seek(partition, position)
                placed[partition] = position
            self.unplaced.discard(partition)
        return placed

    def _check_is_there(self, partition: TopicPartition, position: int) -> None:
        end = self._consumer.log_end(partition)
        if position > end:
            raise StateError(
                f"the sink stands at offset {position} of {partition.topic}"
                f"[{partition.partition}], which ends at {end}: it has read what this topic "
                "has lost; see that both are of the same age"
            )
        low = self._consumer.watermarks(partition).low
        if position < low:  # nobody has them any more: what is left is better than nothing
            log.error(
                "records_lost_to_retention",
                topic=partition.topic,
                partition=partition.partition,
                first=position,
                last=low - 1,
            )

    def passed(
        self,
        positions: Mapping[TopicPartition, int],
        committed: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """Where the consumer is beyond what has been read and committed: the end of a transaction
        has an offset, too."""
        found = {}
        for partition in self.owned - self._to_resume:
            done, position = committed.get(partition, -1), self._consumer.position(partition)
            is_all_done = positions.get(partition, -1) <= done
            if is_all_done and position is not None and position > done:
                found[partition] = position
        return found

    # What others ask

    def readiness(self) -> list[str]:
        if self.unplaced:
            return ["waiting for a sink to say where it stands"]
        if self._to_open or self._to_resume:
            return [self._restorer.progress() or "restoring tables"]
        return []

    def update_gauges(
        self,
        positions: Mapping[TopicPartition, int],
        committed: Mapping[TopicPartition, int],
    ) -> int | None:
        """Returns how many records are to be committed in all; None while that is not known.
        Raises `BrokerError`."""
        for table in self._app.tables.values():
            table.refresh(self._is_restored)
            self._metrics.table_bytes.labels(table.name).set(table.estimated_bytes())
            self._metrics.table_entries.labels(table.name).set(table.estimated_entries())
        if self._standby:
            self._metrics.standby_lag.set(self._standby.lag())
        wanted = list(filter(self.is_wanted, self.owned))
        ends = self._consumer.stable_ends(wanted, _LAG_SECONDS)
        lags = [self._update_lag(each, end, positions, committed) for each, end in ends.items()]
        return None if self._to_open or self._to_resume or None in lags else sum(filter(None, lags))

    def _update_lag(
        self,
        partition: TopicPartition,
        end: int,
        positions: Mapping[TopicPartition, int],
        committed: Mapping[TopicPartition, int],
    ) -> int | None:
        """None while it is not known where reading goes on. What is read and not committed counts,
        or work that is dropped and done again for ever would show no lag."""
        done = committed.get(partition)
        passed = None if partition in self.unplaced else self._consumer.position(partition)
        if passed is None and done is None:
            return None
        if positions.get(partition) in (None, done):  # nothing under way: only control records
            done = max(passed or 0, done or 0)
        lag = max(0, end - (done or 0))
        self._metrics.lag.labels(partition.topic, str(partition.partition)).set(lag)
        return lag

    def _forget_lag(self, partition: TopicPartition) -> None:
        try:
            self._metrics.lag.remove(partition.topic, str(partition.partition))
        except KeyError:
            return

    def close(self) -> None:
        with ExitStack() as closing:  # all of them, whichever fails
            closing.callback(self._metrics.lag.clear)
            closing.callback(self._metrics.partitions.set, 0)
            closing.callback(self.owned.clear)
            for table in self._app.tables.values():
                closing.callback(table.close_all)
            if self._standby:
                closing.callback(self._standby.close)
            closing.callback(self._restorer.close)
