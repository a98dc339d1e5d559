"""Exact rolling means of decimals, and how decimals are written.

A source's digits are kept as they came: 1.10 stays 1.10. What is computed here is rounded once,
half to even, to `SIGNIFICANT_DIGITS`, and has neither trailing zeros nor an exponent when written
with `decimal_text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, Inexact, InvalidOperation
from functools import reduce

SIGNIFICANT_DIGITS = 12

# A sum is exact when its digits, from the highest of the largest value to the lowest of the most
# precise one, fit. Values below 10**12 with 200 digits, the most that settings allow, and above
# 10**-12 end at 10**-211; 10**4 of them stay below 10**16: 227 digits. 512 leaves as much again,
# and costs nothing, because it is a limit and not a length. Should it ever not suffice, the
# context raises `Inexact`: a sum is exact or there is none.
_EXACT = Context(prec=512, traps=[Inexact, InvalidOperation])
_ONE = Decimal(1)
_ROUNDING = Context(
    prec=SIGNIFICANT_DIGITS,
    rounding=ROUND_HALF_EVEN,
    traps=[InvalidOperation, DivisionByZero],
)


def push(window: Sequence[Decimal], value: Decimal, size: int) -> list[Decimal]:
    """The last `size` (at least 1) values of `window` and then `value`, oldest first. The window
    given is not changed; one that was kept with a larger size loses its oldest values."""
    return [*window, value][-size:]


def mean(values: Sequence[Decimal]) -> Decimal:
    """The mean of at least one value: the exact sum divided once, rounded half-even to 12
    significant digits, without trailing zeros."""
    return divide(reduce(_EXACT.add, values), Decimal(len(values)))


def divide(dividend: Decimal, divisor: Decimal) -> Decimal:
    """The exact quotient, rounded once, half-even, to 12 significant digits, without trailing
    zeros. Raises `ZeroDivisionError`."""
    return normalise(_ROUNDING.divide(dividend, divisor))


def normalise(value: Decimal) -> Decimal:
    """The same number in the one form without trailing zeros and without a positive exponent, so
    that equal numbers look the same: 1.50 is 1.5, 1E+2 is 100."""
    short = _EXACT.normalize(value)
    if short.adjusted() > 0 and short == _EXACT.to_integral_value(short):
        return _EXACT.quantize(short, _ONE)
    return short


def decimal_text(value: Decimal) -> str:
    """A finite decimal in plain notation, all its digits kept: 1E-7 is 0.0000001."""
    return format(value, "f")
