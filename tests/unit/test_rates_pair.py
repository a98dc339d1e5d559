from __future__ import annotations

import pytest

from ratestream.rates.currencies import ACTIVE, CRYPTO, HISTORIC
from ratestream.rates.pair import InvalidPair, Pair, make_pair, parse_pair

ECB_CURRENCIES = """
    USD JPY BGN CYP CZK DKK EEK GBP HUF LTL LVL MTL PLN ROL RON SEK SIT SKK CHF ISK NOK HRK RUB
    TRL TRY AUD BRL CAD CNY HKD IDR ILS INR KRW MXN MYR NZD PHP SGD THB ZAR
""".split()  # noqa: SIM905


def test_a_name_is_base_then_quote() -> None:
    pair = parse_pair("USDRUB")
    assert pair == Pair("USD", "RUB")
    assert str(pair) == pair.name == "USDRUB"
    assert pair.inverse.name == "RUBUSD"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("usdrub", "six upper-case letters"),
        ("USD/RUB", "six upper-case letters"),
        ("USDRU", "six upper-case letters"),
        ("", "six upper-case letters"),
        ("USDRUB\n", "six upper-case letters"),
        ("USDRUЬ", "six upper-case letters"),
        ("ÀÀÀÈÈÈ", "six upper-case letters"),
        ("USDUSD", "same currency"),
        ("USDQQQ", "unknown currency 'QQQ'"),
        ("XXXUSD", "unknown currency 'XXX'"),
    ],
)
def test_other_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidPair, match=reason):
        parse_pair(name)


def test_a_refusal_is_short_and_plain_however_long_the_name() -> None:
    with pytest.raises(InvalidPair) as refusal:
        parse_pair("\x1b[31m" * 10_000)
    assert len(str(refusal.value)) < 200
    assert "\x1b" not in str(refusal.value)


def test_every_currency_that_the_ecb_has_listed_is_known() -> None:
    assert [make_pair("EUR", code).quote for code in ECB_CURRENCIES] == ECB_CURRENCIES


def test_every_code_has_three_letters_and_one_list() -> None:
    assert all(len(code) == 3 and code.isupper() for code in ACTIVE | HISTORIC | CRYPTO)
    assert len(ACTIVE) + len(HISTORIC) + len(CRYPTO) == len(ACTIVE | HISTORIC | CRYPTO)
