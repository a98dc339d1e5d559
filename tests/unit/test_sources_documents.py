"""What each source makes of documents in their published format, good and bad."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter

from ratestream.sources import cbr, demo, ecb, json_http
from ratestream.sources.base import Answer, UnusableDocumentError
from ratestream.sources.config import JsonSource
from tests.support.http_site import DOCUMENTS

HTML = (DOCUMENTS / "ddos-protection.html").read_bytes()
BILLION_LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE ValCurs [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>
<ValCurs Date="21.03.2026"><Valute><CharCode>USD</CharCode><Value>&b;</Value></Valute></ValCurs>"""


def document(name: str) -> bytes:
    return (DOCUMENTS / name).read_bytes()


def texts(answer: Answer) -> dict[str, str]:
    """Rates as they will stand on the wire."""
    return {pair: bytes(rate).decode() for pair, rate in answer.rates.items()}


def json_source(**settings: Any) -> JsonSource:
    return JsonSource(name="any", url="http://rates.example/", **settings)


# European Central Bank


def test_ecb_rates_are_of_one_euro_at_four_in_the_afternoon_in_winter() -> None:
    answer = ecb.parse(document("ecb-daily.xml"))
    assert answer.observed_at == datetime(2026, 3, 19, 15, tzinfo=UTC)
    assert texts(answer) == {"EURUSD": '"1.1435"', "EURJPY": '"181.50"', "EURIDR": '"19412.06"'}
    assert answer.skipped == 1


def test_the_newest_of_several_ecb_days_counts_and_summer_is_an_hour_earlier() -> None:
    answer = ecb.parse(document("ecb-two-days.xml"))
    assert answer.observed_at == datetime(2025, 8, 1, 14, tzinfo=UTC)
    assert texts(answer) == {"EURUSD": '"1.1404"', "EURGBP": '"0.86650"'}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not XML"),
        (document("ecb-daily.xml")[:400], "not XML"),
        (HTML, "document type"),
        (document("cbr-daily.xml"), "root element is 'ValCurs'"),
        (document("ecb-daily.xml").replace(b"2026-03-19", b"19.03.2026"), "is no date"),
        (document("ecb-daily.xml").replace(b"eurofxref", b"other"), "no day of rates"),
        (document("ecb-daily.xml").replace(b"currency=", b"code="), "has no rates"),
    ],
)
def test_what_is_no_ecb_document_is_unusable(body: bytes, reason: str) -> None:
    with pytest.raises(UnusableDocumentError, match=reason):
        ecb.parse(body)


# Bank of Russia


def test_cbr_rates_are_roubles_for_one_unit_from_midnight_in_moscow() -> None:
    answer = cbr.parse(document("cbr-daily.xml"))
    assert answer.observed_at == datetime(2026, 3, 20, 21, tzinfo=UTC)
    assert texts(answer) == {
        "USDRUB": '"84.0541"',
        "HUFRUB": '"0.247130"',
        "UZSRUB": '"0.00689410"',
        "VNDRUB": '"3.14285714286"',
        "AUDRUB": '"57,1/0"',  # not usable: refused alone, where values are checked
    }
    assert answer.skipped == 1


@pytest.mark.parametrize(
    ("value", "nominal", "price"),
    [
        ("84,0541", "1", "84.0541"),
        ("5", "100", "0.05"),
        ("10", "4", "2.5"),
        ("5,39256E-05", "1", "5,39256E-05/1"),
        ("-1,5", "1", "-1,5/1"),
        ("1,5", "-1", "1,5/-1"),
        ("1 234,5", "1", "1 234,5/1"),
        ("", "", "/"),
        ("9" * 41, "1", "9" * 41 + "/1"),
    ],
)
def test_the_price_of_one_unit(value: str, nominal: str, price: str) -> None:
    assert cbr.price_of_one(value, nominal) == price


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HTML, "document type"),
        (HTML.split(b"\n", 1)[1], "root element is 'html'"),
        (BILLION_LAUGHS, "document type"),
        (BILLION_LAUGHS.decode().replace("?>", " encoding='utf-16'?>").encode("utf-16"), "type"),
        (document("cbr-daily.xml").replace(b"windows-1251", b"klingon-1"), "not XML"),
        (document("cbr-daily.xml").replace(b"21.03.2026", b"2026-03-21"), "is no date"),
        (b'<ValCurs Date="21.03.2026"/>', "no rates"),
    ],
)
def test_what_is_no_cbr_document_is_unusable(body: bytes, reason: str) -> None:
    with pytest.raises(UnusableDocumentError, match=reason):
        cbr.parse(body)


