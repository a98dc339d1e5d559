"""The faults of `make chaos`: decided by the seed, of every kind, and never two brokers at once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from tests.chaos.faults import INTERVAL, Fault, Kind, make_schedule
from tests.chaos.oracle import Fact, Key
from tests.chaos.report import Verdict, recovery_seconds
from tests.chaos.results import Stored

_START = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_same_seed_gives_the_same_faults() -> None:
    assert make_schedule(7, 50) == make_schedule(7, 50)
    assert make_schedule(7, 50) != make_schedule(8, 50)


def test_a_longer_schedule_begins_like_a_shorter_one() -> None:
    assert make_schedule(3, 100)[:30] == make_schedule(3, 30)


def test_every_kind_comes_soon_and_by_its_weight() -> None:
    for seed in range(20):
        schedule = make_schedule(seed, len(Kind) + 200)
        assert {fault.kind for fault in schedule[: len(Kind)]} == set(Kind)
        counts = Counter(fault.kind for fault in schedule[len(Kind) :])
        assert counts == {kind: kind.weight * 10 for kind in Kind}


def test_a_broker_has_time_to_catch_up_before_the_next_dies() -> None:
    for seed in range(20):
        brokers = [each for each in make_schedule(seed, 200) if each.kind is Kind.KILL_BROKER]
        assert all(b.at - a.at > 4 * INTERVAL for a, b in pairwise(brokers))


def test_faults_overlap_but_not_at_one_target() -> None:
    schedule = make_schedule(1, 200)
    assert any(a.at + a.seconds > b.at for a, b in pairwise(schedule))
    for target in {fault.target for fault in schedule}:
        of_target = [fault for fault in schedule if fault.target == target]
        assert all(a.at + a.seconds <= b.at for a, b in pairwise(of_target))


def test_recovery_lasts_until_what_came_after_the_fault_is_stored() -> None:
    fault = Fault(0.0, Kind.PAUSE, "data_processor-1", 7.0)
    unseen = Fault(60.0, Kind.KILL_POSTGRES, "postgres", 1.0)

    def stored(received: float, after: float) -> Stored:
        at = _START + timedelta(seconds=received)
        fact = Fact(Key(0, int(received * 10), "EURUSD"), "source-0", Decimal(1), at)
        return Stored(fact, at + timedelta(seconds=after))

    rows = [stored(0.5, 0.1), stored(-0.1, 30.0), stored(0.9, 6.1), stored(1.1, 20.0)]
    struck = {unseen: _START + timedelta(seconds=60), fault: _START}
    assert recovery_seconds(struck, rows) == {Kind.PAUSE: [7.0]}


def test_a_verdict_is_good_when_it_is_what_the_guarantee_says() -> None:
    def is_good(lost: int, repeated: int, wrong: int, died: int, exactly_once: bool) -> bool:
        return Verdict(lost, repeated, wrong, died, exactly_once).is_good

    assert is_good(0, 0, 0, 0, True)
    assert not any(
        is_good(*defects, True) for defects in [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]
    )
    assert is_good(0, 5, 5, 0, False)
    assert not is_good(0, 0, 0, 0, False), "a comparison that sees no repeats may be blind"
    assert not is_good(1, 5, 0, 0, False)
    assert not is_good(0, 0, 0, 1, True)
    assert not is_good(0, 5, 0, 1, False)
