"""What is computed from what was seen: pure functions."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of `values` (at least one) that `percent` of them, above 0 and at most 100, do
    not exceed: always one that was measured."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


@dataclass
class Pace:
    """So many a second, evenly, from `started` on. What could not be sent in time is due at once,
    so that a stall of the sender is not taken for a quiet moment."""

    per_second: float
    started: float
    sent: int = 0

    def due(self, now: float) -> int:
        """How many are to be sent now; they count as sent."""
        due = int((now - self.started) * self.per_second) + 1 - self.sent
        self.sent += max(0, due)
        return max(0, due)

    def wait(self, now: float) -> float:
        """Seconds until the next is due."""
        return max(0.0, self.started + self.sent / self.per_second - now)


@dataclass
class Takeover:
    """When each of `pairs` goes on after `killed_at`: with the first average of a quote that was
    sent after it. Each pair is all of one partition."""

    killed_at: datetime
    pairs: frozenset[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def saw(self, pair: str, sent_at: datetime, seen_at: datetime) -> None:
        if sent_at >= self.killed_at:
            self.seconds.setdefault(pair, (seen_at - self.killed_at).total_seconds())

    @property
    def is_over(self) -> bool:
        return self.seconds.keys() == self.pairs

    @property
    def longest(self) -> float:
        return max(self.seconds.values())


@dataclass(frozen=True)
class Restore:
    """What a service says in its log about bringing tables up to date."""

    records: int
    seconds: float


def restores(log: Iterable[str], since: datetime) -> Restore:
    """The sum of what was restored since then, from a log in JSON; other lines are passed over."""
    records, seconds = 0, 0.0
    for line in log:
        if '"tables_restored"' not in line:
            continue
        event = json.loads(line)
        if datetime.fromisoformat(event["timestamp"]) >= since:
            records += event["records"]
            seconds += event["seconds"]
    return Restore(records, seconds)
