"""From what an operator says about a source to the source itself."""

from __future__ import annotations

from typing import assert_never

from ratestream.sources import cbr, config, ecb
from ratestream.sources.base import Source
from ratestream.sources.demo import DemoRates
from ratestream.sources.http import HttpDocument
from ratestream.sources.json_http import JsonRates


def make_source(settings: config.SourceSettings) -> Source:
    """The source that `settings.kind` names. Connects to nothing."""
    match settings:
        case config.DemoSource():
            return DemoRates(settings)
        case config.EcbSource():
            return HttpDocument(settings, ecb.parse)
        case config.CbrSource():
            return HttpDocument(settings, cbr.parse)
        case config.JsonSource():
            return JsonRates(settings)
        case _:
            assert_never(settings)
