"""The server's log: what is written where, and that a log which nobody reads stops nothing."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from kvsd.config import LogFormat, LogLevel
from kvsd.server.reporting import make_reporter

EVENTS = ["debug", "info", "warning", "error", "critical"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("level", EVENTS)
def test_what_is_less_severe_than_the_level_is_left_out(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter(LogLevel(level), LogFormat.JSON)
    for event in EVENTS:
        getattr(reporter, event)(event)
    captured = capsys.readouterr()
    assert [json.loads(line)["level"] for line in captured.err.splitlines()] == EVENTS[EVENTS.index(level) :]
    assert captured.out == ""


def test_a_file_gets_json_lines_with_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter(LogLevel.INFO, LogFormat.AUTO).warning("fünf", path="a\nb", count=5)
    [line] = capsys.readouterr().err.splitlines()
    logged = json.loads(line)
    assert logged.pop("timestamp").endswith("Z")
    assert logged == {"event": "fünf", "path": "a\nb", "count": 5, "level": "warning"}


def test_a_terminal_gets_lines_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    make_reporter(LogLevel.INFO, LogFormat.AUTO).info("draining", signal="SIGTERM")
    assert "draining" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_no_colour_codes_reach_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter(LogLevel.INFO, LogFormat.CONSOLE).info("draining", signal="SIGTERM")
    assert "\x1b" not in capsys.readouterr().err


def test_an_exception_is_logged_whole_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_reporter(LogLevel.INFO, LogFormat.JSON).critical("fault", exc_info=ValueError("seven"))
    [line] = capsys.readouterr().err.splitlines()
    assert "ValueError: seven" in json.loads(line)["exception"]


def test_a_log_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    broken = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stderr", broken)
    make_reporter(LogLevel.INFO, LogFormat.JSON).error("nobody hears this")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        broken.close()


def test_a_process_without_stderr_can_log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    make_reporter(LogLevel.INFO, LogFormat.AUTO).error("nobody hears this")
    assert capsys.readouterr().out == ""


def test_a_traceback_on_the_console_shows_no_variables(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = make_reporter(LogLevel.INFO, LogFormat.CONSOLE)
    password = "TOP" + "SECRET"
    try:
        len(password) / 0
    except ZeroDivisionError as error:
        reporter.critical("internal fault", exc_info=error)
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "TOPSECRET" not in shown
