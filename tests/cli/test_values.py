"""set, get and delete against a server: what goes in comes out, byte by byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvsd.cli import values

from .conftest import Cli, Running
from .terminal import on_terminal

NO_UTF8 = os.fsdecode(b"\xff\xfe")


@pytest.fixture(autouse=True)
def _server(server: Running) -> None:
    """All of these need one."""


def test_the_story_of_the_readme(cli: Cli) -> None:
    assert cli("set", "hello", "rust").out == b"OK\n"
    assert cli("get", "hello").out == b"rust"
    assert cli("set", "hello", "rust!!!").out == b"OK\n"
    assert cli("delete", "hello").out == b"OK old value: rust!!!\n"
    assert cli("delete", "hello").out == b"OK\n"


def test_a_missing_key_leaves_stdout_empty_and_exits_3(cli: Cli) -> None:
    result = cli("get", "absent")
    assert (result.status, result.out, result.err) == (3, b"", "error: there is no key absent\n")


def test_an_empty_value_is_not_a_missing_one(cli: Cli) -> None:
    cli("set", "empty", "")
    result = cli("get", "empty")
    assert (result.status, result.out) == (0, b"")
    assert cli("delete", "empty").out == b"OK old value: \n"


def test_stdin_is_stored_byte_by_byte(cli: Cli) -> None:
    data = bytes(range(256)) + b"\r\n\n"
    assert cli("set", "raw", "-", given=data).status == 0
    assert cli("get", "raw").out == data


def test_a_file_is_stored_byte_by_byte(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0\xff\n")
    assert cli("set", "file", f"@{tmp_path / 'file'}").status == 0
    assert cli("get", "file").out == b"\0\xff\n"


@pytest.mark.parametrize("value", ["-", "@file"])
def test_literal_stores_the_value_as_it_stands(cli: Cli, value: str) -> None:
    assert cli("set", "--literal", "literal", value, given=b"stdin").status == 0
    assert cli("get", "literal").out == value.encode()


def test_a_file_that_is_not_there_is_a_usage_error_that_names_literal(cli: Cli) -> None:
    result = cli("set", "k", "@absent")
    assert result.status == 2
    assert "'absent'" in result.err
    assert "--literal" in result.err


def test_endless_input_is_cut_off(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "LARGEST_VALUE_BYTES", 10)
    assert cli("set", "k", "-", given=b"0123456789").status == 0
    result = cli("set", "k", "-", given=b"0123456789x")
    assert result.status == 2
    assert "stdin is longer than 10 bytes" in result.err


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["k", "-5"], b"-5"),
        (["key", "-5"], b"-5"),
        (["k", "-hello"], b"-hello"),
        (["k", "--json-looking"], b"--json-looking"),
        (["k", "--unknown=1", "--timeout", "20"], b"--unknown=1"),
        (["--timeout=20", "k", "-5"], b"-5"),
        (["--timeout", "20", "k", "-5", "--literal"], b"-5"),
        (["k", "--", "--json"], b"--json"),
        (["--", "k", "-h"], b"-h"),
        (["k", "--", "-"], b""),
    ],
)
def test_a_value_that_begins_with_a_dash_is_a_value(cli: Cli, arguments: list[str], value: bytes) -> None:
    result = cli("set", *arguments)
    assert (result.status, result.err) == (0, "")
    assert cli("get", "key" if "key" in arguments else "k").out == value


@pytest.mark.parametrize("arguments", [["--hots", "h", "k", "v"], ["k", "v", "--hots", "h"], ["-k", "v"]])
def test_a_misspelt_option_is_not_stored(cli: Cli, arguments: list[str]) -> None:
    result = cli("set", *arguments)
    assert result.status == 2
    assert "no such option" in result.err.lower()


def test_a_known_option_stays_one_behind_the_value(cli: Cli) -> None:
    assert cli("set", "k", "-5", "--json").json == {"key": "k", "status": "OK"}


def test_arguments_that_are_no_utf8_pass_through(cli: Cli) -> None:
    assert cli("set", NO_UTF8, NO_UTF8).status == 0
    assert cli("get", NO_UTF8).out == b"\xff\xfe"
    assert cli("delete", NO_UTF8).out == b"OK old value: \xff\xfe\n"
    assert cli("get", NO_UTF8).status == 3


def test_json_tells_text_from_bytes(cli: Cli) -> None:
    cli("set", "é", "ü")
    assert cli("get", "--json", "é").json == {"key": "é", "value": "ü"}
    cli("set", NO_UTF8, NO_UTF8)
    binary = {"base64": "//4="}
    assert cli("get", "--json", NO_UTF8).json == {"key": binary, "value": binary}
    assert cli("delete", "--json", NO_UTF8).json == {"key": binary, "status": "OK", "old_value": binary}
    assert cli("delete", "--json", NO_UTF8).json == {"key": binary, "status": "OK", "old_value": None}


def test_json_of_a_missing_key_leaves_stdout_empty(cli: Cli) -> None:
    result = cli("get", "--json", "absent")
    assert (result.status, result.out, result.error["code"]) == (3, b"", "NOT_FOUND")


def test_a_key_that_is_too_long_is_a_usage_error(cli: Cli) -> None:
    result = cli("set", "k" * 1025, "v", "--json")
    assert (result.status, result.error["code"]) == (2, "INVALID_KEY")


def test_a_terminal_gets_a_newline_and_nothing_that_steers_it(cli: Cli) -> None:
    cli("set", "k", "-", given="\x1b]0;owned\x07 é\u202e\n\t\x9b".encode() + b"\xff")
    assert on_terminal("get", "k") == (0, "\\x1b]0;owned\\x07 é\\u202e\n\t\\x9b\\xff\n")
    status, screen = on_terminal("delete", "k")
    assert (status, screen[:20]) == (0, "OK old value: \\x1b]0")


def test_a_person_is_told_how_to_end_the_input() -> None:
    status, screen = on_terminal("set", "typed", "-", typed=[(b"ends it", b"by hand\n\x04")])
    assert status == 0
    assert screen.endswith("OK\n")
    assert on_terminal("get", "typed") == (0, "by hand\n\n")


def test_a_key_of_several_lines_makes_no_error_of_several_lines(cli: Cli) -> None:
    assert cli("get", "absent\nerror: all is lost").err == "error: there is no key absent\\nerror: all is lost\n"
