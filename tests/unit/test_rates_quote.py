from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ratestream.rates.quote import InvalidQuote, Limits, check_times, check_value

NOW = datetime(2026, 3, 19, 15, tzinfo=UTC)


@pytest.mark.parametrize("text", ["1", "84.0541", "0.000000000002", "999999999999", "1E+5"])
def test_a_sane_value_passes(text: str) -> None:
    check_value(Decimal(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "not a finite"),
        ("sNaN", "not a finite"),
        ("-Infinity", "not a finite"),
        ("0", "above zero"),
        ("-0", "above zero"),
        ("-1.5", "above zero"),
        ("1e-12", "between 1E-12 and 1E\\+12"),
        ("1e12", "between"),
        ("1" * 400, "between"),
        ("1." + "1" * 30, "31 digits, at most 30"),
    ],
)
def test_a_value_that_no_rate_has_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidQuote, match=reason) as refusal:
        check_value(Decimal(text))
    assert len(str(refusal.value)) < 120


@pytest.mark.parametrize("text", ["1e999999999", "1e-999999999"])
def test_a_huge_exponent_is_refused_without_being_written_out(text: str) -> None:
    with pytest.raises(InvalidQuote, match=r"value 1E.999999999 must be between"):
        check_value(Decimal(text))


def test_limits_can_be_set() -> None:
    check_value(Decimal("1." + "1" * 30), Limits(max_digits=31))


def test_times_that_fit_pass() -> None:
    check_times(NOW - timedelta(days=365 * 20), NOW)
    check_times(NOW + timedelta(days=3), NOW)


@pytest.mark.parametrize(
    ("observed_at", "received_at", "reason"),
    [
        (NOW.replace(tzinfo=None), NOW, "observed_at .* has no offset"),
        (NOW, NOW.replace(tzinfo=None), "received_at .* has no offset"),
        (NOW + timedelta(days=3, seconds=1), NOW, "more than 3 days"),
        (datetime.fromtimestamp(1773878551 / 1000, UTC), NOW, "observed_at 1970.* is before"),
        (NOW, datetime(1979, 1, 1, tzinfo=UTC), "received_at 1979.* is before"),
    ],
)
def test_times_that_do_not_fit_are_refused(
    observed_at: datetime, received_at: datetime, reason: str
) -> None:
    with pytest.raises(InvalidQuote, match=reason):
        check_times(observed_at, received_at)
