"""What benchmarks compute from what they have seen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from benchmarks.figures import Pace, Restore, Takeover, percentile, restores

_KILLED = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([7.0], 50, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 101)], 100, 100.0),
        ([float(n) for n in range(1, 51)], 99, 50.0),
    ],
)
def test_a_percentile_is_one_of_the_values(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


def test_a_pace_is_even() -> None:
    pace = Pace(per_second=10, started=5.0)
    assert [pace.due(now) for now in (5.0, 5.05, 5.11, 5.19, 5.21)] == [1, 0, 1, 0, 1]
    assert pace.wait(5.21) == pytest.approx(0.09)


def test_what_a_stall_held_up_is_due_at_once() -> None:
    pace = Pace(per_second=10, started=0.0)
    assert (pace.due(0.0), pace.due(1.05), pace.due(1.06)) == (1, 10, 0)
    assert pace.wait(2.0) == 0


def test_a_takeover_lasts_until_every_pair_goes_on() -> None:
    takeover = Takeover(_KILLED, frozenset({"EURUSD", "EURCHF"}))
    before, after = _KILLED - timedelta(seconds=1), _KILLED + timedelta(seconds=1)
    takeover.saw("EURUSD", before, _KILLED + timedelta(seconds=2))
    assert takeover.seconds == {}
    takeover.saw("EURUSD", after, _KILLED + timedelta(seconds=3))
    assert not takeover.is_over
    takeover.saw("EURCHF", _KILLED, _KILLED + timedelta(seconds=8))
    takeover.saw("EURUSD", after, _KILLED + timedelta(seconds=9))
    assert takeover.is_over
    assert takeover.longest == 8


def test_what_was_restored_before_the_kill_does_not_count() -> None:
    log = [
        "starting ...",
        '{"event": "tables_restored", "timestamp": "2026-01-01T11:59:59.5Z", "records": 9, '
        '"seconds": 1.0}',
        '{"event": "tables_restored", "timestamp": "2026-01-01T12:00:07.25Z", "records": 40, '
        '"seconds": 0.5}',
        '{"event": "partitions_lost", "timestamp": "2026-01-01T12:00:07.5Z"}',
        '{"event": "tables_restored", "timestamp": "2026-01-01T12:00:08Z", "records": 2, '
        '"seconds": 0.25}',
    ]
    assert restores(log, _KILLED) == Restore(42, 0.75)
    assert restores([], _KILLED) == Restore(0, 0.0)
