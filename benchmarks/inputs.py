"""What goes in, the same in every run, and what has to come out of it."""

from __future__ import annotations

import json
import random
import string
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from itertools import islice, takewhile
from typing import NamedTuple

from confluent_kafka import Producer

from benchmarks import BenchmarkError
from benchmarks.programs.job import WINDOW

RATES_PER_SNAPSHOT = 50
_SOURCES = 64
_STARTED = 1_767_225_600_000
_BATCH = 10_000
_WAITING = 400_000
_DELIVERY_SECONDS = 60.0
_LETTERS = string.ascii_uppercase
_TWELVE_DIGITS = Context(prec=12, rounding=ROUND_HALF_EVEN)


class Message(NamedTuple):
    """Not yet sent."""

    key: str
    value: bytes


@dataclass(frozen=True)
class Quotes:
    """So many quotes of so many pairs, in an order that is random but always the same."""

    count: int
    pairs: int

    @property
    def outputs(self) -> int:
        return self.count

    @property
    def is_ordered(self) -> bool:
        return True

    def messages(self) -> Iterator[Message]:
        for number, (pair, price) in enumerate(self._prices()):
            at = _STARTED + number
            yield Message(
                pair,
                f'{{"pair":"{pair}","source":"s1","price":"{price}",'
                f'"observed_at":{at},"received_at":{at + 250}}}'.encode(),
            )

    def some_keys(self) -> list[str]:
        """Enough of them to see a wrong average, evenly from all."""
        return [pair_name(number) for number in range(0, self.pairs, max(1, self.pairs // 20))]

    def expected(self, keys: Collection[str]) -> dict[str, list[str]]:
        """By key, the averages that have to come out, as text, in their order. Computed in another
        way than the programs do it."""
        prices, found = defaultdict[str, list[Decimal]](list), defaultdict[str, list[str]](list)
        for pair, price in self._prices():
            if pair in keys:
                prices[pair].append(Decimal(price))
                last = prices[pair][-WINDOW:]
                found[pair].append(_plain(_TWELVE_DIGITS.divide(sum(last), Decimal(len(last)))))
        return dict(found)

    def _prices(self) -> Iterator[tuple[str, str]]:
        names = [pair_name(number) for number in range(self.pairs)]
        draw = random.Random(self.pairs)
        number = 0
        while number < self.count:
            for name in draw.choices(names, k=min(_BATCH, self.count - number)):
                yield name, price_text(number)
                number += 1


@dataclass(frozen=True)
class Snapshots:
    """Snapshots of 50 of the pairs each, so many that `count` quotes come out."""

    count: int
    pairs: int = 200

    @property
    def outputs(self) -> int:
        return self.count // RATES_PER_SNAPSHOT * RATES_PER_SNAPSHOT

    @property
    def is_ordered(self) -> bool:
        return False

    def messages(self) -> Iterator[Message]:
        for number in range(self.count // RATES_PER_SNAPSHOT):
            source, at = f"s{number % _SOURCES}", _STARTED + number
            value = {
                "source": source,
                "observed_at": at,
                "received_at": at + 250,
                "rates": dict(self._rates(number)),
            }
            yield Message(source, json.dumps(value, separators=(",", ":")).encode())

    def some_keys(self) -> list[str]:
        return [pair_name(number) for number in range(0, self.pairs, self.pairs // 20)]

    def expected(self, keys: Collection[str]) -> dict[str, list[str]]:
        """By key, the prices that have to come out, sorted: sources are not in one order."""
        found = defaultdict[str, list[str]](list)
        for number in range(self.count // RATES_PER_SNAPSHOT):
            for pair, price in self._rates(number):
                if pair in keys:
                    found[pair].append(price)
        return {pair: sorted(prices) for pair, prices in found.items()}

    def _rates(self, number: int) -> Iterator[tuple[str, str]]:
        for n in range(RATES_PER_SNAPSHOT):
            each = number * RATES_PER_SNAPSHOT + n
            yield pair_name(each % self.pairs), price_text(each)


@dataclass(frozen=True)
class Windows:
    """A table's changelog: full windows, of so many keys in turn."""

    count: int
    keys: int

    def messages(self) -> Iterator[Message]:
        for number in range(self.count):
            prices = ",".join(f'"{price_text(number + n)}"' for n in range(WINDOW))
            yield Message(pair_name(number % self.keys), f"[{prices}]".encode())


def pair_name(number: int) -> str:
    """Six letters, different for different numbers below 26**6."""
    letters = ""
    for _ in range(6):
        number, letter = divmod(number, len(_LETTERS))
        letters = _LETTERS[letter] + letters
    return letters


def price_text(number: int) -> str:
    """Between 1 and 2, with five decimals and no order to speak of; never ends in 0, so that every
    program writes it in the same way."""
    digits = number * 7919 % 99_991
    return f"1.{digits if digits % 10 else digits + 1:05d}"


def _plain(value: Decimal) -> str:
    return format(value.normalize(), "f")


def fill(bootstrap: str, topic: str, messages: Iterator[Message]) -> None:
    """Write all of them, each where Kafka's own hash of its key says. Raises `BenchmarkError`."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 50,
            "batch.size": 1024 * 1024,
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 2 * _WAITING,
            "log_level": 2,
        }
    )
    while batch := [{"key": each.key, "value": each.value} for each in islice(messages, _BATCH)]:
        if producer.produce_batch(topic, batch) != len(batch):
            raise BenchmarkError(f"{topic}: librdkafka did not take a message")
        while len(producer) > _WAITING:
            producer.poll(0.1)
    if left := producer.flush(_DELIVERY_SECONDS):
        raise BenchmarkError(f"{topic}: {left} messages were not written")


def differences(
    expected: Mapping[str, Sequence[str]], found: Mapping[str, Sequence[str]], is_complete: bool
) -> list[str]:
    """What is wrong with what a program sent, in words. One that was stopped early may have sent
    only the first of what is expected."""
    wrong = []
    for key, values in expected.items():
        seen = found.get(key, ())
        wanted = values if is_complete else values[: len(seen)]
        if list(seen) != list(wanted):
            same = takewhile(lambda both: both[0] == both[1], zip(seen, wanted, strict=False))
            right = len(list(same))
            wrong.append(f"{key}: {len(seen)} of {len(values)}, the first {right} of them right")
    return wrong
