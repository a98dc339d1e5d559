from __future__ import annotations

from datetime import date
from decimal import Decimal

import pytest

from ratestream.rates.pair import parse_pair
from ratestream.sources.ecb_history import Day, load_days
from ratestream.sources.feeds import Replay, Unrelated, Walk, walked

PAIRS = [parse_pair("USDRUB"), parse_pair("EURUSD")]


def test_history_is_oldest_first_from_the_day_asked_for() -> None:
    days = load_days(date(2005, 4, 1), {"USD", "RUB", "EUR"})
    assert days[0].day == date(2005, 4, 1)
    assert days[0].per_euro() == {"USD": Decimal("1.2959"), "RUB": Decimal("36.1150")}
    assert [each.day for each in days] == sorted(each.day for each in days)
    assert days[-1].day >= date(2026, 10, 30)


def test_a_currency_has_no_rate_after_its_end() -> None:
    (day,) = [each for each in load_days(date(2022, 3, 2), {"RUB"}) if each.day.day == 2][:1]
    assert day.per_euro() == {}


def test_history_after_the_last_day_is_empty() -> None:
    assert load_days(date(2999, 1, 1), {"USD"}) == []


def test_a_replay_begins_again_after_the_last_day() -> None:
    days = [Day(date(2020, 1, each), ("USD",), (f"1.{each}",)) for each in (2, 3)]
    replay = Replay(PAIRS, days)
    replayed = [replay.at(tick).replayed_date for tick in range(3)]
    assert replayed == [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 2)]
    assert replay.at(1).values == {"EURUSD": Decimal("1.3")}


def test_unrelated_numbers_follow_from_seed_and_tick() -> None:
    assert Unrelated(PAIRS, 7).at(3).values == Unrelated(PAIRS, 7).at(3).values
    assert Unrelated(PAIRS, 7).at(3).values != Unrelated(PAIRS, 7).at(4).values
    assert Unrelated(PAIRS, 7).at(3).values != Unrelated(PAIRS, 8).at(3).values


def test_a_walk_follows_from_its_seed_one_step_a_tick() -> None:
    one, other = Walk(PAIRS, 7), Walk(PAIRS, 7)
    assert [one.at(t).values for t in range(20)] == [other.at(t).values for t in range(20)]
    assert one.at(19).values == one.at(19).values
    assert one.at(20).values != other.at(19).values


def test_a_walk_goes_in_small_steps() -> None:
    walk = Walk(PAIRS, 7)
    before = walk.at(0).values["USDRUB"]
    for tick in range(1, 1_000):
        now = walk.at(tick).values["USDRUB"]
        assert abs(now - before) <= before / 1000 + Decimal("0.000001")
        before = now


@pytest.mark.parametrize(
    ("now", "change", "then"),
    [
        ("50", 100, "50.05"),
        ("50", -100, "49.95"),
        ("50.123456", 1, "50.123957"),
        ("499.9", 100, "500"),
        ("5.001", -100, "5"),
    ],
)
def test_a_walk_stays_between_a_tenth_and_ten_times_of_its_start(
    now: str, change: int, then: str
) -> None:
    assert walked(Decimal(50), Decimal(now), change) == Decimal(then)
