"""Consumer groups inside one process: who is a member, and whose each partition is.

A partition has one owner at a time. A rebalance only says who *should* have it; it moves when its
owner has released it, or has not been heard of for its `max_poll_interval`. So every member asks,
in its own poll, what to give back and what to take. Nothing here locks: the broker does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import TypeVar

from ratestream.streaming.types import TopicPartition

M = TypeVar("M", bound=Hashable)


class Member:
    """One stay in a group. Who was expelled and joins again is another member."""

    def __init__(self, topics: frozenset[str], max_poll_interval: float) -> None:
        self.topics = topics
        self.max_poll_interval = max_poll_interval
        self.deadline = math.inf
        self.target: set[TopicPartition] = set()


class Group:
    """The members of one group. `partitions_of` lists the partitions of a topic, none when there
    is no such topic; `changed` is called when a member may have something to do. Times are
    seconds on any clock that does not go back."""

    def __init__(
        self,
        partitions_of: Callable[[str], Collection[TopicPartition]],
        changed: Callable[[], None],
    ) -> None:
        self._partitions_of = partitions_of
        self._changed = changed
        self._members: list[Member] = []
        self._owners: dict[TopicPartition, Member] = {}

    def join(self, member: Member, now: float) -> None:
        self._members.append(member)
        self.heard_from(member, now)
        self.rebalance()

    def leave(self, member: Member) -> None:
        self._owners = {tp: owner for tp, owner in self._owners.items() if owner is not member}
        if member in self._members:
            self._members.remove(member)
            self.rebalance()

    def heard_from(self, member: Member, now: float) -> None:
        member.deadline = now + member.max_poll_interval

    def expel_silent(self, now: float) -> None:
        """Take away the partitions of every member past its deadline."""
        for member in [each for each in self._members if each.deadline < now]:
            self.leave(member)

    def next_deadline(self) -> float:
        """When the next member is silent for too long; infinity when none can be."""
        return min((member.deadline for member in self._members), default=math.inf)

    def has(self, member: Member) -> bool:
        return member in self._members

    def is_empty(self) -> bool:
        return not self._members

    def owns(self, member: Member, partition: TopicPartition) -> bool:
        return self._owners.get(partition) is member

    def to_release(self, member: Member) -> list[TopicPartition]:
        """What `member` has and another should have."""
        return sorted(
            partition
            for partition, owner in self._owners.items()
            if owner is member and partition not in member.target
        )

    def release(self, member: Member, partitions: Collection[TopicPartition]) -> None:
        for partition in partitions:
            if self.owns(member, partition):
                del self._owners[partition]
        self._changed()

    def to_take(self, member: Member) -> list[TopicPartition]:
        """What `member` should have and nobody has."""
        return sorted(member.target - self._owners.keys()) if self.has(member) else []

    def take(self, member: Member, partitions: Collection[TopicPartition]) -> None:
        self._owners.update(dict.fromkeys(partitions, member))

    def rebalance(self) -> None:
        """Decide again who should have what, after a change of members or of topics."""
        subscribers = {
            partition: [member for member in self._members if topic in member.topics]
            for topic in {topic for member in self._members for topic in member.topics}
            for partition in self._partitions_of(topic)
        }
        planned = {tp: member for member in self._members for tp in member.target}
        shares = balanced(subscribers, planned | self._owners)
        for member in self._members:
            member.target = shares.get(member, set())
        self._changed()


def balanced(
    subscribers: Mapping[TopicPartition, Collection[M]], owners: Mapping[TopicPartition, M]
) -> dict[M, set[TopicPartition]]:
    """Share partitions among those who want them, as evenly as one move at a time can make it,
    and leave each with its owner unless moving it makes the shares more even."""
    shares: dict[M, set[TopicPartition]] = {
        member: set() for members in subscribers.values() for member in members
    }
    homeless = []
    for partition, members in sorted(subscribers.items()):
        owner = owners.get(partition)
        if owner is not None and owner in members:
            shares[owner].add(partition)
        else:
            homeless.append(partition)
    for partition in homeless:
        _poorest(subscribers[partition], shares).add(partition)
    while _move_one(subscribers, shares):
        pass
    return shares


def _move_one(
    subscribers: Mapping[TopicPartition, Collection[M]], shares: dict[M, set[TopicPartition]]
) -> bool:
    for rich in sorted(shares.values(), key=len, reverse=True):
        for partition in sorted(rich):
            poor = _poorest(subscribers[partition], shares)
            if len(poor) + 1 < len(rich):
                rich.remove(partition)
                poor.add(partition)
                return True
    return False


def _poorest(members: Collection[M], shares: dict[M, set[TopicPartition]]) -> set[TopicPartition]:
    return min((shares[member] for member in members), key=len)
