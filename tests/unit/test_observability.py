"""Logs: what an event carries, how it is written, and that files stay within bounds."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog

from ratestream.observability import LAST_EVENTS, LastEvents, configure_logs, service_name
from ratestream.settings import LogSettings

JSON = LogSettings(format="json")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = before, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_says_when_where_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    structlog.get_logger("ratestream.test").info("polled", source="ecb", quotes=41)
    (event,) = events(capsys)
    at = datetime.fromisoformat(event.pop("timestamp"))
    assert at.utcoffset() == datetime.now(UTC).utcoffset()
    assert event == {
        "event": "polled",
        "level": "info",
        "logger": "ratestream.test",
        "source": "ecb",
        "quotes": 41,
    }


def test_events_of_libraries_look_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    logging.getLogger("some.library").warning("retried %d times", 3, extra={"host": "db"})
    (event,) = events(capsys)
    assert event["event"] == "retried 3 times"
    assert (event["logger"], event["level"], event["host"]) == ("some.library", "warning", "db")


def test_events_carry_the_service_that_they_are_of(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    with service_name("db_loader"):
        structlog.get_logger("ours").info("one")
        logging.getLogger("theirs").warning("two")
    structlog.get_logger("ours").info("three")
    assert [event.get("service") for event in events(capsys)] == ["db_loader", "db_loader", None]


def test_less_serious_events_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogSettings(format="json", level="warning"))
    structlog.get_logger("ours").info("quiet")
    logging.getLogger("theirs").info("quiet")
    structlog.get_logger("ours").warning("loud")
    assert [event["event"] for event in events(capsys)] == ["loud"]


def test_chatty_libraries_are_heard_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    logging.getLogger("httpx").info("HTTP Request: GET /pairs?key=hunter2")
    logging.getLogger("httpx").warning("closed")
    assert [event["event"] for event in events(capsys)] == ["closed"]


def test_a_value_named_as_a_secret_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    structlog.get_logger("ours").info("login", sasl_password="hunter2", Authorization="hunter2")
    (event,) = events(capsys)
    assert (event["sasl_password"], event["Authorization"]) == ("****", "****")


def test_the_console_has_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogSettings())
    structlog.get_logger("ours").info("polled", source="ecb")
    (line,) = capsys.readouterr().err.splitlines()
    assert "[info" in line
    assert "polled" in line
    assert "source=ecb" in line


@pytest.mark.parametrize("style", ["console", "json"])
def test_an_exception_is_written_without_the_values_of_variables(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(LogSettings.model_validate({"format": style}))
    key = "hunter2".upper()
    try:
        raise ValueError(f"no such pair for a key of {len(key)} letters")
    except ValueError:
        structlog.get_logger("ours").exception("failed")
    written = capsys.readouterr().err
    assert "no such pair for a key of 7 letters" in written
    assert key not in written


def test_warnings_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(JSON)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    (event,) = events(capsys)
    assert "DeprecationWarning: old" in event["event"]


def test_configuring_again_replaces(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configure_logs(JSON)
    configure_logs(JSON, file=tmp_path / "ratestream.log")
    structlog.get_logger("ours").info("once")
    assert events(capsys) == []
    configure_logs(JSON)
    structlog.get_logger("ours").info("twice")
    assert [event["event"] for event in events(capsys)] == ["twice"]


def test_log_files_stay_within_their_bounds(tmp_path: Path) -> None:
    settings = LogSettings(format="json", file_max_bytes=65_536, file_count=3)
    configure_logs(settings, file=tmp_path / "logs" / "ratestream.log")
    for _ in range(400):
        structlog.get_logger("ours").info("x" * 1000)
    sizes = [path.stat().st_size for path in (tmp_path / "logs").iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= 65_536


def test_the_last_warnings_are_kept_one_line_each(tmp_path: Path) -> None:
    last = LastEvents()
    configure_logs(LogSettings(), file=tmp_path / "ratestream.log", last=last)
    log = structlog.get_logger("ours")
    log.info("not worth showing")
    for number in range(LAST_EVENTS + 1):
        try:
            raise ValueError(f"reason {number}")
        except ValueError:
            log.exception("failed", number=number, text="two\nlines")
    lines = last.lines()
    assert all(f"number={number}" in lines[number - 1] for number in range(1, LAST_EVENTS + 1))
    assert len(lines) == LAST_EVENTS
    assert "Traceback" not in "".join(lines)
    assert "reason 3" in (tmp_path / "ratestream.log").read_text()
