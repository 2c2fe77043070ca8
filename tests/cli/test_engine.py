"""The engine from the shell: conditions, expiry, counters, scans and batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from .conftest import Cli, Running
from .test_every_command import LAUNCH


@pytest.fixture(autouse=True)
def _server(server: Running) -> None:
    """All of these need one."""


def documents(out: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_condition_that_does_not_hold_exits_4_and_changes_nothing(cli: Cli) -> None:
    assert cli("set", "leader", "me", "--if-absent").out == b"OK\n"
    refused = cli("set", "leader", "you", "--if-absent")
    assert (refused.status, refused.out) == (4, b"")
    assert "has version" in refused.err
    version = str(cli("entry", "--json", "leader").json["version"])
    assert cli("set", "leader", "you", "--if-version", version).status == 0
    assert cli("delete", "leader", "--if-version", version).status == 4
    assert cli("set", "--json", "leader", "x", "--if-version", version).error["code"] == "CONFLICT"
    assert cli("get", "leader").out == b"you"
    assert cli("set", "a", "b", "--if-absent", "--if-version", "3").status == 2


def test_an_entry_is_shown_with_its_version_and_times(cli: Cli) -> None:
    cli("set", "k", "v", "--ttl", "1h")
    shown = cli("entry", "k").out.decode().splitlines()
    assert [line.split()[0] for line in shown] == ["version", "timestamp", "expires", "value"]
    found = cli("entry", "--json", "k").json
    assert found["value"] == "v"
    assert str(found["expires_at"]) > str(found["timestamp"])
    assert cli("entry", "none").status == 3


def test_keys_expire(cli: Cli) -> None:
    cli("set", "k", "v")
    assert cli("ttl", "k").out == b"never\n"
    assert cli("expire", "k", "2h").out == b"OK\n"
    assert 7_000 < float(cli("ttl", "k").out) <= 7_200
    assert cli("persist", "k").out == b"OK\n"
    assert cli("ttl", "--json", "k").json == {"key": "k", "ttl_seconds": None}
    for arguments in (("expire", "none", "1s"), ("ttl", "none"), ("persist", "none")):
        assert cli(*arguments).status == 3
    for time in ("", "soon", "-1s", "1y", "0s"):
        assert cli("expire", "k", "--", time).status == 2


def test_counters_and_other_updates(cli: Cli) -> None:
    assert cli("incr", "n").out == b"1\n"
    assert cli("incr", "n", "41").out == b"42\n"
    assert cli("decr", "n", "--json").json == {"key": "n", "result": 41}
    assert cli("append", "n", "0").out == b"3\n"
    assert cli("getset", "n", "x").out == b"410"
    assert cli("incr", "n").status == 2
    assert cli("getdel", "n").out == b"x"
    assert cli("getdel", "n").status == 3
    assert (cli("exists", "n").out, cli("exists", "n").status) == (b"0\n", 3)


def test_scans_go_by_prefix_bounds_and_limit(cli: Cli) -> None:
    assert cli("mset", "user:1", "a", "user:2", "b", "user:3", "c", "zebra", "z").out == b"OK\n"
    assert cli("scan", "user:").out == b"user:1\ta\nuser:2\tb\nuser:3\tc\n"
    assert cli("scan", "--start", "user:2", "--end", "z").out == b"user:2\tb\nuser:3\tc\n"
    assert cli("keys", "--after", "user:1", "--limit", "2").out == b"user:2\nuser:3\n"
    assert cli("count", "--start", "user:1", "--end", "user:3").out == b"2\n"
    assert cli("count", "user:", "--json").json == {"count": 3}
    assert documents(cli("scan", "--json", "z").out) == [{"key": "zebra", "value": "z"}]
    assert cli("mget", "user:1", "none", "zebra").out == b"user:1\ta\nzebra\tz\n"
    assert documents(cli("mget", "--json", "none").out) == [{"key": "none", "value": None}]
    assert cli("mset", "odd").status == 2


def test_a_batch_of_steps_is_all_or_nothing(cli: Cli) -> None:
    steps = [
        {"op": "set", "key": "a", "value": {"base64": "/w=="}, "ttl": "1h", "if_absent": True},
        {"op": "check", "key": "b", "version": 0},
        {"op": "delete", "key": "c"},
    ]
    given = "\n\n".join(map(json.dumps, steps)).encode()
    assert cli("batch", given=given).out == b"OK\n"
    assert cli("get", "a").out == b"\xff"
    again = cli("batch", given=given)
    assert (again.status, again.out) == (4, b"")


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"op": "set", "key": "a"}',
        '{"op": "set", "key": 5, "value": ""}',
        '{"op": "set", "key": "a", "value": {"base64": "!"}}',
        '{"op": "set", "key": "a", "value": "", "if_version": true}',
        '{"op": "set", "key": "a", "value": "", "if_version": null}',
        '{"op": "delete", "key": "a", "if_version": null}',
        '{"op": "set", "key": "a", "value": "", "when": 1}',
        '{"op": "set", "key": "a", "value": "", "if_absent": "true"}',
        '{"op": "set", "key": "a", "value": "", "ttl": "soon"}',
        '{"op": "set", "key": "a", "value": "", "ttl": 0}',
        '{"op": "check", "key": "a", "version": null}',
        '{"op": "get", "key": "a"}',
        '{"op": "set", "key": "a", "value": "1", "value": "2"}',
        '{"op": "set", "key": "a", "value": {"base64": "", "base64": ""}}',
        '{"op": "set", "key": "a", "value": "\\ud800"}',
        '{"op": "set", "key": "a", "value": "\\udcff"}',
        '{"op": "set", "key": "a", "value": "", "ttl": NaN}',
        '{"op": "set", "key": "a", "value": "", "ttl": 1e999}',
        '{"op": "check", "key": "a", "version": 9223372036854775808}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_step_is_named_and_nothing_is_done(cli: Cli, line: str) -> None:
    result = cli("batch", given=b'{"op": "set", "key": "first", "value": ""}\n' + line.encode())
    assert (result.status, result.out) == (2, b"")
    assert "line 2 of stdin" in result.err
    assert cli("exists", "first").status == 3


@pytest.mark.parametrize("variables", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_batch_is_utf8_whatever_the_locale(cli: Cli, variables: dict[str, str]) -> None:
    step = '\ufeff{"op": "set", "key": "ü", "value": "\\u20ac ü"}\n'.encode()
    ended = subprocess.run(
        [sys.executable, "-c", LAUNCH, "batch"],
        input=step,
        capture_output=True,
        env={**os.environ, **variables},
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"OK\n", b"")
    assert cli("get", "ü").out == "€ ü".encode()


@pytest.mark.parametrize(
    "given",
    [b'{"op": "delete", "key": "a"}\xff\n', b'{"op": "delete", "key": "a\xfc"}\n', '{"op": 1}'.encode("utf-16")],
)
def test_a_batch_that_is_no_utf8_is_refused(cli: Cli, given: bytes) -> None:
    result = cli("batch", given=given)
    assert (result.status, result.out) == (2, b"")
    assert "line 1 of stdin is no JSON object in UTF-8" in result.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"\n" * 100_001, "more than 100000 lines"),
        (b" " * (1 << 20) * 129, "longer than 134217728 bytes"),
        (b'{"op": "delete", "key": "a"}\n' * 2_000, "at most 1000 steps"),
    ],
)
def test_an_endless_batch_ends(cli: Cli, given: bytes, words: str) -> None:
    result = cli("batch", given=given)
    assert (result.status, result.out) == (2, b"")
    assert words in result.err


def test_a_conflict_tells_the_version_as_json(cli: Cli) -> None:
    cli("set", "versioned", "v")
    version = cli("entry", "versioned", "--json").json["version"]
    refused = cli("set", "versioned", "w", "--if-absent", "--json")
    assert refused.error["version"] == version
    assert cli("set", "versioned", "w", "--if-version", str(refused.error["version"])).status == 0


@pytest.mark.parametrize("command", ["keys", "scan", "count"])
def test_a_pattern_that_finds_nothing_is_told_to_be_a_prefix(cli: Cli, command: str) -> None:
    cli("set", "wild:1", "v")
    for pattern in ("wild:*", "wild:?", "wild:[0-9]"):
        result = cli(command, pattern)
        assert result.status == 0
        assert result.err == (
            f"no key begins with {pattern}: a prefix is taken as it stands, without wildcards; "
            "wild: finds all that begin so\n"
        )
        assert cli(command, "--json", pattern).err == ""
    assert cli(command, "wild:").err == cli(command, "none:").err == ""


def test_a_batch_of_too_many_steps_is_refused_in_clear_words(cli: Cli) -> None:
    result = cli("batch", given=b'{"op": "delete", "key": "a"}\n' * 1_001)
    assert (result.status, result.out) == (2, b"")
    assert "at most 1000 steps" in result.err


def test_a_long_time_to_live_is_printed_to_the_second(cli: Cli) -> None:
    cli("set", "k", "v", "--ttl", "30d")
    left = cli("ttl", "k").out
    assert b"e" not in left
    assert 2_591_000 < float(left) <= 2_592_000


def test_a_table_that_is_not_there_exits_3(cli: Cli) -> None:
    assert cli("get", "k", "--table", "nowhere").status == 3
    assert cli("set", "k", "v", "--namespace", "nowhere").status == 3
    assert cli("get", "k", "--table", "../etc").status == 2
    assert cli("set", "k", "v", "--table", "default", "--namespace", "default").out == b"OK\n"
