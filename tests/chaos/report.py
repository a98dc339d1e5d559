"""What a run has shown, in numbers and in words."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table

from tests.chaos.faults import Fault, Kind
from tests.chaos.oracle import Defects
from tests.chaos.results import Stored
from tests.chaos.run import Evidence
from tests.chaos.services import Death

_AFTER_FAULT = timedelta(seconds=1)
_SHOWN_EXAMPLES = 3


@dataclass(frozen=True)
class Verdict:
    """The sums over all places, and whether they are what the guarantee says."""

    lost: int
    repeated: int
    wrong: int
    died: int
    exactly_once: bool

    @property
    def is_good(self) -> bool:
        """At least once must show repeats: a comparison that never sees one proves nothing."""
        if self.lost or self.died:
            return False
        if self.exactly_once:
            return not self.repeated and not self.wrong
        return self.repeated > 0


def verdict(defects: Sequence[Defects], deaths: Sequence[Death], exactly_once: bool) -> Verdict:
    return Verdict(
        sum(each.lost for each in defects),
        sum(each.repeated for each in defects),
        sum(each.wrong for each in defects),
        len(deaths),
        exactly_once,
    )


def recovery_seconds(
    struck: Mapping[Fault, datetime], averages: Iterable[Stored]
) -> dict[Kind, list[float]]:
    """For each fault, the time until the last of what was received in the second after it was
    stored, as an average. Without those after which nothing was received."""
    rows = sorted(averages, key=lambda row: row.fact.received_at)
    seconds: dict[Kind, list[float]] = defaultdict(list)
    place = 0
    for fault, moment in sorted(struck.items(), key=lambda item: item[1]):
        while place < len(rows) and rows[place].fact.received_at < moment:
            place += 1
        last = place
        stored_at = []
        while last < len(rows) and rows[last].fact.received_at < moment + _AFTER_FAULT:
            stored_at.append(rows[last].stored_at)
            last += 1
        if stored_at:
            seconds[fault.kind].append((max(stored_at) - moment).total_seconds())
    return seconds


def show(console: Console, evidence: Evidence, defects: Iterable[Defects]) -> None:
    recovery = recovery_seconds(evidence.struck, evidence.averages)
    faults = Table("fault", "count", "recovered after (median)", "longest")
    for kind in Kind:
        count = sum(fault.kind is kind for fault in evidence.struck)
        times = recovery.get(kind)
        words = [f"{statistics.median(times):.1f} s", f"{max(times):.1f} s"] if times else []
        faults.add_row(kind.words, str(count), *words)
    console.print(faults)
    places = Table("place", "lost", "repeated", "wrong")
    for each in defects:
        places.add_row(each.place, str(each.lost), str(each.repeated), str(each.wrong))
    console.print(places)
    for each in defects:
        for example in each.examples[:_SHOWN_EXAMPLES]:
            console.print(example, markup=False, highlight=False)
    for death in evidence.deaths:
        console.print(f"{death.instance} {death.how}; its last words:", style="red")
        console.print(death.last_words, markup=False, highlight=False)
