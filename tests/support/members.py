"""Members of a consumer group, for tests that drive several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ratestream.streaming.types import Broker, Consumer, ConsumerConfig, Record, TopicPartition
from tests.support.brokers import patiently


class Member:
    """A consumer that resumes what it is assigned, and commits what it has read when that is
    taken away. `journal` is shared: what happened to whom, in order."""

    def __init__(
        self,
        broker: Broker,
        config: ConsumerConfig,
        *topics: str,
        journal: list[tuple[str, Member, TopicPartition]] | None = None,
    ) -> None:
        self.consumer: Consumer = broker.consumer(config)
        self.records: list[Record] = []
        self.journal = [] if journal is None else journal
        self.starts: dict[TopicPartition, int] = {}
        self.resumes = True
        self.consumer.subscribe(topics, self)

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.journal += [("assigned", self, partition) for partition in partitions]
        return self.starts

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        self.journal += [("revoked", self, partition) for partition in partitions]
        self.commit(partitions)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.journal += [("lost", self, partition) for partition in partitions]

    def commit(self, partitions: Sequence[TopicPartition]) -> None:
        positions = {each: self.consumer.position(each) for each in partitions}
        self.consumer.commit({tp: at for tp, at in positions.items() if at is not None})

    def poll(self, max_records: int = 10) -> None:
        self.records += self.consumer.poll(max_records, timeout=0.05)
        if self.resumes:
            self.consumer.resume(sorted(self.consumer.assignment()))

    def has(self, count: int) -> bool:
        return len(self.consumer.assignment()) == count


def poll_until(condition: Callable[[], bool], *members: Member) -> None:
    for _ in patiently():
        for member in members:
            member.poll()
        if condition():
            return
    raise AssertionError("it did not come to that")
