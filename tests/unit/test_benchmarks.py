"""What benchmarks compute from what they have seen."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from benchmarks import BenchmarkError
from benchmarks.__main__ import BENCHMARKS, benchmark
from benchmarks.backlog import Key, quotes
from benchmarks.figures import Pace, Restore, Takeover, percentile, restores
from benchmarks.flows import MOST_ANSWERS_PER_SECOND, pairs
from benchmarks.history import RECENT_RUNS, fallen, load, record, usual
from benchmarks.inputs import Quotes, Snapshots, differences, pair_name, price_text
from benchmarks.latency import by_row, even, targets
from benchmarks.programs.arguments import Arguments, arguments
from benchmarks.programs.job import average, split
from benchmarks.rounds import Found
from benchmarks.streams import Sight, figures
from benchmarks.visibility import Seen, first_seen
from benchmarks.weight import closure
from ratestream.events import Quote
from ratestream.rates.pair import parse_pair

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


def test_what_is_usual_is_the_median_of_the_last_runs() -> None:
    assert usual([]) == {}
    old = [{"a": 100.0}] * 10
    recent = [{"a": float(n)} for n in range(1, RECENT_RUNS + 1)]
    assert usual([*old, *recent, {"b": 0.5}]) == {"a": 3.0, "b": 0.5}


def test_less_than_half_of_what_is_usual_has_fallen() -> None:
    history = [{"a": 0.6, "b": 0.6}, {"a": 0.8, "b": 0.8}]
    assert fallen({"a": 0.35, "b": 0.36, "new": 0.01}, history) == []
    (complaint,) = fallen({"a": 0.349, "b": 0.9}, history)
    assert complaint == "a is 0.349, less than half of the recorded 0.700"


def test_a_ratio_that_was_not_measured_has_not_fallen() -> None:
    assert fallen({}, [{"a": 1.0}]) == []


def test_recorded_ratios_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert load(file) == []
    record({"a": 0.5}, file)
    record({"a": 0.6, "b": 0.1}, file)
    assert load(file) == [{"a": 0.5}, {"a": 0.6, "b": 0.1}]
    assert json.loads(file.read_text().splitlines()[0]).keys() == {
        "date",
        "machine",
        "versions",
        "ratios",
    }


def test_programs_agree_with_what_is_expected_of_them() -> None:
    quotes = Quotes(count=3_000, pairs=40)
    windows: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    for message in quotes.messages():
        quote = json.loads(message.value)
        assert quote["pair"] == message.key
        value, windows[message.key] = average(quote, windows.get(message.key, []))
        found.setdefault(message.key, []).append(value["mean"])
    assert sum(map(len, found.values())) == quotes.outputs
    expected = quotes.expected(quotes.some_keys())
    assert len(expected) >= 20
    assert differences(expected, found, is_complete=True) == []


def test_every_rate_of_a_snapshot_becomes_a_quote() -> None:
    snapshots = Snapshots(count=1_000)
    found: dict[str, list[str]] = {}
    for message in snapshots.messages():
        for quote in split(json.loads(message.value)):
            found.setdefault(quote["pair"], []).append(quote["price"])
    assert sum(map(len, found.values())) == snapshots.outputs == 1_000
    expected = snapshots.expected(snapshots.some_keys())
    assert {key: sorted(found[key]) for key in expected} == expected


def test_a_wrong_missing_or_surplus_output_is_noticed() -> None:
    expected = {"a": ["1", "2", "3"]}
    assert differences(expected, {"a": ["1", "2"]}, is_complete=False) == []
    assert differences(expected, {}, is_complete=False) == []
    assert differences(expected, {}, is_complete=True)
    assert differences(expected, {"a": ["1", "3"]}, is_complete=False) == [
        "a: 2 of 3, the first 1 of them right"
    ]
    assert differences(expected, {"a": ["1", "2"]}, is_complete=True)
    assert differences(expected, {"a": ["1", "2", "3", "3"]}, is_complete=False)


def test_pairs_differ_and_prices_have_one_form() -> None:
    names = [pair_name(number) for number in range(100_000)]
    assert len(set(names)) == 100_000
    assert {len(name) for name in names} == {6}
    prices = [price_text(number) for number in range(100_000)]
    assert all(1 < Decimal(price) < 2 and len(price) == 7 for price in prices)
    assert not any(price.endswith("0") for price in prices)


def test_a_rate_counts_from_the_first_sight_to_the_first_sight_of_the_last() -> None:
    sights = [Sight(10.0, 100, 1.0, 5_000_000), Sight(11.0, 500, 2.0, 7_000_000)]
    sights.append(Sight(14.0, 1_100, 3.0, 6_000_000))
    assert figures(sights, outputs=1_100) == {
        "outputs_per_second": 250.0,
        "cores": 0.5,
        "cores_at_1_million_per_second": 2_000.0,
        "memory_mb": 7.0,
    }
    assert figures(sights, outputs=1_100, after=100)["outputs_per_second"] == 200.0


def test_what_was_spent_is_that_of_one_output() -> None:
    came_later = {"main": 3.0, "late": 0.5}
    sights = [Sight(10.0, 100, 1.0, 1, {"main": 1.0}), Sight(14.0, 1_100, 3.0, 1, came_later)]
    found = figures(sights, outputs=1_100)
    assert found["main_us"] == pytest.approx(2_000.0)
    assert found["late_us"] == pytest.approx(500.0)


def test_the_marks_of_transactions_do_not_count() -> None:
    sights = [Sight(0.0, 0 + 220, 0.0, 1), Sight(1.0, 1_100, 1.0, 1)]
    assert figures(sights, outputs=1_000)["outputs_per_second"] == pytest.approx(800.0)


def test_what_came_all_at_once_has_no_rate() -> None:
    with pytest.raises(BenchmarkError):
        figures([Sight(1.0, 10, 0.0, 1)], outputs=10)


def test_programs_read_the_arguments_that_they_are_given() -> None:
    given = Arguments(
        "stateful", "127.0.0.1:9092", "in", "out", "-group", Path("/data/x y"), "exactly_once"
    )
    assert arguments(given.as_options()) == given
    assert given.is_exactly_once


def test_what_a_reader_sees_is_what_had_ended_when_it_began() -> None:
    seen = Seen.parse(1.5, "100:105:100,103")
    assert seen == Seen(1.5, 105, frozenset({100, 103}))
    assert [each for each in range(98, 108) if seen.shows(each)] == [98, 99, 101, 102, 104]
    assert Seen.parse(1.0, "7:7:").running == frozenset()


def test_a_transaction_is_first_seen_in_the_first_answer_that_shows_it() -> None:
    answers = [Seen.parse(at, text) for at, text in ((1, "5:5:"), (2, "5:8:5,7"), (3, "9:9:"))]
    assert first_seen([4, 6, 7, 5, 6, 9], answers) == {4: 1, 6: 2, 5: 3, 7: 3}
    assert first_seen([1], []) == {}


def test_each_thing_that_is_waited_for_has_a_row() -> None:
    way = Found({"quotes: p99_ms": [4.0, 6.0, 5.0], "averages: p99_ms": [7.0], "cores": [1.5]})
    rows = by_row({"at_least_once, 1,000/s": way})
    assert {name: row.rounds for name, row in rows.items()} == {
        "at_least_once, 1,000/s: quotes": {"p99_ms": [4.0, 6.0, 5.0], "cores": [1.5]},
        "at_least_once, 1,000/s: averages": {"p99_ms": [7.0], "cores": [1.5]},
    }
    assert [(each.value, each.is_reached) for each in targets(rows)] == [(5.0, True), (7.0, True)]
    assert targets({}) == []


def test_a_rate_that_answers_cannot_share_evenly_is_refused() -> None:
    assert [even(text) for text in ("1", "99", "100", "10000")] == [1, 99, 100, 10_000]
    for text in ("0", "-1", "150", str(MOST_ANSWERS_PER_SECOND + 1)):
        with pytest.raises(ArgumentTypeError, match="or a multiple"):
            even(text)


def test_the_pairs_that_flow_are_pairs() -> None:
    names = pairs(200)
    assert len(set(names)) == 200
    assert [parse_pair(name).name for name in names] == names


def test_quotes_come_to_every_key_in_turn_and_a_pair_stays_in_its_partition() -> None:
    made = [(partition, json.loads(value)) for _, partition, _, value in quotes(500, 1_000)]
    keys = [f"{quote['pair']}/{quote['source']}".encode() for _, quote in made]
    assert keys == [Key(number % 500).in_changelog for number in range(1_000)]
    assert len(set(keys)) == 500
    assert len({(quote["pair"], partition) for partition, quote in made}) == 200
    assert {partition for partition, _ in made} == set(range(8))
    msgspec.convert(made[0][1], Quote)


def test_what_is_installed_follows_extras_and_leaves_out_what_is_for_others() -> None:
    requirements = {
        "ours": ["a>=1", "B[fast]; python_version >= '3'", "local; extra == 'local'"],
        "a": ["b", "windows; sys_platform == 'win32' and platform_system == 'nowhere'"],
        "b": ["fast; extra == 'fast'", "slow; extra == 'slow'", "ours"],
        "fast": [],
        "local": [],
    }
    assert closure("ours", requirements.__getitem__) == {"ours", "a", "b", "fast"}
    assert closure("ours[local]", requirements.__getitem__) == {"ours", "a", "b", "fast", "local"}


def test_benchmarks_that_share_an_option_mean_the_same_by_it() -> None:
    found: dict[str, tuple[object, object, object]] = {}
    for name in BENCHMARKS:
        own = ArgumentParser()
        benchmark(name).add_options(own)
        for action in own._actions:
            meaning = (action.default, action.type, action.nargs)
            assert found.setdefault(action.dest, meaning) == meaning, f"{name}: --{action.dest}"
