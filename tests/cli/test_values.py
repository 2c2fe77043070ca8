"""set, get and delete against a server: what goes in comes out, byte by byte."""

from __future__ import annotations

import json
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


VALUE_COMMANDS = ["set", "append", "getset", "mset"]


@pytest.mark.parametrize("command", VALUE_COMMANDS)
def test_one_rule_says_what_a_value_is(cli: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_bytes(b"\0file\xff")
    for word, value in (
        ("-", b"std\xffin\n"),
        (f"@{tmp_path / 'file'}", b"\0file\xff"),
        ("-5", b"-5"),
        ("-x", b"-x"),
        ("--looks-like=one", b"--looks-like=one"),
        ("plain", b"plain"),
    ):
        cli("delete", "ruled")
        assert cli(command, "ruled", word, given=b"std\xffin\n").status == 0
        assert cli("get", "ruled").out == value
    for word in ("-", "@file"):
        cli("delete", "ruled")
        assert cli(command, "--literal", "ruled", word, given=b"stdin").status == 0
        assert cli("get", "ruled").out == word.encode()
    refused = cli(command, "ruled", "@absent")
    assert refused.status == 2
    assert "--literal" in refused.err


@pytest.mark.parametrize("command", [*VALUE_COMMANDS, "incr", "decr", "expire"])
def test_a_misspelt_option_is_never_a_key(cli: Cli, command: str) -> None:
    result = cli(command, "--hots", "h")
    assert result.status == 2
    assert "no such option" in result.err.lower()


@pytest.mark.parametrize("command", [*VALUE_COMMANDS, "incr", "decr", "get"])
@pytest.mark.parametrize("option", ["--host", "--timeout"])
def test_an_option_without_its_argument_is_named(cli: Cli, command: str, option: str) -> None:
    result = cli(command, "k", "v", option)
    assert result.status == 2
    assert f"{option}' requires an argument" in result.err


def test_amounts_may_be_negative(cli: Cli) -> None:
    cli("delete", "negative")
    assert cli("incr", "negative", "-5").out == b"-5\n"
    assert cli("decr", "negative", "-7").out == b"2\n"


def test_several_keys_get_values_in_turn_also_from_files_and_stdin(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of a file")
    words = ("turn:1", "-1", "turn:2", "-", "turn:3", f"@{tmp_path / 'file'}")
    assert cli("mset", *words, "--timeout", "20", given=b"read").status == 0
    assert [cli("get", key).out for key in words[::2]] == [b"-1", b"read", b"of a file"]


def test_stdin_is_one_value_only(cli: Cli) -> None:
    refused = cli("mset", "twice-1", "-", "twice-2", "-", given=b"read")
    assert (refused.status, refused.out) == (2, b"")
    assert "stdin can be one value only" in refused.err
    assert cli("exists", "twice-1").status == 3
    assert cli("mset", "--literal", "twice-1", "-", "twice-2", "-").status == 0


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


def test_several_keys_are_deleted_at_once(cli: Cli) -> None:
    def fill() -> None:
        assert cli("mset", *(word for number in range(20) for word in (f"many:{number}", "v"))).status == 0

    keys = [f"many:{number}" for number in range(40)]
    fill()
    assert cli("delete", *keys).out == b"OK removed keys: 20\n"
    assert cli("count", "many:").out == b"0\n"
    fill()
    documents = [json.loads(line) for line in cli("delete", "--json", *keys).out.splitlines()]
    assert [document["key"] for document in documents] == keys
    assert [document["old_value"] for document in documents] == ["v"] * 20 + [None] * 20
    fill()
    assert cli("delete", "--quiet", *keys).out == b"OK\n"
    refused = cli("delete", "--if-version", "1", "a", "b")
    assert (refused.status, "--if-version is about one key" in refused.err) == (2, True)


def test_a_quiet_delete_prints_no_value(cli: Cli) -> None:
    cli("set", "k", "v")
    assert cli("delete", "--quiet", "k").out == b"OK\n"
    assert cli("delete", "--quiet", "--json", "k").json == {"key": "k", "status": "OK"}


def test_a_terminal_gets_the_beginning_of_a_long_old_value_and_a_pipe_all_of_it(cli: Cli) -> None:
    for _ in range(2):
        cli("set", "long", "-", given=b"x" * 100_000)
        status, screen = on_terminal("delete", "long")
        assert status == 0
        assert "these are the first 1000 of its 100000 bytes" in screen
        assert screen.count("x") == 1_000
    cli("set", "long", "-", given=b"x" * 100_000)
    assert cli("delete", "long").out == b"OK old value: " + b"x" * 100_000 + b"\n"


def test_a_control_character_fakes_no_line_on_a_terminal(cli: Cli) -> None:
    key = "fake\nadmin\trich\r\x1b[1A"
    cli("set", key, "a\nb\tc")
    for arguments, cells in (
        (["keys", "fake"], ["fake\\nadmin\\trich\\r\\x1b[1A"]),
        (["scan", "fake"], ["fake\\nadmin\\trich\\r\\x1b[1A", "a\\nb\\tc"]),
        (["mget", key], ["fake\\nadmin\\trich\\r\\x1b[1A", "a\\nb\\tc"]),
        (["delete", key], ["OK old value: a\\nb\\tc"]),
    ):
        assert on_terminal(*arguments) == (0, "\t".join(cells) + "\n")
    cli("set", key, "v")
    assert cli("keys", "fake").out == key.encode() + b"\n"
    cli("delete", key)


def test_keys_can_end_in_nul_for_xargs(cli: Cli) -> None:
    cli("mset", "nul:a\nb", "1", "nul: c", "2")
    assert cli("keys", "-0", "nul:").out == cli("keys", "--null", "nul:").out == b"nul: c\0nul:a\nb\0"
    assert cli("keys", "-0", "--json").status == 2
    cli("delete", "nul:a\nb", "nul: c")
