"""The commit protocol of an exactly-once app, whatever its instances do to each other.

Instances count keys: each input makes one output and changes a table that has a changelog. They
join, restore, poll, commit, leave, fall silent, die, and are replaced while they still act, also
in the middle of each other's transactions. At every moment what others can read must be what a
program would have written that has done everything below the committed offsets once, and nothing
else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from prometheus_client import CollectorRegistry

from ratestream.streaming.committer import ExactlyOnce, Uncommitted
from ratestream.streaming.errors import BrokerError, TransactionAbortedError
from ratestream.streaming.local import LocalBroker, LocalBrokerConfig
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.local.producer import LocalTransactionalProducer
from ratestream.streaming.metrics import WorkerMetrics
from ratestream.streaming.store import Store
from ratestream.streaming.tables import Table, TableChanges
from ratestream.streaming.topics import Topic
from ratestream.streaming.types import (
    Consumer,
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
)

PARTITIONS = 2
INPUT = TopicSpec("inputs", PARTITIONS)
OUTPUT = TopicSpec("outputs", PARTITIONS)
CHANGELOG = TopicSpec("counter-changelog", PARTITIONS, cleanup_policy="compact")
GROUP = "counter"
FORGOTTEN_AT = 3  # a key counted as often is deleted from the table, so that there are tombstones

# Who has not polled for two steps of time is expelled, even within one open transaction.
STEP_SECONDS = 60.0
MAX_POLL_INTERVAL = 100.0
TRANSACTION_TIMEOUT = 150.0

CONFIG = LocalBrokerConfig(batch_bytes=200, compaction_min_bytes=0, maintenance_bytes=600)
METRICS = WorkerMetrics(CollectorRegistry(), Path("/"))


class Killed(Exception):  # noqa: N818 - an event, not an error
    """The process is gone, from here on."""


class Interruptible(LocalBroker):
    """Lets something happen in the next transaction: before its commit or right after it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(None, CONFIG, clock)
        self.before_commit: Callable[[], None] | None = None
        self.after_commit: Callable[[], None] | None = None

    def transactional_producer(
        self, config: ProducerConfig, transactional_id: str
    ) -> LocalTransactionalProducer:
        return _Producer(
            self, self._storage, config, transactional_id, self._transactional, self._clock
        )


