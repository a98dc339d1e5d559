"""The judge of `make chaos` must see every kind of defect, and none where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from ratestream.rates.averages import mean
from tests.chaos.oracle import (
    Fact,
    Key,
    Outcome,
    averages_of,
    judge,
    rounded,
)

_START = datetime(2026, 1, 1, tzinfo=UTC)
_PAIRS = ("EURUSD", "EURCHF")


def quotes(snapshots: int = 24) -> list[Fact]:
    """Two pairs from two sources, each source on a partition of its own."""
    made = []
    for number in range(snapshots):
        for place, pair in enumerate(_PAIRS):
            serial = number * len(_PAIRS) + place + 1
            value = Decimal(f"{serial}.{serial * 7919 % 1000:03}")
            key = Key(number % 2, number // 2, pair)
            at = _START + timedelta(seconds=number)
            made.append(Fact(key, f"source-{number % 2}", value, at))
    return made


def faultless() -> Outcome:
    """The sources interleave on `processed-data` in another order than they were written in."""
    source = quotes()
    processed = [fact for fact in source if fact.key.partition == 1]
    processed += [fact for fact in source if fact.key.partition == 0]
    averages = list(averages_of(processed).values())
    return Outcome(len(source), source, processed, averages, source, averages)


def found(outcome: Outcome) -> dict[str, tuple[int, int, int]]:
    """Lost, repeated and wrong at each place where there is any."""
    return {
        each.place: (each.lost, each.repeated, each.wrong)
        for each in judge(outcome)
        if each.lost or each.repeated or each.wrong
    }


def without(facts: Sequence[Fact], place: int) -> list[Fact]:
    return [*facts[:place], *facts[place + 1 :]]


def twice(facts: Sequence[Fact], place: int) -> list[Fact]:
    return [*facts[: place + 1], *facts[place:]]


def changed(facts: Sequence[Fact], place: int) -> list[Fact]:
    other = facts[place]._replace(value=facts[place].value + Decimal("0.001"))
    return [*facts[:place], other, *facts[place + 1 :]]


def foreign(facts: Sequence[Fact], place: int) -> list[Fact]:
    """One more, of a snapshot that does not exist."""
    return [*facts, facts[place]._replace(key=Key(7, 7, "EURUSD"))]


def test_what_is_as_it_must_be_has_no_defects() -> None:
    assert found(faultless()) == {}


PLACES = {
    "processed": "processed-data",
    "aggregated": "aggregated-data",
    "stored_quotes": "Postgres, quotes",
    "stored_averages": "Postgres, averages",
}


@pytest.mark.parametrize("field", PLACES)
@pytest.mark.parametrize(
    ("defect", "counts"),
    [
        (without, (1, 0, 0)),
        (twice, (0, 1, 0)),
        (changed, (0, 0, 1)),
        (foreign, (0, 0, 1)),
    ],
)
def test_a_single_defect_is_seen_where_it_is(
    field: str,
    defect: Callable[[Sequence[Fact], int], list[Fact]],
    counts: tuple[int, int, int],
) -> None:
    outcome = faultless()
    spoilt = defect(getattr(outcome, field), len(outcome.source) - 1)
    spoil: dict[str, Any] = {field: spoilt}
    assert found(replace(outcome, **spoil)) == {PLACES[field]: counts}


def test_a_quote_missing_in_the_middle_also_makes_averages_wrong() -> None:
    """They are measured by the order of what is there, with what is not there at the end."""
    outcome = faultless()
    counts = found(replace(outcome, processed=without(outcome.processed, 20)))
    assert counts["processed-data"] == (1, 0, 0)
    assert counts["Postgres, averages"][2] > 0


def test_a_wrong_count_of_an_average_is_seen() -> None:
    outcome = faultless()
    spoilt = [*outcome.aggregated]
    spoilt[3] = spoilt[3]._replace(fill=9)
    assert found(replace(outcome, aggregated=spoilt)) == {"aggregated-data": (0, 0, 1)}


def test_quotes_of_one_partition_that_changed_places_are_seen() -> None:
    """Averages are judged by the order that there is on `processed-data`, right or not."""
    outcome = faultless()
    spoilt = [*outcome.processed]
    spoilt[30], spoilt[32] = spoilt[32], spoilt[30]
    averages = list(averages_of(spoilt).values())
    swapped = replace(outcome, processed=spoilt, aggregated=averages, stored_averages=averages)
    assert found(swapped) == {"processed-data": (0, 0, 1)}


def test_averages_that_changed_places_are_seen() -> None:
    outcome = faultless()
    spoilt = [*outcome.aggregated]
    spoilt[30], spoilt[32] = spoilt[32], spoilt[30]
    assert found(replace(outcome, aggregated=spoilt)) == {"aggregated-data": (0, 0, 1)}


def test_a_quote_counted_twice_in_averages_is_seen() -> None:
    """What at-least-once does: the repeat moves the window on, and the averages after it."""
    outcome = faultless()
    repeated = twice(outcome.processed, 20)
    renamed = repeated[21]._replace(key=Key(9, 9, repeated[21].key.pair))
    counted = list(averages_of([*repeated[:21], renamed, *repeated[22:]]).values())
    counted[21] = counted[21]._replace(key=repeated[21].key)
    counts = found(replace(outcome, processed=repeated, aggregated=counted))
    assert counts["processed-data"] == (0, 1, 0)
    assert counts["aggregated-data"][1] == 1
    assert counts["aggregated-data"][2] > 1


def test_input_that_is_not_what_was_written_is_seen() -> None:
    outcome = faultless()
    last = outcome.source[-1]
    assert found(replace(outcome, written=outcome.written + 2)) == {"src-data": (2, 0, 0)}
    again = last._replace(key=Key(0, 99, last.key.pair))
    assert found(replace(outcome, source=[*outcome.source, again]))["src-data"] == (0, 1, 0)
    assert found(replace(outcome, written=outcome.written - 1)) == {"src-data": (0, 0, 1)}


def test_a_dead_letter_is_a_defect() -> None:
    assert found(replace(faultless(), dead_letters=3)) == {"dead-letter": (0, 0, 3)}


def test_defects_are_named() -> None:
    outcome = faultless()
    spoilt = replace(outcome, stored_quotes=without(outcome.stored_quotes, 5))
    (example,) = [line for each in judge(spoilt) for line in each.examples]
    assert example.startswith("Postgres, quotes: lost: ")
    assert str(outcome.stored_quotes[5].value) in example


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(1, 3), "0.333333333333"),
        (Fraction(2, 3), "0.666666666667"),
        (Fraction(5), "5"),
        (Fraction("1234567890.125"), "1234567890.12"),
        (Fraction("1234567890.135"), "1234567890.14"),
        (Fraction("999999999999.5"), "1000000000000"),
        (Fraction("0.0000123456789012345"), "0.0000123456789012"),
        (Fraction(10**11), "100000000000"),
    ],
)
def test_means_are_rounded_once_half_to_even(number: Fraction, text: str) -> None:
    assert rounded(number) == Decimal(text)


def test_the_oracle_and_the_service_agree_on_a_long_series() -> None:
    values = [fact for fact in quotes(60) if fact.key.pair == "EURUSD" and fact.key.partition == 0]
    expected = [mean([fact.value for fact in values[max(0, n - 9) : n + 1]]) for n in range(30)]
    assert [fact.value for fact in averages_of(values).values()] == expected
