from __future__ import annotations

from decimal import Context, Decimal, Inexact
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratestream.rates.averages import decimal_text, divide, mean, normalise, push

values = st.builds(
    lambda digits, shift: Decimal(digits).scaleb(shift, Context(prec=60)),
    st.integers(1, 10**30 - 1),
    st.integers(-41, -18),
)
windows = st.lists(values, min_size=1, max_size=40)


def rounded(exact: Fraction, digits: int = 12) -> Fraction:
    """The oracle: `exact` to so many significant digits, half to even, without decimals."""
    exponent = 0
    while exact >= Fraction(10) ** (exponent + 1):
        exponent += 1
    while exact < Fraction(10) ** exponent:
        exponent -= 1
    unit = Fraction(10) ** (exponent - digits + 1)
    return round(exact / unit) * unit


@given(windows)
def test_a_mean_is_the_exact_mean_rounded_once(window: list[Decimal]) -> None:
    exact = sum(map(Fraction, window), Fraction(0)) / len(window)
    assert Fraction(mean(window)) == rounded(exact)


@given(windows, st.randoms(use_true_random=False))
def test_order_does_not_matter(window: list[Decimal], chance: Random) -> None:
    shuffled = list(window)
    chance.shuffle(shuffled)
    assert mean(shuffled) == mean(window)


@given(windows, st.integers(-6, 6))
def test_shifting_the_point_shifts_the_mean(window: list[Decimal], places: int) -> None:
    wide = Context(prec=100)
    assert mean([each.scaleb(places, wide) for each in window]) == mean(window).scaleb(places)


@given(values, st.integers(1, 30))
def test_the_mean_of_equal_values_is_that_value_rounded(value: Decimal, count: int) -> None:
    assert Fraction(mean([value] * count)) == rounded(Fraction(value))


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1", "2"], "1.5"),
        (["1.00", "1.00"], "1"),
        (["100", "300"], "200"),
        (["1", "1", "2"], "1.33333333333"),
        (["0.000000000003", "0.000000000004"], "0.0000000000035"),
        (["999999999999", "1"], "500000000000"),
        (["1.00000000000", "1.00000000001"], "1"),  # a tie, to the even neighbour
        (["1.00000000001", "1.00000000002"], "1.00000000002"),
    ],
)
def test_a_mean_is_written_without_exponent_or_trailing_zeros(
    texts: list[str], expected: str
) -> None:
    assert decimal_text(mean([Decimal(text) for text in texts])) == expected


def test_rounding_happens_once() -> None:
    # Rounded to 28 digits first, it would be a tie, and go to the even neighbour: 1.
    just_above = Decimal("1.00000000000" + "5" + "0" * 17 + "1")
    assert mean([just_above]) == Decimal("1.00000000001")


def test_the_widest_values_that_settings_allow_add_up_exactly() -> None:
    high, low = Decimal("9" * 12 + "." + "9" * 188), Decimal("1e-12") + Decimal("1e-211")
    assert mean([high, low] * 5_000) == Decimal("5e11")


def test_a_sum_that_cannot_be_exact_is_not_made() -> None:
    with pytest.raises(Inexact):
        mean([Decimal("1e600"), Decimal(1)])


def test_a_window_keeps_the_last_values() -> None:
    window: list[Decimal] = []
    for number in range(5):
        window = push(window, Decimal(number), 3)
    assert window == [2, 3, 4]
    assert push(window, Decimal(9), 1) == [9]


def test_a_window_that_is_given_stays_as_it_was() -> None:
    window = [Decimal(1), Decimal(2)]
    assert push(window, Decimal(3), 2) == [2, 3]
    assert window == [1, 2]


@given(values)
def test_equal_numbers_have_one_normal_form(value: Decimal) -> None:
    same = Context(prec=60).multiply(value, Decimal("1.000"))
    assert str(normalise(same)) == str(normalise(value))
    assert normalise(value) == value


@given(values)
def test_decimal_text_keeps_every_digit_and_shows_no_exponent(value: Decimal) -> None:
    text = decimal_text(value)
    assert "E" not in text.upper()
    assert Decimal(text).as_tuple() == value.as_tuple() or Decimal(text) == value


def test_division_by_zero_is_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        divide(Decimal(1), Decimal(0))
