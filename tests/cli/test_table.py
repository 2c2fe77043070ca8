"""Tables and namespaces from the shell."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .conftest import Cli, Running
from .terminal import on_terminal


@pytest.fixture(autouse=True)
def _server(server: Running) -> None:
    """All of these need one."""


def test_the_life_of_a_table(cli: Cli) -> None:
    assert cli("namespace", "create", "shop").out == b"OK\n"
    assert cli("table", "create", "shop/stock", "fsync=interval", "cache_bytes=1MiB").out == b"OK\n"
    assert cli("set", "apples", "3", "--namespace", "shop", "--table", "stock").out == b"OK\n"
    assert cli("get", "apples").status == 3
    assert cli("get", "apples", "--namespace", "shop", "--table", "stock").out == b"3"
    assert cli("get", "apples", "--table", "shop/stock").out == b"3"
    assert b"shop/stock\twritable\tfsync=interval cache_bytes=1048576\n" in cli("table", "list", "shop").out
    info = cli("table", "info", "shop/stock", "--json").json
    assert info["status"]["keys"] == 1  # type: ignore[index]
    changed = cli("table", "settings", "shop/stock", "fsync=default", "--json").json
    assert changed["settings"] == {"cache_bytes": 1048576}
    assert changed["effective"]["fsync"] == "always"  # type: ignore[index]
    assert cli("table", "reopen", "shop/stock").out == b"OK\n"
    assert cli("count", "--namespace", "shop", "--table", "stock").out == b"1\n"
    assert cli("namespace", "drop", "shop").status == 4
    refused = cli("table", "drop", "shop/stock")
    assert (refused.status, "--yes" in refused.err) == (2, True)
    assert cli("table", "drop", "shop/stock", "--yes").out == b"OK\n"
    assert cli("get", "apples", "--namespace", "shop", "--table", "stock").status == 3
    [dropped] = [json.loads(line) for line in cli("table", "list", "--dropped", "--json").out.splitlines()]
    assert dropped["table"] == "shop/stock"
    assert cli("namespace", "drop", "shop").out == b"OK\n"
    assert cli("namespace", "list").out == b"default\n"


def test_a_table_is_made_where_the_environment_names_it_already(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_TABLE", "later")
    assert cli("get", "k").status == 3
    assert cli("table", "create", "later").out == b"OK\n"
    assert cli("set", "k", "v").out == b"OK\n"
    assert cli("get", "k").out == b"v"
    assert cli("table", "drop", "later", "--yes").status == 0


def test_info_is_shown_a_line_for_each_figure(cli: Cli) -> None:
    shown = cli("table", "info", "default").out.decode()
    assert "default/default" in shown
    assert "\nkeys " in shown
    assert "\nfsync                       always\n" in shown


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("table", "create", "../etc"), 2),
        (("table", "create", "nowhere/t"), 3),
        (("table", "create", "default"), 4),
        (("table", "create", "t", "fsync=sometimes"), 2),
        (("table", "create", "t", "colour=red"), 2),
        (("table", "create", "t", "fsync"), 2),
        (("table", "info", "none"), 3),
        (("table", "drop", "default", "--yes"), 4),
        (("table", "settings", "none", "fsync=never"), 3),
        (("table", "list", "none"), 3),
        (("namespace", "create", "A"), 2),
        (("namespace", "drop", "none"), 3),
        (("table", "create", "t", "fsync=always", "fsync=never"), 2),
        (("table", "reopen", "none"), 3),
        (("compact", "none"), 3),
        (("compact", "a/b/c"), 2),
        (("compact", "--pause", "--resume"), 2),
    ],
)
def test_what_cannot_be_done_is_told(cli: Cli, arguments: tuple[str, ...], status: int) -> None:
    result = cli(*arguments)
    assert (result.status, result.out) == (status, b"")
    assert result.err.startswith("error: ")


def test_a_terminal_gets_a_table_and_is_asked_before_a_drop(cli: Cli) -> None:
    assert cli("table", "create", "precious", "fsync=never").status == 0
    status, screen = on_terminal("table", "list", NO_COLOR="1")
    assert status == 0
    lines = screen.splitlines()
    assert lines[0].split() == ["table", "state", "settings"]
    assert ["default/precious", "closed", "fsync=never"] in [line.split() for line in lines]
    for answer in (b"n\n", b"\n", b"\x04"):
        status, screen = on_terminal("table", "drop", "precious", typed=[(b"[y/N] ", answer)])
        assert status == 2
        assert "nothing was dropped" in screen
    status, screen = on_terminal("table", "drop", "precious", typed=[(b"[y/N] ", b"y\n")])
    assert (status, "OK" in screen) == (0, True)
    assert cli("table", "info", "precious").status == 3


def test_settings_tell_which_are_the_servers(cli: Cli) -> None:
    assert cli("table", "settings", "default", "fsync_interval_ms=7").status == 0
    shown = cli("table", "settings", "default").out.decode().splitlines()
    assert "fsync_interval_ms           7" in shown
    assert "fsync                       always  (of the server)" in shown
    assert "compaction                  true  (of the server)" in shown
    assert cli("table", "settings", "default", "fsync_interval_ms=default", "--json").json["settings"] == {}


def make_garbage(cli: Cli) -> None:
    for number in range(8):
        assert cli("set", "k", str(number) * 100_000).status == 0


def test_a_compaction_gives_room_back_and_tells_how_far_it_is(cli: Cli) -> None:
    make_garbage(cli)
    done = cli("compact", "--json").json
    assert (done["state"], done["error"]) == ("idle", "")
    assert done["segments_done"] == done["segments_total"]
    assert done["bytes_done"] == done["bytes_total"]
    assert isinstance(done["reclaimed_bytes"], int)
    assert done["reclaimed_bytes"] >= 700_000
    assert cli("get", "k").out == b"7" * 100_000
    assert cli("compact", "--status", "--json").json == done
    lines = cli("compact", "default/default").out.decode().splitlines()
    assert [line.split()[0] for line in lines] == [name for name in done if name != "error"]


def test_a_compaction_is_held_slowed_and_let_go_on(cli: Cli) -> None:
    make_garbage(cli)
    assert cli("table", "settings", "default", "compaction_bytes_per_second=1MiB").status == 0
    try:
        assert cli("compact", "--pause", "--json").json["state"] == "paused"
        status, screen = on_terminal("compact", NO_COLOR="1")
        assert status == 0
        assert "compacting" in screen
        assert int(screen.split("\nreclaimed_bytes")[1].split()[0]) >= 700_000
        assert cli("compact", "--resume", "--json").json["state"] == "idle"
        make_garbage(cli)
        # One that is paused by somebody while another waits for it is not done.
        assert cli("table", "settings", "default", "compaction=off", "compaction_bytes_per_second=1").status == 0
        command = [sys.executable, "-m", "kvsd", "compact"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            while cli("compact", "--status", "--json").json["state"] != "running":
                pass
            assert cli("compact", "--pause").status == 0
            _, told = waiting.communicate(timeout=20)
        assert waiting.returncode == 1
        assert "the compaction is paused" in told
        assert cli("table", "reopen", "default").status == 0
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as waiting:
            while cli("compact", "--status", "--json").json["segments_total"] == 0:
                pass
            assert cli("table", "reopen", "default").status == 0
            _, told = waiting.communicate(timeout=20)
        assert waiting.returncode == 1
        assert "the table was closed meanwhile" in told
    finally:
        assert cli("table", "settings", "default", "compaction=default").status == 0
        assert cli("table", "settings", "default", "compaction_bytes_per_second=default").status == 0


def test_a_compaction_that_fails_is_an_error(cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("table", "create", "broken").status == 0
    monkeypatch.setenv("KVSD_TABLE", "broken")
    make_garbage(cli)
    [log] = server.folder.glob("*/namespaces/default/broken/*.seg")
    with log.open("r+b") as file:
        file.seek(300_000)
        file.write(b"damage")
    failed = cli("compact", "--json")
    assert failed.status == 1
    assert log.name in str(failed.error["message"])
    assert cli("get", "k").out == b"7" * 100_000
    assert cli("table", "drop", "broken", "--yes").status == 0