# demo_server


def test_demo_rates_are_taken_as_they_are() -> None:
    body = b'{"observed_at":"2005-04-01T16:00:00+02:00","mode":"replay","rates":{"USDRUB":"1.50"}}'
    answer = demo.parse(body)
    assert answer.observed_at == datetime(2005, 4, 1, 14, tzinfo=UTC)
    assert texts(answer) == {"USDRUB": '"1.50"'}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        HTML,
        b"[]",
        b"[" * 100_000,
        b'{"rates":{"USDRUB":"1"}}',
        b'{"observed_at":"2005-04-01T16:00:00","rates":{"USDRUB":"1"}}',
        b'{"observed_at":"2005-04-01T16:00:00Z","rates":{}}',
        b'{"observed_at":"2005-04-01T16:00:00Z","rates":{"USDRUB":NaN}}',
        b'{"observed_at":"2005-04-01T16:00:00Z","rates":{"USD\xff":"1"}}',
    ],
)
def test_what_is_no_demo_answer_is_unusable(body: bytes) -> None:
    with pytest.raises(UnusableDocumentError, match="not demo_server's answer"):
        demo.parse(body)


# Any JSON over HTTP


def test_frankfurter() -> None:
    settings = json_source(base_path=["base"], observed_path=["date"], observed_format="date")
    answer = json_http.parse(document("frankfurter-v1.json"), settings)
    assert answer.observed_at == datetime(2026, 3, 19, tzinfo=UTC)
    assert texts(answer) == {
        "EURJPY": "181.64319999999998",
        "EURTRY": "0.00010",
        "EURUSD": "1.10",
    }


def test_open_er_api() -> None:
    settings = json_source(
        base="USD",
        base_path=["base_code"],
        observed_path=["time_last_update_unix"],
        observed_format="unix_seconds",
    )
    answer = json_http.parse(document("open-er-api.json"), settings)
    assert answer.observed_at == datetime(2026, 3, 19, 0, 2, 31, tzinfo=UTC)
    assert texts(answer) == {"USDEUR": "0.8712", "USDRUB": "84.0541"}
    assert answer.skipped == 1  # USD itself


def test_coinbase_has_no_time_and_keys_that_are_no_currencies() -> None:
    settings = json_source(base_path=["data", "currency"], rates_path=["data", "rates"])
    answer = json_http.parse(document("coinbase.json"), settings)
    assert answer.observed_at is None
    assert texts(answer) == {"USDEUR": '"0.9210"', "USDBTC": '"0.0000119000"'}
    assert answer.skipped == 2


def test_currency_api_has_lower_case_and_aliases() -> None:
    settings = json_source(base="EUR", rates_path=["eur"])
    answer = json_http.parse(document("currency-api.json"), settings)
    assert texts(answer) == {"EURBTC": "0.0000123", "EURUSD": "1.136", "EURATS": "13.7603"}


def test_keys_can_be_whole_pairs() -> None:
    settings = json_source(
        keys="pair",
        rates_path=["tickers"],
        observed_path=["at_ms"],
        observed_format="unix_milliseconds",
    )
    answer = json_http.parse(document("tickers.json"), settings)
    assert answer.observed_at == datetime(2026, 3, 19, 0, 2, 31, 250_000, tzinfo=UTC)
    assert texts(answer) == {"BTCUSD": '"84036.10"', "ETHUSD": '"2210.5"'}
    assert answer.skipped == 1


