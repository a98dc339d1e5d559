"""Offsets kept by the sink: a store with transactions of its own remembers, in the transaction that
writes what was read, up to where it has read. Then nothing is lost or repeated, whenever who dies.

An agent declared with `offsets_in=keeper` starts each partition where the keeper says, whatever
the group has committed, and iterates `stream.batches(...)`. It gives the keeper, together with what
it writes, the `moves` of the batch; a keeper that does not stand where a move starts must write
nothing and raise `FencedError`: another instance has been there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ratestream.streaming.types import TopicPartition


class Move(NamedTuple):
    """A partition's step from one next offset to another. `start` is None for the first step of a
    partition that the keeper has never moved."""

    partition: TopicPartition
    start: int | None
    next: int


class OffsetKeeper(Protocol):
    """A store that keeps next offsets, each with the id of the topic that it counts in."""

    async def positions(
        self, partitions: Sequence[TopicPartition], topic_ids: Mapping[str, str]
    ) -> Mapping[TopicPartition, int]:
        """Where each stands; those never moved are absent. `topic_ids` names the cluster and the
        topic itself, by topic name. Waits while the store is away. Raises `ConfigurationError`
        when it stands in a topic of the same name but another id."""
        ...
