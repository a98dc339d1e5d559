"""How everything is compared: the subjects take turns, so that what else the machine does meets
all of them, and what is published are medians of the rounds and ratios of those."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.progress import Progress

Figures = Mapping[str, float]
"""What one run of a subject gave: a name with its unit ("quotes_per_second") and the number."""


@dataclass(frozen=True)
class Subject:
    """One thing that is measured. `run` measures it once, and raises `BenchmarkError` when that
    cannot be done."""

    name: str
    run: Callable[[], Figures]


@dataclass
class Found:
    """What the rounds gave: for each figure of one subject a value of each round."""

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Figures) -> None:
        for name, value in figures.items():
            self.rounds.setdefault(name, []).append(value)

    def median(self, figure: str) -> float:
        return statistics.median(self.rounds[figure])

    def medians(self) -> dict[str, float]:
        return {name: self.median(name) for name in self.rounds}


def measure(
    subjects: Sequence[Subject], rounds: int, progress: Progress, title: str
) -> dict[str, Found]:
    """Each subject once a round, every second round in the opposite order. Found by name."""
    found = {subject.name: Found() for subject in subjects}
    bar = progress.add_task(title, total=rounds * len(subjects))
    for number in range(rounds):
        for subject in subjects if number % 2 == 0 else reversed(subjects):
            progress.update(bar, description=f"{title}: {subject.name}")
            figures = subject.run()
            found[subject.name].add(figures)
            progress.print(f"{title}, round {number + 1}, {subject.name}: {in_words(figures)}")
            progress.advance(bar)
    progress.update(bar, description=title)
    return found


def ratio(found: Mapping[str, Found], figure: str, ours: str, theirs: str) -> float:
    """How many times as much of `figure` one subject has as another, by their medians."""
    return found[ours].median(figure) / found[theirs].median(figure)


def in_words(figures: Figures) -> str:
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
