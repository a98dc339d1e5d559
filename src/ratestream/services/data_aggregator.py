"""data_aggregator: the exact mean of the last quotes of each pair and source.

The windows are a table, split like `processed-data`, which is keyed by pair: every quote of a pair
reaches the one instance that holds its windows.
"""

from __future__ import annotations

from decimal import Decimal

from ratestream.events import Average, Quote, milliseconds
from ratestream.rates.averages import mean, push
from ratestream.settings import Settings
from ratestream.streaming import App, Stream


def build(settings: Settings) -> App:
    """Reads `processed-data`; each quote gives one new average on `aggregated-data`, with the
    quote's times. Averages never mix sources. The window is `data_aggregator.window` quotes; a
    pair that is new has a smaller one, and its averages say so in `count`."""
    app = App("data_aggregator", processing_guarantee=settings.data_aggregator.processing_guarantee)
    options = settings.topics.options()
    quotes = app.topic("processed-data", value_type=Quote, **options)
    averages = app.topic("aggregated-data", value_type=Average, **options)
    app.dead_letter = app.topic(
        "dead-letter", key_type=bytes, value_type=bytes, **settings.topics.dead_letter_options()
    )
    windows = app.Table("windows", value_type=list[Decimal], default=list, partitions_of=quotes)
    size = settings.data_aggregator.window

    @app.agent(quotes)
    async def average(stream: Stream[Quote]) -> None:
        async for quote in stream:
            window_of = f"{quote.pair}/{quote.source}"
            window = push(windows[window_of], quote.value, size)
            windows[window_of] = window
            await averages.send(
                key=quote.pair,
                value=Average(
                    pair=quote.pair,
                    source=quote.source,
                    value=mean(window),
                    count=len(window),
                    observed_at=quote.observed_at,
                    received_at=quote.received_at,
                    origin=quote.origin,
                ),
                timestamp=milliseconds(quote.received_at),
            )

    return app