class _Producer(LocalTransactionalProducer):
    def __init__(self, broker: Interruptible, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._broker = broker

    def commit(
        self, offsets: Mapping[TopicPartition, int], consumer: Consumer
    ) -> dict[TopicPartition, int]:
        before, self._broker.before_commit = self._broker.before_commit, None
        after, self._broker.after_commit = self._broker.after_commit, None
        if before:
            before()
        ends = super().commit(offsets, consumer)
        if after:
            after()
        return ends


class Instance:
    """One process of the app, as a worker runs it: what it does between consumer and commit."""

    def __init__(self, broker: LocalBroker, slot: int, folder: Path) -> None:
        self.slot = slot
        self.folder = folder
        self._broker = broker
        self._table = Table("counts", CHANGELOG, Topic(INPUT, str, str), (str, str), None)
        self._stores: dict[int, Store] = {}
        self._restoring: dict[int, tuple[LocalConsumer, int]] = {}
        self._drains = True
        self._closes = False
        self._has_to_go_back = False
        self._forget()
        self._consumer = broker.consumer(
            ConsumerConfig(group=GROUP, max_poll_interval=MAX_POLL_INTERVAL)
        )
        self._committer = ExactlyOnce(
            broker,
            ProducerConfig(transaction_timeout=TRANSACTION_TIMEOUT),
            self._consumer,
            METRICS,
            transactional_id=f"{GROUP}-{slot}",
        )
        self._consumer.subscribe([INPUT.name], self)

    def poll(self, max_records: int, *, drains: bool) -> None:
        self._drains = drains
        records = self._consumer.poll(max_records, timeout=0)
        if self._has_to_go_back:
            self.go_back()
            return
        for record in records:
            self._count(record)

    def restore(self, max_records: int) -> None:
        """One step for each partition whose changelog has not been read to its end."""
        for partition, (reader, end) in list(self._restoring.items()):
            changelog = TopicPartition(CHANGELOG.name, partition)
            store = self._stores[partition]
            for record in reader.poll(max_records, timeout=0):
                store.write({record.key or b"": record.value}, record.offset + 1)
            position = reader.position(changelog)
            assert position is not None
            if position >= end:
                store.write({}, position)
                self._restoring.pop(partition)[0].close()
                self._consumer.resume([TopicPartition(INPUT.name, partition)])

    def commit(self) -> None:
        self.begin()
        self.end()

    def commit_around_a_poll(self, meanwhile: Callable[[], None]) -> None:
        """As a pipeline does; `meanwhile` is between the commit's beginning and the poll."""
        self.begin()
        meanwhile()
        self._drains = True
        records = self._consumer.poll(6, timeout=0)
        if self._has_to_go_back:
            self.go_back()
            return
        self.end()
        for record in records:
            self._count(record)

    def begin(self) -> None:
        changes = [
            TableChanges(self._table, partition, changes)
            for partition, changes in self._written.items()
        ]
        if work := Uncommitted(self._outputs, changes, self._positions):
            self._committer.begin(work)
            self._forget()

    def end(self) -> None:
        if self._committer.has_begun:
            self._committer.end()

    def go_back(self) -> None:
        """Everything that is not committed is read again."""
        self._has_to_go_back = False
        self._forget()
        owned = sorted(self._consumer.assignment())
        committed = self._consumer.committed(owned)
        for partition in owned:
            self._consumer.seek(partition, committed.get(partition, 0))

    def close(self) -> None:
        self._closes, self._drains = True, False
        self._consumer.close()
        self._committer.close()
        self.vanish()

    def vanish(self) -> None:
        """Leave everything as it is; only RocksDB has to let go of its folder."""
        for partition in list(self._stores):
            self._close(partition)

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        for _, partition in partitions:
            store = self._table.open(partition, self.folder, CHANGELOG.name)
            changelog = TopicPartition(CHANGELOG.name, partition)
            reader = self._broker.consumer(ConsumerConfig(offset_reset="error"))
            reader.assign({changelog: store.checkpoint or 0})
            self._stores[partition] = store
            self._restoring[partition] = (reader, reader.log_end(changelog))
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        try:
            if not self._closes:
                self.end()
            if self._drains:
                self.commit()
            else:
                self._has_to_go_back = True
        except TransactionAbortedError:
            self._has_to_go_back = True
        finally:
            self._close_all(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._has_to_go_back = True
        self._committer.give_up(partitions)
        self._close_all(partitions)

    def _close_all(self, partitions: Sequence[TopicPartition]) -> None:
        for _, partition in partitions:
            self._close(partition)

    def _close(self, partition: int) -> None:
        del self._stores[partition]
        self._table.close(partition)
        if partition in self._restoring:
            self._restoring.pop(partition)[0].close()

    def _count(self, record: Record) -> None:
        key, changes = record.key or b"", self._written.setdefault(record.partition, {})
        before = changes[key] if key in changes else self._stores[record.partition].get(key)
        times = int(before or 0) + 1
        changes[key] = None if times == FORGOTTEN_AT else b"%d" % times
        self._outputs.append(output(record.partition, record.offset, times))
        self._positions[record.topic_partition] = record.offset + 1

    def _forget(self) -> None:
        self._outputs: list[OutgoingRecord] = []
        self._written: dict[int, dict[bytes, bytes | None]] = {}
        self._positions: dict[TopicPartition, int] = {}


def output(partition: int, offset: int, times: int) -> OutgoingRecord:
    """Not in the partition of its input: one transaction writes several."""
    text = f"{partition} {offset} {times}"
    return OutgoingRecord(OUTPUT.name, None, text.encode(), (partition + offset) % PARTITIONS)


MAX_INSTANCES = 4
KEYS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=6)
WHO = st.integers(0, MAX_INSTANCES - 1)
MEANWHILE = st.lists(st.sampled_from(["work", "commit", "replace", "silence"]), max_size=4)


class ExactlyOnceInstances(RuleBasedStateMachine):
    """Two processes in one slot have one transactional id: an instance and its zombie."""

    @initialize(inputs=st.lists(KEYS, min_size=PARTITIONS, max_size=PARTITIONS))
    def open(self, inputs: list[list[bytes]]) -> None:
        self.now = 0.0
        self.folder = TemporaryDirectory()
        self.broker = Interruptible(lambda: self.now)
        self.broker.create_topics([INPUT, OUTPUT, CHANGELOG])
        self.instances: list[Instance] = []
        self.newest: dict[int, Instance] = {}
        self.source = self.broker.transactional_producer(ProducerConfig(), "source")
        for partition, keys in enumerate(inputs):
            self.write_inputs(partition, keys)
        self.start_in(0)

    @rule(partition=st.integers(0, PARTITIONS - 1), keys=KEYS)
    def write_inputs(self, partition: int, keys: list[bytes]) -> None:
        """By transactions, so that their offsets have gaps."""
        self.source.begin()
        self.source.send([OutgoingRecord(INPUT.name, key, b"", partition) for key in keys])
        self.source.commit({}, self.broker.consumer(ConsumerConfig()))

    @precondition(lambda self: len(self.instances) < MAX_INSTANCES)
    @rule(who=WHO, replaces=st.sampled_from([False, False, True]))
    def start(self, who: int, replaces: bool) -> None:
        taken = {instance.slot for instance in self.instances}
        free = next(slot for slot in count() if slot not in taken)
        self.start_in(self.at(who).slot if replaces and taken else free)

    @precondition(lambda self: self.instances)
    @rule(
        who=WHO,
        max_records=st.integers(1, 6),
        max_restored=st.sampled_from([1, 1000]),
        drains=st.booleans(),
    )
    def work(self, who: int, max_records: int, max_restored: int, drains: bool) -> None:
        self.let_work(self.at(who), max_records, max_restored, drains=drains)

    @precondition(lambda self: self.instances)
    @rule(
        who=WHO,
        works=st.booleans(),
        polls=st.booleans(),
        other=WHO,
        meanwhile=MEANWHILE,
        death=st.sampled_from(["", "", "before", "after"]),
    )
    def commit(
        self, who: int, works: bool, polls: bool, other: int, meanwhile: list[str], death: str
    ) -> None:
        """Of what it had done before, or also of what it does now."""
        instance = self.at(who)
        if works:
            self.let_work(instance, 6, 1000, drains=True)

        def happen() -> None:
            for event in meanwhile:
                self.let_happen(event, instance, other)

        def before() -> None:
            if not polls:
                happen()
            if death == "before":
                raise Killed

        def after() -> None:
            assert self.newest[instance.slot] is instance, "a fenced producer has committed"
            if death == "after":
                raise Killed

        def begun() -> None:
            happen()
            self.broker.before_commit, self.broker.after_commit = before, after

        if instance in self.instances and polls:
            self.watch(instance, partial(instance.commit_around_a_poll, begun))
        elif instance in self.instances:
            self.broker.before_commit, self.broker.after_commit = before, after
            self.watch(instance, instance.commit)
        self.broker.before_commit = self.broker.after_commit = None

    @precondition(lambda self: len(self.instances) > 1)
    @rule(who=WHO, clean=st.booleans())
    def stop(self, who: int, clean: bool) -> None:
        instance = self.at(who)
        if clean:
            self.watch(instance, instance.commit)
        if instance in self.instances:
            (self.end if clean else self.bury)(instance)

    @rule(steps=st.integers(1, 2))
    def time_passes(self, steps: int) -> None:
        self.now += steps * STEP_SECONDS
        self.broker.run_maintenance()

    def recover(self) -> None:
        """When nothing fails any more, what is there gets done."""
        for _ in range(20):
            if not self.instances:
                self.start_in(0)
            self.now += STEP_SECONDS
            for instance in list(self.instances):
                self.let_work(instance, 100, 1000, drains=True)
            for instance in list(self.instances):
                self.watch(instance, instance.commit)
            if self.inputs() == self.inputs(self.committed()):
                return
        raise AssertionError("the app does not recover")

    @precondition(lambda self: hasattr(self, "broker"))
    @invariant()
    def others_see_each_input_done_once(self) -> None:
        outputs: list[OutgoingRecord] = []
        table: Counter[tuple[int, bytes]] = Counter()
        for record in self.inputs(self.committed()):
            counted = (record.partition, record.key or b"")
            table[counted] = table[counted] % FORGOTTEN_AT + 1
            outputs.append(output(record.partition, record.offset, table[counted]))
        seen = self.read(OUTPUT)
        assert sorted(record.value or b"" for record in seen) == sorted(
            record.value or b"" for record in outputs
        )
        kept: dict[tuple[int, bytes], int] = {}
        for record in self.read(CHANGELOG):
            kept[record.partition, record.key or b""] = int(record.value or FORGOTTEN_AT)
        assert kept == table

    def teardown(self) -> None:
        if hasattr(self, "broker"):
            self.recover()
            self.others_see_each_input_done_once()
            for instance in list(self.instances):
                self.bury(instance)
            self.broker.close()
            self.folder.cleanup()

    def let_happen(self, event: str, instance: Instance, other: int) -> None:
        """While `instance`, whose thread is in its commit, does nothing."""
        others = [each for each in self.instances if each is not instance]
        if event == "replace" and len(self.instances) < MAX_INSTANCES:
            self.start_in(instance.slot)
        elif event == "silence":
            self.time_passes(2)
        elif others and event == "work":
            self.let_work(self.at(other, others), 6, 1000, drains=True)
        elif others and event == "commit":
            actor = self.at(other, others)
            self.watch(actor, actor.commit)

    def start_in(self, slot: int) -> None:
        """Takes the transactional id of whoever is in the slot, which may not know."""
        in_use = {instance.folder for instance in self.instances}
        folders = (Path(self.folder.name) / f"{slot}-{number}" for number in count())
        folder = next(folder for folder in folders if folder not in in_use)
        self.newest[slot] = Instance(self.broker, slot, folder)
        self.instances.append(self.newest[slot])

    def let_work(
        self, instance: Instance, max_records: int, max_restored: int, *, drains: bool
    ) -> None:
        def work() -> None:
            instance.poll(max_records, drains=drains)
            instance.restore(max_restored)
            instance.poll(max_records, drains=drains)

        self.watch(instance, work)

    def watch(self, instance: Instance, action: Callable[[], None]) -> None:
        """What a worker does about the errors of its pipeline."""
        try:
            action()
        except TransactionAbortedError:
            instance.go_back()
        except BrokerError:
            self.end(instance)
        except Killed:
            self.bury(instance)

    def end(self, instance: Instance) -> None:
        self.instances.remove(instance)
        instance.close()

    def bury(self, instance: Instance) -> None:
        self.instances.remove(instance)
        instance.vanish()

    def at(self, who: int, among: Sequence[Instance] = ()) -> Instance:
        instances = among or self.instances
        return instances[who % len(instances)]

    def inputs(self, below: Mapping[TopicPartition, int] | None = None) -> list[Record]:
        """All of them, or those below these offsets."""
        records = self.read(INPUT)
        if below is None:
            return records
        return [each for each in records if each.offset < below.get(each.topic_partition, 0)]

    def committed(self) -> dict[TopicPartition, int]:
        with closing(self.broker.consumer(ConsumerConfig(group=GROUP))) as consumer:
            return consumer.committed(partitions(INPUT))

    def read(self, topic: TopicSpec) -> list[Record]:
        """What a reader that begins now finds."""
        records: list[Record] = []
        with closing(self.broker.consumer(ConsumerConfig(offset_reset="error"))) as consumer:
            consumer.assign(dict.fromkeys(partitions(topic), 0))
            for partition in partitions(topic):
                while consumer.position(partition) != consumer.log_end(partition):
                    records += consumer.poll(1000, timeout=0)
        return records


def partitions(topic: TopicSpec) -> list[TopicPartition]:
    return [TopicPartition(topic.name, number) for number in range(topic.partitions)]


TestExactlyOnceInstances = ExactlyOnceInstances.TestCase
TestExactlyOnceInstances.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
