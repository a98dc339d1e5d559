"""The code that docs/runtime.md shows works as it stands there."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ratestream.streaming import App, FencedError, Move, TopicPartition
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "runtime.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def run(*shown: str) -> dict[str, Any]:
    """One after another, as in a module; what they define."""
    names: dict[str, Any] = {"__name__": "guide"}
    for each in shown:
        exec(compile(each, str(GUIDE), "exec", dont_inherit=True), names)
    return names


def test_the_service_and_its_test_run() -> None:
    service, _on_kafka, its_test, _policy, _sink = examples()
    names = run(service, its_test)
    assert names["volumes_out"].name == "volumes"


def test_the_example_on_kafka_compiles() -> None:
    _, on_kafka, *_ = examples()
    compile(on_kafka, str(GUIDE), "exec", dont_inherit=True)


def test_what_fails_goes_to_the_dead_letters_and_the_rest_goes_on() -> None:
    service, _on_kafka, _its_test, policy, _sink = examples()
    names = run(service, policy)
    app, trade = names["pricing"], names["Trade"]

    async def check() -> None:
        async with AppTester(app) as tester:
            for amount in ("8", "0", "5"):
                await tester.send("orders", trade("X", Decimal(amount)), key="X")
            await tester.settle()
            assert tester.received("prices") == [Decimal("12.5"), Decimal(20)]
            (letter,) = tester.records("dead-letter")
            assert b"DivisionByZero" in dict(letter.headers)["reason"]

    asyncio.run(check())


def test_a_sink_that_keeps_the_offsets_has_each_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _on_kafka, _its_test, _policy, sink = examples()
    monkeypatch.chdir(tmp_path)
    broker = LocalBroker(None)
    try:
        # The second service finds the ledger of the first, and a group that has forgotten all.
        for group, amounts in (("bookkeeping", "1 2 3"), ("bookkeeping-again", "4 5")):
            names = run(service, sink.replace('App("bookkeeping")', f'App("{group}")'))
            asyncio.run(book(names["bookkeeping"], names["Trade"], broker, amounts.split()))
    finally:
        broker.close()
    # A zombie goes on from where it stood before.
    zombie = Move(TopicPartition("trades", partition_of_x()), 3, 4)
    with pytest.raises(FencedError):
        names["ledger"].add([names["Trade"]("X", Decimal(4))], [zombie])
    assert stored() == ["1", "2", "3", "4", "5"]


def stored() -> list[str]:
    with closing(sqlite3.connect("ledger.db")) as ledger:
        return [amount for (amount,) in ledger.execute("SELECT amount FROM trade")]


def partition_of_x() -> int:
    with closing(sqlite3.connect("ledger.db")) as ledger:
        ((partition,),) = ledger.execute("SELECT partition FROM position WHERE next IS NOT NULL")
        return int(partition)


async def book(app: App, trade: Any, broker: LocalBroker, amounts: list[str]) -> None:
    async with AppTester(app, broker) as tester:
        for amount in amounts:
            await tester.send("trades", trade("X", Decimal(amount)), key="X")
        await tester.settle()
