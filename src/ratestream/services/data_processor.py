"""data_processor: checks each snapshot and splits it into one quote per pair.

What is wrong goes to `dead-letter` with the reason: the whole snapshot when it cannot be believed,
one rate when only that is wrong; the other rates go on.
"""

from __future__ import annotations

import re
from decimal import Decimal

import msgspec
from prometheus_client import Counter

from ratestream.events import Origin, Quote, Snapshot, milliseconds
from ratestream.rates.pair import InvalidPair, parse_pair
from ratestream.rates.quote import InvalidQuote, Limits, check_times, check_value
from ratestream.settings import Settings
from ratestream.streaming import App, Record, Stream

_SOURCE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_decode_rate = msgspec.json.Decoder(Decimal).decode


class InvalidSnapshot(ValueError):  # noqa: N818 - named as the thing it says about the input
    """A snapshot that cannot be believed as a whole. The message is the reason."""


def build(settings: Settings) -> App:
    """Reads `src-data`; each good rate becomes a quote on `processed-data`, keyed by pair, with
    the time of receipt as the record's timestamp. Nothing that is wrong stops it."""
    app = App("data_processor", processing_guarantee=settings.data_processor.processing_guarantee)
    options = settings.topics.options()
    snapshots = app.topic("src-data", value_type=Snapshot, **options)
    quotes = app.topic("processed-data", value_type=Quote, **options)
    app.dead_letter = app.topic(
        "dead-letter", key_type=bytes, value_type=bytes, **settings.topics.dead_letter_options()
    )
    refused_rates = Counter(
        "ratestream_refused_rates",
        "Single rates of otherwise good snapshots that ended in the dead-letter topic.",
        registry=app.registry,
    )
    limits = Limits(max_digits=settings.data_processor.max_digits)
    max_pairs = settings.data_processor.max_pairs_per_snapshot

    @app.agent(snapshots)
    async def split(stream: Stream[Snapshot]) -> None:
        async for event in stream.records():
            snapshot: Snapshot = event.value
            try:
                check_snapshot(snapshot, limits, max_pairs)
            except (InvalidSnapshot, InvalidQuote) as error:
                await stream.reject(str(error))
                continue
            timestamp = milliseconds(snapshot.received_at)
            for name, rate in snapshot.rates.items():
                try:
                    quote = make_quote(snapshot, name, rate, event.record, limits)
                except (InvalidPair, InvalidQuote) as error:
                    refused_rates.inc()
                    await stream.reject(str(error), value=_only(snapshot, name))
                else:
                    await quotes.send(key=name, value=quote, timestamp=timestamp)

    return app


def check_snapshot(snapshot: Snapshot, limits: Limits, max_pairs: int) -> None:
    """What concerns all rates alike. Raises `InvalidSnapshot` or `InvalidQuote`."""
    if not _SOURCE.fullmatch(snapshot.source):
        raise InvalidSnapshot(
            f"source {snapshot.source[:64]!r} must be 1 to 64 of a-z 0-9 _ . -, "
            "and begin with a letter or digit"
        )
    if len(snapshot.rates) > max_pairs:
        raise InvalidSnapshot(
            f"{len(snapshot.rates)} rates, max_pairs_per_snapshot allows {max_pairs}"
        )
    check_times(snapshot.observed_at, snapshot.received_at, limits)


def make_quote(
    snapshot: Snapshot, name: str, rate: msgspec.Raw, record: Record, limits: Limits
) -> Quote:
    """One checked rate. Raises `InvalidPair` or `InvalidQuote`."""
    parse_pair(name)
    try:
        value = _decode_rate(rate)
    except (msgspec.MsgspecError, ValueError, ArithmeticError) as error:
        raise InvalidQuote(f"the rate of {name} is no decimal: {error}") from None
    try:
        check_value(value, limits)
    except InvalidQuote as error:
        raise InvalidQuote(f"{name}: {error}") from None
    return Quote(
        pair=name,
        source=snapshot.source,
        value=value,
        observed_at=snapshot.observed_at,
        received_at=snapshot.received_at,
        origin=Origin(record.topic, record.partition, record.offset),
    )


def _only(snapshot: Snapshot, name: str) -> bytes:
    """The snapshot with the one rate that is refused, fit to be sent to `src-data` again."""
    only = msgspec.structs.replace(snapshot, rates={name: snapshot.rates[name]})
    return msgspec.json.encode(only)