def test_prices_in_the_base_are_of_the_inverse_pairs() -> None:
    settings = json_source(base="RUB", rates_path=[], invert=True)
    assert texts(json_http.parse(b'{"USD": 84.05}', settings)) == {"USDRUB": "84.05"}


def test_a_byte_order_mark_does_no_harm() -> None:
    settings = json_source(base="EUR", rates_path=[])
    assert texts(json_http.parse(b'\xef\xbb\xbf{"USD":1.1}', settings)) == {"EURUSD": "1.1"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "document's root cannot be read"),
        (HTML, "document's root cannot be read"),
        (b'{"rates":' * 100_000, "cannot be read"),
        (b'{"result":"error"}', "nothing at 'base'"),
        (b'{"base":"EUR"}', "base is 'EUR', not USD"),
        (b'{"base":7}', "'base' cannot be read"),
        (b'{"base":"USD"}', "nothing at 'rates'"),
        (b'{"base":"USD","rates":[1,2]}', "'rates' cannot be read"),
        (b'{"base":"USD","rates":{}}', "no rates of known currencies at 'rates'"),
        (b'{"base":"USD","rates":{"EUR":1}}', "nothing at 'at'"),
        (b'{"base":"USD","rates":{"EUR":1},"at":"yesterday"}', "'yesterday' at 'at' is no time"),
        (b'{"base":"USD","rates":{"EUR":1},"at":"2026-03-19T12:00:00"}', "is no time as rfc3339"),
        (b'{"base":"USD","rates":{"EUR":1},"at":{"a":1}}', "is no time"),
    ],
)
def test_what_the_settings_do_not_describe_is_unusable(body: bytes, reason: str) -> None:
    settings = json_source(base="USD", base_path=["base"], observed_path=["at"])
    with pytest.raises(UnusableDocumentError, match=reason):
        json_http.parse(body, settings)


@pytest.mark.parametrize("moment", ["-1", "1e400", "NaN", '"soon"', "null", "99999999999999"])
def test_a_unix_time_out_of_range_is_unusable(moment: str) -> None:
    settings = json_source(
        base="USD", rates_path=["r"], observed_path=["t"], observed_format="unix_seconds"
    )
    with pytest.raises(UnusableDocumentError):
        json_http.parse(b'{"r":{"EUR":1},"t":%s}' % moment.encode(), settings)


def test_one_bad_rate_does_not_hide_the_others() -> None:
    settings = json_source(base="USD", rates_path=[])
    answer = json_http.parse(b'{"EUR":null,"GBP":{"x":[1]},"RUB":"1e400","JPY":150.10}', settings)
    assert texts(answer)["USDJPY"] == "150.10"
    assert texts(answer)["USDEUR"] == "null"
    assert msgspec.json.decode(msgspec.json.encode(answer.rates))["USDGBP"] == {"x": [1]}


def test_a_json_source_says_what_its_keys_are() -> None:
    adapter: TypeAdapter[JsonSource] = TypeAdapter(JsonSource)
    common = {"name": "any", "url": "http://rates.example/"}
    with pytest.raises(ValueError, match="needs 'base' or 'base_path'"):
        adapter.validate_python(common)
    with pytest.raises(ValueError, match="takes no 'base'"):
        adapter.validate_python({**common, "keys": "pair", "base": "USD"})
    with pytest.raises(ValueError, match="'QQQ' is not a known currency"):
        adapter.validate_python({**common, "base": "QQQ"})


@pytest.mark.parametrize(
    "url", ["", "rates.example", "ftp://rates.example", "http://", "http://me:pw@h/", "http://h:x/"]
)
def test_a_source_has_a_plain_http_address(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        json_source(base="USD").model_validate({"name": "any", "base": "USD", "url": url})
