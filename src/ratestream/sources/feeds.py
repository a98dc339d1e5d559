"""What demo_server has to say: real rates of other days, or invented ones."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Literal, Protocol

from ratestream.rates.cross import cross_rates
from ratestream.rates.pair import Pair
from ratestream.sources.ecb import published_at
from ratestream.sources.ecb_history import Day

Mode = Literal["replay", "random", "walk"]


@dataclass(frozen=True, slots=True)
class Rates:
    """What a feed says at one tick. `observed_at` is UTC."""

    observed_at: datetime
    replayed_date: date | None
    values: dict[str, Decimal]


class Feed(Protocol):
    """Where rates come from. `at` is asked with ticks that never go back."""

    mode: Mode
    source: str

    def at(self, tick: int) -> Rates: ...

    def on(self, day: date) -> Rates:
        """Raises `LookupError`, with the reason, when there are no rates of that day."""
        ...


class Replay:
    """ECB reference rates, a day per tick, over again after the last one. A pair is left out on
    days on which one of its currencies has no rate."""

    mode: Mode = "replay"
    source = "European Central Bank, euro foreign exchange reference rates"

    def __init__(self, pairs: Iterable[Pair], days: Sequence[Day]) -> None:
        """`days`, at least one, oldest first."""
        self._pairs = tuple(pairs)
        self._days = days
        self._by_date = {each.day: each for each in days}

    def at(self, tick: int) -> Rates:
        return self._rates(self._days[tick % len(self._days)])

    def on(self, day: date) -> Rates:
        if day not in self._by_date:
            raise LookupError(
                f"no rates of {day}: there are those of the ECB's working days from "
                f"{self._days[0].day} to {self._days[-1].day}"
            )
        return self._rates(self._by_date[day])

    def _rates(self, day: Day) -> Rates:
        values = cross_rates(self._pairs, "EUR", day.per_euro())
        return Rates(published_at(day.day), day.day, values)


class _Invented:
    """What the feeds without real rates have in common."""

    mode: Mode

    def __init__(self, pairs: Iterable[Pair], seed: int) -> None:
        self._names = tuple(pair.name for pair in pairs)
        self._seed = seed

    def on(self, day: date) -> Rates:
        raise LookupError(f"no rates of {day}: only mode replay has days, this is mode {self.mode}")


class Unrelated(_Invented):
    """Numbers from 1 to 100 with five decimals that have nothing to do with each other: a seed
    and a tick always give the same ones."""

    mode: Mode = "random"
    source = "random numbers"

    def at(self, tick: int) -> Rates:
        chance = random.Random(f"{self._seed}/{tick}")  # noqa: S311 - play money
        return Rates(datetime.now(UTC), None, {n: _one_to_100(chance) for n in self._names})


class Walk(_Invented):
    """Numbers that start between 1 and 100 and go up or down by at most 0.1 % at a time, within
    a tenth and ten times of where they started. A tick that nobody asks for is no step."""

    mode: Mode = "walk"
    source = "a random walk"

    def __init__(self, pairs: Iterable[Pair], seed: int) -> None:
        super().__init__(pairs, seed)
        self._chance = random.Random(seed)  # noqa: S311 - play money
        self._start = {name: _one_to_100(self._chance) for name in self._names}
        self._tick = 0
        self._rates = Rates(datetime.now(UTC), None, dict(self._start))

    def at(self, tick: int) -> Rates:
        if tick > self._tick:
            self._tick = tick
            values = {name: self._step(name) for name in self._names}
            self._rates = Rates(datetime.now(UTC), None, values)
        return self._rates

    def _step(self, name: str) -> Decimal:
        change = self._chance.randint(-100, 100)
        return walked(self._start[name], self._rates.values[name], change)


def walked(start: Decimal, now: Decimal, change: int) -> Decimal:
    """`now` moved by `change` hundred-thousandths of itself, with six decimals, and not beyond a
    tenth or ten times of `start`."""
    moved = (now * (1 + Decimal(change).scaleb(-5))).quantize(Decimal("0.000001"))
    return min(max(moved, start / 10), start * 10)


def _one_to_100(chance: random.Random) -> Decimal:
    return Decimal(chance.randint(100_000, 10_000_000)).scaleb(-5)
