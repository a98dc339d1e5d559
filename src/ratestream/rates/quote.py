"""What one rate of one pair must be like to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

_SHOWN_DIGITS = 12


class InvalidQuote(ValueError):  # noqa: N818 - named as the thing it says about the input
    """A value or a time that no rate can have. The message is the reason, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted. A value must lie strictly between `lowest` and `highest`.

    An observed time may be up to `max_ahead` after the time received, because a central bank
    dates its rates to the day they take effect. The default `earliest` catches unix seconds read
    as milliseconds, which give January 1970.
    """

    max_digits: int = 30
    lowest: Decimal = Decimal("1e-12")
    highest: Decimal = Decimal("1e12")
    max_ahead: timedelta = timedelta(days=3)
    earliest: datetime = datetime(1980, 1, 1, tzinfo=UTC)


DEFAULT_LIMITS = Limits()


def check_value(value: Decimal, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises `InvalidQuote` unless `value` can be a rate. Never slow, whatever the digits or the
    exponent: nothing here does arithmetic with `value`."""
    if not value.is_finite():
        raise InvalidQuote(f"value {value} is not a finite number")
    if value <= 0:
        raise InvalidQuote(f"value {_shown(value)} must be above zero")
    if not limits.lowest < value < limits.highest:
        raise InvalidQuote(
            f"value {_shown(value)} must be between {limits.lowest} and {limits.highest}"
        )
    digits = len(value.as_tuple().digits)
    if digits > limits.max_digits:
        raise InvalidQuote(f"value has {digits} digits, at most {limits.max_digits} are allowed")


def check_times(
    observed_at: datetime, received_at: datetime, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Raises `InvalidQuote` unless both times carry an offset and fit to each other."""
    for name, moment in (("observed_at", observed_at), ("received_at", received_at)):
        if moment.tzinfo is None:
            raise InvalidQuote(f"{name} {moment.isoformat()} has no offset from UTC")
        if moment < limits.earliest:
            raise InvalidQuote(
                f"{name} {moment.isoformat()} is before {limits.earliest.isoformat()}"
            )
    if observed_at - received_at > limits.max_ahead:
        raise InvalidQuote(
            f"observed_at {observed_at.isoformat()} is more than {limits.max_ahead} after "
            f"received_at {received_at.isoformat()}"
        )


def _shown(value: Decimal) -> str:
    """A foreign number for a message, at a bounded length."""
    text = str(value)
    return text if len(text) <= _SHOWN_DIGITS + 8 else f"{value:.{_SHOWN_DIGITS - 1}e}"
