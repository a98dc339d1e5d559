"""What must come of the quotes on `src-data`, worked out on its own: nothing here is shared with
what it judges. Means are fractions, rounded by Python's own `round`."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

WINDOW = 10
SIGNIFICANT_DIGITS = 12
_EXAMPLES = 100


class Key(NamedTuple):
    """A quote's name for ever: where its snapshot is on `src-data`, and the pair."""

    partition: int
    offset: int
    pair: str


class Fact(NamedTuple):
    """What one quote says, or the average up to it; it is of the last `fill` quotes."""

    key: Key
    source: str
    value: Decimal
    received_at: datetime
    fill: int = 1

    def __str__(self) -> str:
        partition, offset, pair = self.key
        return f"{pair} of {self.source} at {partition}/{offset}: {self.value} (of {self.fill})"


@dataclass
class Defects:
    """What is not as it must be at one place, and some of it in words."""

    place: str
    lost: int = 0
    repeated: int = 0
    wrong: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, what: object) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{self.place}: {kind}: {what}")


@dataclass(frozen=True)
class Outcome:
    """Everything that was found, each list in the order in which it can be read."""

    written: int
    """Quotes that were sent to `src-data`, with the serial numbers from 1 on."""
    source: Sequence[Fact]
    """What is on `src-data`; all else is measured by it."""
    processed: Sequence[Fact]
    aggregated: Sequence[Fact]
    stored_quotes: Sequence[Fact]
    stored_averages: Sequence[Fact]
    dead_letters: int = 0


def judge(outcome: Outcome) -> list[Defects]:
    """One for each place: every quote must be once on `processed-data` and in Postgres, and every
    average once on `aggregated-data` and in Postgres, equal to the mean of the last quotes of its
    pair and source in the order of `processed-data`."""
    truth = {fact.key: fact for fact in outcome.source}
    processed = compare("processed-data", truth, outcome.processed)
    check_order(processed, outcome.processed, _series_of_input, lambda key: key.offset)

    first = {fact.key: truth[fact.key] for fact in outcome.processed if fact.key in truth}
    unprocessed = (fact for fact in outcome.source if fact.key not in first)
    averages = averages_of([*first.values(), *unprocessed])
    rank = {key: number for number, key in enumerate(averages)}
    aggregated = compare("aggregated-data", averages, outcome.aggregated)
    check_order(aggregated, outcome.aggregated, lambda key: key.pair, rank.__getitem__)

    return [
        check_serials(outcome.written, outcome.source),
        processed,
        aggregated,
        compare("Postgres, quotes", truth, outcome.stored_quotes),
        compare("Postgres, averages", averages, outcome.stored_averages),
        Defects("dead-letter", wrong=outcome.dead_letters),
    ]


def check_serials(written: int, source: Iterable[Fact]) -> Defects:
    """Whether the input itself is whole: the whole part of a rate is its serial number."""
    defects = Defects("src-data")
    missing = set(range(1, written + 1))
    for fact in source:
        serial = int(fact.value)
        if serial in missing:
            missing.remove(serial)
        elif 1 <= serial <= written:
            defects.repeated += 1
            defects.note("repeated", fact)
        else:
            defects.wrong += 1
            defects.note("wrong", fact)
    for serial in sorted(missing):
        defects.note("lost", serial)
    defects.lost = len(missing)
    return defects


def compare(place: str, expected: Mapping[Key, Fact], found: Iterable[Fact]) -> Defects:
    """Each expected fact must be there once, and nothing else. A repeat that says something else
    is repeated and wrong."""
    defects = Defects(place)
    seen: set[Key] = set()
    for fact in found:
        if fact.key in seen:
            defects.repeated += 1
            defects.note("repeated", fact)
        if expected.get(fact.key) != fact:
            defects.wrong += 1
            defects.note("wrong", f"{fact} instead of {expected.get(fact.key)}")
        seen.add(fact.key)
    for key in expected:
        if key not in seen:
            defects.lost += 1
            defects.note("lost", expected[key])
    return defects


def check_order(
    defects: Defects,
    found: Iterable[Fact],
    lane: Callable[[Key], Hashable],
    rank: Callable[[Key], int],
) -> None:
    """In each lane ranks must grow. Repeats do not count, nor does what `compare` has called
    unknown."""
    seen: set[Key] = set()
    highest: dict[Hashable, int] = {}
    for fact in found:
        key = fact.key
        if key in seen:
            continue
        seen.add(key)
        try:
            here = rank(key)
        except KeyError:
            continue
        if here < highest.get(lane(key), here):
            defects.wrong += 1
            defects.note("out of order", fact)
        else:
            highest[lane(key)] = here


def averages_of(quotes: Iterable[Fact]) -> dict[Key, Fact]:
    """The mean of the last quotes of the same pair and source, up to and with each quote."""
    windows: dict[tuple[str, str], deque[Fraction]] = defaultdict(deque)
    totals: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    averages: dict[Key, Fact] = {}
    for quote in quotes:
        series = (quote.key.pair, quote.source)
        window = windows[series]
        window.append(Fraction(quote.value))
        totals[series] += window[-1]
        if len(window) > WINDOW:
            totals[series] -= window.popleft()
        mean = rounded(totals[series] / len(window))
        averages[quote.key] = quote._replace(value=mean, fill=len(window))
    return averages


def rounded(number: Fraction) -> Decimal:
    """A positive number to 12 significant digits, half to even."""
    places = SIGNIFICANT_DIGITS
    while number * 10**places >= 10**SIGNIFICANT_DIGITS:
        places -= 1
    while number * 10**places < 10 ** (SIGNIFICANT_DIGITS - 1):
        places += 1
    return Decimal(round(number * Fraction(10) ** places)).scaleb(-places)


def _series_of_input(key: Key) -> Hashable:
    return key.pair, key.partition
