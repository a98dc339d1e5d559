"""What goes over the wire: the JSON values of `src-data`, `processed-data`, `aggregated-data`.

Decimals are JSON strings, times RFC 3339 with an offset. Unknown fields are ignored, so that an
older reader understands a newer writer.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

import msgspec

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""With an offset: without one nobody knows when it was."""


class Origin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a snapshot stands on `src-data`. Together with the pair it names a quote for ever."""

    topic: str
    partition: int
    offset: int


class Snapshot(msgspec.Struct, frozen=True):
    """What one source answered once. Each rate is still the JSON as received (string or number),
    so that one bad rate is refused alone and none passes through a binary float. Its times are
    checked with its rates, by `ratestream.rates.quote`, which says more of what is wrong."""

    source: str
    observed_at: datetime
    """When the source says the rates held, UTC."""
    received_at: datetime
    """When data_requester had the answer, UTC."""
    rates: dict[str, msgspec.Raw]
    """Pair name (six letters, base then quote currency) to the price of one base in quote units."""


class Quote(msgspec.Struct, frozen=True):
    """One checked rate of one pair from one source."""

    pair: str
    source: str
    value: Decimal
    observed_at: Moment
    received_at: Moment
    origin: Origin


class Average(msgspec.Struct, frozen=True):
    """The mean of the last `count` quotes of one pair from one source, up to and including the
    quote whose `origin` and times it carries. Rounded once, half-even, to 12 significant digits."""

    pair: str
    source: str
    value: Decimal
    count: int
    observed_at: Moment
    received_at: Moment
    origin: Origin


def milliseconds(moment: datetime) -> int:
    """`moment` as a Kafka timestamp: whole milliseconds since the epoch, UTC, rounded down."""
    return int(moment.timestamp() * 1000)
