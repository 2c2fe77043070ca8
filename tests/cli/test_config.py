from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvsd.config import SETTINGS, USERS
from kvsd.server import certificates

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


def test_check_says_ok_and_warns_of_what_sets_nothing(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder / "config.yaml"
    assert cli("init").status == 0
    monkeypatch.setenv("KVSD_HSOT", "x")
    result = cli("config", "check")
    assert (result.status, result.out) == (0, f"OK {config}\n".encode())
    assert result.err.startswith("warning: environment KVSD_HSOT: sets nothing")


def test_check_names_the_line_of_a_mistake(cli: Cli, config: Path) -> None:
    config.write_text("server:\n  listen_prot: 1\n")
    result = cli("config", "check", "--json")
    assert (result.status, result.out, result.error["code"]) == (2, b"", "CONFIG")
    assert result.error["message"].startswith("config.yaml:2: server.listen_prot is unknown; did you mean")


def test_check_refuses_what_serve_refuses(cli: Cli, folder: Path) -> None:
    assert cli("init").status == 0
    text = (folder / "config.yaml").read_text()
    for change in (
        ("listen_host: 127.0.0.1", "listen_host: no-such-host.invalid"),
        ("tls_auto: true", "tls_auto: false\n  tls_key_passphrase: x"),
        ("certs/server.pem", "certs/none.pem"),
    ):
        (folder / "config.yaml").write_text(text.replace(*change))
        checked, served = cli("config", "check"), cli("serve")
        assert (checked.status, checked.out) == (served.status, served.out) == (2, b"")
        assert checked.err.splitlines()[-1] == served.err.splitlines()[-1]


def test_check_warns_of_what_a_start_warns_of(cli: Cli, folder: Path) -> None:
    assert cli("init").status == 0
    for name in ("server.pem", "server.key"):
        (folder / "certs" / name).unlink()
    old = datetime.now(UTC) - timedelta(days=826)
    certificates.create(folder / "certs/server.pem", folder / "certs/server.key", now=old)
    result = cli("config", "check")
    assert (result.status, result.out) == (0, f"OK {folder / 'config.yaml'}\n".encode())
    assert "warning: certificate: expired on " in result.err


def test_check_of_a_file_for_clients_asks_for_no_server(cli: Cli, folder: Path) -> None:
    (folder / "config.yaml").write_text("client: {host: db.example.net, username: ann}\n")
    result = cli("config", "check")
    assert (result.status, result.out) == (0, f"OK {folder / 'config.yaml'}\n".encode())
    assert "for clients alone" in result.err
    (folder / "config.yaml").write_text("server: {listen_port: 0}\n")
    assert "no users are configured" in cli("config", "check").err


def test_check_without_a_config_names_init(cli: Cli) -> None:
    result = cli("config", "check")
    assert result.status == 2
    assert "`kvsd init`" in result.err
