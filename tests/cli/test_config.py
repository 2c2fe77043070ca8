from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.config import SETTINGS, USERS

from .conftest import Cli
from .terminal import on_terminal
from .test_every_command import LAUNCH

CONFIG = """\
server:
  listen_port: 7000
kvsd:
  users:
    - {username: me, password: hunter2}
client:
  password: hunter2
"""


@pytest.fixture
def config(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG)
    path.chmod(0o600)
    return path


def test_show_tells_every_setting_its_value_and_its_origin(
    cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVSD_TIMEOUT", "5")
    rows = {
        name: (value, origin)
        for name, value, origin in (line.split("\t") for line in cli("config", "show").out.decode().splitlines())
    }
    assert set(rows) == {*SETTINGS, USERS}
    assert rows["server.listen_port"] == ("7000", "config.yaml:2")
    assert rows["client.timeout"] == ("5.0", "environment KVSD_TIMEOUT")
    assert rows["server.disable_tls"] == ("false", "default")
    assert rows["kvsd.users"] == ("me", "config.yaml:4")


@pytest.mark.parametrize("arguments", [["config", "show"], ["config", "show", "--json"]])
def test_show_hides_secrets(cli: Cli, config: Path, arguments: list[str]) -> None:
    out = cli(*arguments).out
    assert b"(hidden)" in out
    assert b"hunter2" not in out


def test_show_as_json_maps_each_setting(cli: Cli, config: Path) -> None:
    document = cli("config", "show", "--json").json
    assert set(document) == {*SETTINGS, USERS}
    assert document["server.listen_port"] == {"value": "7000", "origin": "config.yaml:2"}


def test_show_is_a_table_of_80_columns_on_a_terminal(config: Path) -> None:
    status, screen = on_terminal("config", "show", NO_COLOR="1", KVSD_DIR="/" + "[bold]long" * 12)
    assert status == 0
    lines = screen.splitlines()
    assert lines[0].split() == ["setting", "value", "from"]
    assert max(map(len, lines)) <= 80
    assert any(line.split() == ["listen_port", "7000", "config.yaml:2"] for line in lines)
    assert "[bold]" in screen.replace(" ", "").replace("\n", "")
    assert "\x1b" not in screen


@pytest.mark.parametrize("variables", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_a_path_in_the_file_is_utf8_whatever_the_locale(config: Path, variables: dict[str, str]) -> None:
    config.write_bytes("kvsd: {root_dir: dätä}\n".encode())
    shown = subprocess.run(
        [sys.executable, "-c", LAUNCH, "config", "show"],
        capture_output=True,
        env={**os.environ, **variables},
        timeout=20,
        check=True,
    )
    assert f"kvsd.root_dir\t{config.parent}/dätä\tconfig.yaml:1\n".encode() in shown.stdout


def test_check_says_ok_and_warns_of_what_sets_nothing(cli: Cli, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_HSOT", "x")
    result = cli("config", "check")
    assert (result.status, result.out) == (0, f"OK {config}\n".encode())
    assert result.err.startswith("warning: environment KVSD_HSOT: sets nothing")


def test_check_names_the_line_of_a_mistake(cli: Cli, config: Path) -> None:
    config.write_text("server:\n  listen_prot: 1\n")
    result = cli("config", "check", "--json")
    assert (result.status, result.out, result.error["code"]) == (2, b"", "CONFIG")
    assert result.error["message"].startswith("config.yaml:2: server.listen_prot is unknown; did you mean")


def test_check_without_a_config_names_init(cli: Cli) -> None:
    result = cli("config", "check")
    assert result.status == 2
    assert "`kvsd init`" in result.err
