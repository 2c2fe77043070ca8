from __future__ import annotations

import pytest

from kvsd.cli.output import as_text, for_json, printable

from .terminal import on_terminal


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", ""),
        ("tab\tline\nü 漢字\u3000🙂".encode(), "tab\tline\nü 漢字\u3000🙂"),
        ("👩\u200d💻".encode(), "👩\u200d💻"),
        (b"\x1b[31m\x07\r\x7f\0", "\\x1b[31m\\x07\\r\\x7f\\x00"),
        ("\u202ecod\u2066\ufeff".encode(), "\\u202ecod\\u2066\\ufeff"),
        ("\x9b1m\u2028".encode(), "\\x9b1m\\u2028"),
        (b"\x80\xffok", "\\x80\\xffok"),
    ],
)
def test_a_stored_value_cannot_steer_a_terminal(data: bytes, shown: str) -> None:
    assert printable(as_text(data)) == shown


@pytest.mark.parametrize(("data", "shown"), [(b"", ""), ("ü".encode(), "ü"), (b"\xff", {"base64": "/w=="})])
def test_json_holds_text_or_base64(data: bytes, shown: object) -> None:
    assert for_json(data) == shown


def test_an_error_on_a_terminal_is_red_and_wrapped_and_keeps_commands_whole() -> None:
    status, screen = on_terminal("get", "k")
    assert status == 5
    assert screen.startswith("\x1b[1;31merror:\x1b[0m no user name")
    plain = screen.replace("\x1b[1;31m", "").replace("\x1b[0m", "")
    assert len(plain.splitlines()) > 2
    assert max(map(len, plain.splitlines())) <= 80
    assert "`kvsd init`" in plain


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_an_error_is_plain_where_colour_is_not_wanted(variables: dict[str, str]) -> None:
    _, screen = on_terminal("get", "k", **variables)
    assert screen.startswith("error: no user name")
    assert "\x1b" not in screen


def test_an_error_cannot_steer_the_terminal_either() -> None:
    _, screen = on_terminal("\x1b]0;owned\x07", NO_COLOR="1")
    assert "\x1b" not in screen
    assert "owned" in screen
