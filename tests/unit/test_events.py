"""What goes over the wire, as its readers take it."""

from __future__ import annotations

import msgspec
import pytest

from ratestream.events import Average, Quote
from ratestream.streaming import DecodeError
from ratestream.streaming.codecs import codec_for

VALUES = {
    "pair": "EURUSD",
    "source": "demo",
    "value": "1.1",
    "count": 1,
    "observed_at": "2026-11-28T12:00:00Z",
    "received_at": "2026-11-28T12:00:01+00:00",
    "origin": ["src-data", 0, 7],
}


@pytest.mark.parametrize("kind", [Quote, Average])
@pytest.mark.parametrize("name", ["observed_at", "received_at"])
def test_a_time_without_an_offset_is_refused(kind: type, name: str) -> None:
    codec = codec_for(kind)
    codec.decode(msgspec.json.encode(VALUES))
    with pytest.raises(DecodeError, match=rf"timezone .*{name}"):
        codec.decode(msgspec.json.encode({**VALUES, name: "2026-11-28T12:00:00"}))
