from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratestream.rates.cross import cross_rate, cross_rates
from ratestream.rates.pair import parse_pair

PER_EURO = {"USD": Decimal("1.2959"), "RUB": Decimal("36.1150"), "JPY": Decimal("139.07")}
rates = st.decimals("0.0001", "100000", places=6)


def test_a_pair_with_the_pivot_as_base_keeps_the_published_digits() -> None:
    assert str(cross_rate(parse_pair("EURRUB"), "EUR", PER_EURO)) == "36.1150"


def test_a_pair_with_the_pivot_as_quote_is_the_inverse() -> None:
    assert str(cross_rate(parse_pair("USDEUR"), "EUR", PER_EURO)) == "0.771664480284"


def test_any_other_pair_goes_through_the_pivot() -> None:
    assert str(cross_rate(parse_pair("USDRUB"), "EUR", PER_EURO)) == "27.8686627055"


@given(rates, rates)
def test_there_and_back_is_one_up_to_the_last_digit(usd: Decimal, rub: Decimal) -> None:
    table = {"USD": usd, "RUB": rub}
    there = cross_rate(parse_pair("USDRUB"), "EUR", table)
    back = cross_rate(parse_pair("RUBUSD"), "EUR", table)
    assert abs(Fraction(there) * Fraction(back) - 1) < Fraction(2, 10**11)


def test_pairs_without_a_rate_are_left_out() -> None:
    pairs = [parse_pair(name) for name in ("GBPUSD", "USDRUB", "EURGBP", "EURUSD")]
    assert list(cross_rates(pairs, "EUR", PER_EURO)) == ["USDRUB", "EURUSD"]


def test_one_pair_without_a_rate_is_an_error() -> None:
    with pytest.raises(KeyError, match="GBP"):
        cross_rate(parse_pair("GBPUSD"), "EUR", PER_EURO)
