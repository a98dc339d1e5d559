"""What an operator may say about a source: one model a kind, told apart by `kind`.

`rates` and these models are all that `settings.py` needs to know of sources.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from ratestream.rates.currencies import KNOWN
from ratestream.rates.pair import parse_pair

ECB_URL = "https://www.ecb.europa.eu/stats/eurofxref/eurofxref-daily.xml"
CBR_URL = "https://www.cbr.ru/scripts/XML_daily.asp"
DEMO_URL = "http://127.0.0.1:8002"

DEFAULT_PAIRS = (
    "USDRUB",
    "EURRUB",
    "EURUSD",
    "GBPUSD",
    "USDJPY",
    "EURGBP",
    "EURCHF",
    "USDCNY",
    "USDTRY",
    "EURPLN",
    "AUDUSD",
    "USDCAD",
)


def _check_pair_name(name: str) -> str:
    return parse_pair(name).name


def _check_currency(code: str) -> str:
    if code not in KNOWN:
        raise ValueError(f"{code!r} is not a known currency code, such as USD")
    return code


def _check_http_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("must hold no user name or password: put credentials into 'headers'")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("must start with http:// or https:// and name a host")
    return url


def _check_is_list(path: object) -> object:
    if isinstance(path, str):
        raise ValueError(f"must be a list of keys, such as [{path}]")
    return path


PairName = Annotated[str, AfterValidator(_check_pair_name)]
CurrencyCode = Annotated[str, AfterValidator(_check_currency)]
HttpUrl = Annotated[str, AfterValidator(_check_http_url)]
Path = Annotated[tuple[str, ...], BeforeValidator(_check_is_list)]


class HttpSource(BaseModel):
    """What every source asked over HTTP has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="The name that quotes, averages and metrics of this source carry; unique.",
    )
    url: HttpUrl = Field(description="Where to ask. Redirects are not followed.")
    proxy: HttpUrl | None = Field(
        default=None,
        description="HTTP proxy to ask through; variables such as HTTP_PROXY are not read.",
    )
    interval_seconds: float = Field(
        ge=0.01, le=7 * 86_400, description="Seconds from one poll to the next."
    )
    timeout_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Seconds that one request may take in all."
    )
    max_retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="Further tries after a failed one, as long as they start before the next "
        "poll is due.",
    )
    max_retry_after_seconds: float = Field(
        default=3_600.0,
        ge=0,
        le=7 * 86_400,
        description="Seconds that the source may ask to be left alone, with Retry-After, at most.",
    )
    max_response_bytes: int = Field(
        default=1_048_576,
        ge=1_024,
        le=64 * 1_048_576,
        description="Bytes of an answer, unpacked, beyond which it is refused.",
    )


class DemoSource(HttpSource):
    """demo_server, or whatever speaks as it does."""

    kind: Literal["demo"] = Field(default="demo", description="ratestream's own demo_server.")
    name: str = Field(
        default="demo",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="The name that quotes, averages and metrics of this source carry; unique.",
    )
    url: HttpUrl = Field(default=DEMO_URL, description="demo_server's address, without a path.")
    interval_seconds: float = Field(
        default=1.0, ge=0.01, le=7 * 86_400, description="Seconds from one poll to the next."
    )


class EcbSource(HttpSource):
    """Reference rates of the European Central Bank, one document each working day."""

    kind: Literal["ecb"] = Field(default="ecb", description="ECB daily reference rates (XML).")
    name: str = Field(
        default="ecb",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="The name that quotes, averages and metrics of this source carry; unique.",
    )
    url: HttpUrl = Field(default=ECB_URL, description="The document to ask for.")
    interval_seconds: float = Field(
        default=3_600.0, ge=0.01, le=7 * 86_400, description="Seconds from one poll to the next."
    )


class CbrSource(HttpSource):
    """Rates of the Bank of Russia, one document each working day."""

    kind: Literal["cbr"] = Field(default="cbr", description="Bank of Russia daily rates (XML).")
    name: str = Field(
        default="cbr",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="The name that quotes, averages and metrics of this source carry; unique.",
    )
    url: HttpUrl = Field(default=CBR_URL, description="The document to ask for.")
    interval_seconds: float = Field(
        default=3_600.0, ge=0.01, le=7 * 86_400, description="Seconds from one poll to the next."
    )


class JsonSource(HttpSource):
    """Any JSON document that holds one object of rates, described here.

    A path is a list of keys from the document's root; the empty list is the root itself.
    """

    kind: Literal["json"] = Field(default="json", description="Any JSON over HTTP.")
    interval_seconds: float = Field(
        default=60.0, ge=0.01, le=7 * 86_400, description="Seconds from one poll to the next."
    )
    headers: dict[str, SecretStr] = Field(
        default_factory=dict,
        max_length=20,
        description="Headers to send, such as an API key. Values are secret.",
    )
    rates_path: Path = Field(
        default=("rates",), max_length=10, description="Path to the object of rates."
    )
    keys: Literal["pair", "currency"] = Field(
        default="currency",
        description="What that object's keys are: whole pairs (USDRUB, btc-usd, EUR/USD), or one "
        "currency each: how much of it one unit of the base buys.",
    )
    base: CurrencyCode | None = Field(
        default=None,
        description="With keys 'currency': the currency that the rates are of. One of 'base' and "
        "'base_path' must be given.",
    )
    base_path: Path | None = Field(
        default=None,
        max_length=10,
        description="Path to the base currency's code. With 'base' as well, a document with "
        "another base is refused: some services silently answer with a base not asked for.",
    )
    invert: bool = Field(
        default=False,
        description="With keys 'currency': a rate is instead the price of one unit of its key, in "
        "the base, so that the pair is key then base. No number is changed.",
    )
    aliases: dict[str, CurrencyCode] = Field(
        default_factory=lambda: {"XBT": "BTC"},
        max_length=1_000,
        description="The source's own currency codes, and the known ones they stand for. Case does "
        "not matter in the source's; with keys 'pair' they have three letters.",
    )
    observed_path: Path | None = Field(
        default=None,
        max_length=10,
        description="Path to the time at which the rates held. Without it, the time received.",
    )
    observed_format: Literal["unix_seconds", "unix_milliseconds", "rfc3339", "date"] = Field(
        default="rfc3339",
        description="How that time is written. A 'date' (YYYY-MM-DD) is 00:00 UTC of that day.",
    )

    @model_validator(mode="after")
    def _base_fits_keys(self) -> Self:
        has_base = self.base is not None or self.base_path is not None
        if self.keys == "currency" and not has_base:
            raise ValueError("keys 'currency' needs 'base' or 'base_path'")
        if self.keys == "pair" and (has_base or self.invert):
            raise ValueError("keys 'pair' takes no 'base', 'base_path' or 'invert'")
        return self


SourceSettings = Annotated[
    DemoSource | EcbSource | CbrSource | JsonSource,
    Field(discriminator="kind"),
]
