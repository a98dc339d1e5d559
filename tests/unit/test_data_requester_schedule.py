from __future__ import annotations

import pytest

from ratestream.services.data_requester import Schedule


def test_the_first_tick_is_due_whenever_it_comes() -> None:
    assert Schedule(3600).is_due(12345.6)


def test_a_slow_source_is_due_once_an_interval_without_drift() -> None:
    schedule = Schedule(90.0)
    assert schedule.tick == 1.0
    lateness = (0.0, 0.3, 0.1)
    due = [n for n in range(400) if schedule.is_due(1000 + n + lateness[n % 3])]
    assert due == [0, 90, 180, 270, 360]


def test_ticks_left_out_move_nothing() -> None:
    schedule = Schedule(10.0)
    assert [n for n in (0, 1, 14, 15, 20, 21, 45, 50) if schedule.is_due(float(n))] == [
        *(0, 14, 20, 45, 50)
    ]


@pytest.mark.parametrize("interval", [0.01, 0.7, 1.0])
def test_a_fast_source_is_due_at_every_tick(interval: float) -> None:
    schedule = Schedule(interval)
    assert schedule.tick == interval
    assert all(schedule.is_due(50 + n * interval + n % 2 * 0.4 * interval) for n in range(100))
