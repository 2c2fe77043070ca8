"""Who is refused leaves one line: user, address and reason, never the password, and not too many of them."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from kvsd.config import LogFormat, LogLevel
from kvsd.protocol.messages import Authenticate, encode
from kvsd.server.reporting import LINES_A_MINUTE, LimitedReporter, make_reporter, shown

from ..conftest import Connect, Start
from .peers import LOGIN, Reports, until

LOOPS = ["asyncio"]

PASSWORD = "wrong" + "secret"

REFUSALS: dict[str, tuple[bytes, str, dict[str, object]]] = {
    "a wrong password": (
        encode(Authenticate("kvsduser", PASSWORD)),
        "login refused",
        {"user": "kvsduser", "error": "wrong username or password"},
    ),
    "an unknown user": (
        encode(Authenticate("mallory", PASSWORD)),
        "login refused",
        {"user": "mallory", "error": "wrong username or password"},
    ),
    "a user who writes into the log": (
        encode(Authenticate("a\x1b[2J\u2028\x00b" + "c" * 900, PASSWORD)),
        "login refused",
        {"user": "a\\x1b[2J\\u2028\\x00b" + "c" * 192 + "…", "error": "wrong username or password"},
    ),
    "no login": (b"*3\r\n#\x01||", "login refused", {"user": "", "error": "the first message must be Authenticate"}),
    "nonsense instead of a login": (b"GET / HTTP/1.1\r\n\r\n", "login refused", {"user": ""}),
    "nonsense behind a login": (
        LOGIN + b"GET / HTTP/1.1\r\n\r\n",
        "connection ended for an error",
        {"user": "kvsduser"},
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_leaves_one_line_with_user_address_and_reason(
    start: Start, connect: Connect, reports: Reports, refusal: str
) -> None:
    data, event, fields = REFUSALS[refusal]
    server = await start(tls=False)
    peer = await connect(server, login=False)
    await peer.say(data)
    await peer.rest()
    [line] = [line for line in reports.lines if line[0] == "info" and "peer" in line[2]]
    assert line[1] == event
    assert {name: line[2][name] for name in fields} == fields
    assert line[2]["peer"] == "{}:{}".format(*peer.writer.get_extra_info("sockname"))
    assert line[2]["error"]
    assert PASSWORD not in repr(reports.lines)


async def test_a_login_that_comes_too_late_leaves_a_line(start: Start, connect: Connect, reports: Reports) -> None:
    server = await start(tls=False, authenticate_timeout_milliseconds=10)
    peer = await connect(server, login=False)
    await peer.rest()
    assert reports.take("login refused")["error"] == "no Authenticate within 10 ms"


async def test_who_guesses_passwords_does_not_fill_the_log(start: Start, connect: Connect, reports: Reports) -> None:
    server = await start(tls=False)
    for _ in range(LINES_A_MINUTE + 3):
        peer = await connect(server, login=False)
        await peer.say(encode(Authenticate("mallory", PASSWORD)))
        await peer.rest()
    assert reports.count("login refused") == LINES_A_MINUTE
    await server.stop()
    assert reports.take("lines were left out") == {"about": "login refused", "count": 3}


# The limit


@pytest.mark.parametrize("level", ["info", "warning", "error", "critical"])
async def test_each_kind_has_lines_of_its_own_and_a_minute_begins_anew(level: str) -> None:
    reports = Reports()
    limited = LimitedReporter(reports)
    for _ in range(2):
        for event in ("one", "two"):
            for _ in range(LINES_A_MINUTE + 2):
                getattr(limited, level)(event, table="a")
            getattr(limited, level)(event, table="b")
        assert reports.count("one") == reports.count("two") == LINES_A_MINUTE + 1
        limited.end_minute()
        assert [reports.take("lines were left out") for _ in range(2)] == [
            {"about": event, "count": 2, "table": "a"} for event in ("one", "two")
        ]
        reports.lines.clear()
    limited.end_minute()
    assert reports.lines == []


async def test_debugging_is_not_limited() -> None:
    reports = Reports()
    limited = LimitedReporter(reports)
    for _ in range(LINES_A_MINUTE + 2):
        limited.debug("one")
    assert reports.count("one") == LINES_A_MINUTE + 2


async def test_the_minute_ends_by_itself_whichever_thread_began_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, reports = asyncio.get_running_loop(), Reports()
    due: list[object] = []
    monkeypatch.setattr(loop, "call_later", lambda seconds, callback: due.append((seconds, callback)))
    limited = LimitedReporter(reports)
    await loop.run_in_executor(None, limited.warning, "a hint could not be written")
    monkeypatch.undo()
    await until(lambda: due, "no timer")
    assert due == [(60, limited.end_minute)]


@pytest.mark.parametrize("text", ["fünf", "a\r\nb", "\x1b]0;title\x07", "\ud800", "x" * 10_000, "\u202e"])
def test_what_a_peer_has_sent_stays_on_its_line(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(shown(text)) <= 210
    assert shown(text).isprintable()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    for log_format in (LogFormat.JSON, LogFormat.CONSOLE):
        make_reporter(LogLevel.INFO, log_format).info("login refused", user=shown(text))
    as_json, console = capsys.readouterr().err.splitlines()
    assert json.loads(as_json)["user"] == shown(text)
    assert "login refused" in console
