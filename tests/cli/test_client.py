"""The client options: where a command connects, as whom, and what it says when it cannot."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Cli, Running
from .terminal import on_terminal


def password_of(server: Running) -> str:
    text = (server.folder / "config.yaml").read_text()
    return text.partition("\n  password: '")[2].partition("'")[0]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens; bound, so that nobody will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_without_any_config_the_error_names_init(cli: Cli) -> None:
    result = cli("get", "k")
    assert result.status == 5
    assert "`kvsd init`" in result.err
    assert "no user name is set and no config file was found" in result.err


def test_a_config_without_credentials_is_named(cli: Cli, folder: Path) -> None:
    config = folder / "config.yaml"
    config.write_text("client:\n  username: me\n")
    config.chmod(0o600)
    result = cli("get", "k")
    assert result.status == 5
    assert f"no password is set in {config}" in result.err


def test_flags_alone_are_enough(cli: Cli, running: Running, folder: Path) -> None:
    (folder / "password").write_text(password_of(running) + "\r\nanother line\n")
    result = cli(
        *("get", "absent", "--host", "localhost", "--port", str(running.port), "--username", "kvsduser"),
        *("--password-file", "password", "--ca", str(running.folder / "certs/ca.pem"), "--timeout", "20"),
    )
    assert (result.status, result.err) == (3, "error: there is no key absent\n")


def test_a_config_file_elsewhere_is_enough(cli: Cli, running: Running) -> None:
    config = str(running.folder / "config.yaml")
    assert cli("ping", "--config", config, "--port", str(running.port)).status == 0


def test_a_flag_beats_the_environment(cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_PORT", "1")
    assert cli("ping", "--port", str(server.port)).status == 0


def test_a_wrong_password_exits_5_and_is_not_repeated(
    cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVSD_PASSWORD", "hunter2")
    result = cli("get", "k")
    assert result.status == 5
    assert "hunter2" not in result.err


def test_nobody_there_exits_6(cli: Cli, server: Running, free_port: int) -> None:
    result = cli("get", "k", "--port", str(free_port))
    assert result.status == 6
    assert "kvsd serve" in result.err


def test_a_server_that_says_nothing_exits_7(cli: Cli, server: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = cli("get", "k", "--port", str(silent.getsockname()[1]), "--timeout", "0.05")
    assert result.status == 7


def test_a_certificate_of_somebody_else_exits_6(cli: Cli, server: Running, tmp_path: Path) -> None:
    cli("init", str(tmp_path / "other"))
    result = cli("get", "k", "--ca", str(tmp_path / "other/certs/ca.pem"))
    assert result.status == 6
    assert "--ca FILE" in result.err


def test_insecure_is_loud(cli: Cli, server: Running, tmp_path: Path) -> None:
    result = cli("ping", "--insecure")
    assert result.status == 0
    assert result.err.startswith("warning: the server's certificate is not verified")


def test_warnings_are_json_where_json_was_asked_for(cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSD_HSOT", "x")
    result = cli("get", "absent", "--json")
    assert result.err.splitlines()[0].startswith('{"warning": {"message": "environment KVSD_HSOT: sets nothing')
    assert result.error["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("option", "value"), [("--port", "http"), ("--timeout", "-1"), ("--host", "a b"), ("--username", "")]
)
def test_a_value_that_cannot_be_names_its_flag(cli: Cli, server: Running, option: str, value: str) -> None:
    result = cli("get", "k", option, value)
    assert result.status == 2
    assert f"flag {option}: client." in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "localhost", "get", "absent"],
        ["--host=localhost", "--timeout", "20", "--json", "get", "absent"],
        ["get", "--host", "localhost", "absent"],
    ],
)
def test_options_may_come_before_the_command(
    cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("KVSD_HOST", "256.0.0.1")
    result = cli(*arguments)
    assert result.status == 3
    if "--json" in arguments:
        assert result.error["code"] == "NOT_FOUND"


@pytest.mark.parametrize("arguments", [["--table", "default", "table", "list"], ["table", "--json", "info", "default"]])
def test_options_may_come_before_the_command_of_a_group(cli: Cli, server: Running, arguments: list[str]) -> None:
    assert cli(*arguments).status == 0


@pytest.mark.parametrize("arguments", [["--hots", "h", "get", "k"], ["--host"], ["--json"], ["table", "--json"]])
def test_options_without_a_command_or_a_meaning_are_refused(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert (result.status, result.out) == (2, b"")
    assert "no such option" in result.err or "no command behind the options" in result.err


def test_a_table_may_be_named_with_its_namespace(cli: Cli, server: Running) -> None:
    assert cli("set", "placed", "3", "--table", "default/default").status == 0
    assert cli("get", "placed", "--namespace", "default", "--table", "default/default").out == b"3"
    assert cli("get", "placed", "--table", "nowhere/default").status == 3
    for refused in (["--table", "default/default", "--namespace", "other"], ["--table", "a/b/c"], ["--table", "/"]):
        assert cli("get", "placed", *refused).status == 2


@pytest.mark.parametrize("variable", ["KVSD_TABLE", "KVSD_CLIENT_TABLE"])
def test_a_table_may_be_named_with_its_namespace_in_the_environment(
    cli: Cli, own_server: Running, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    namespace = variable.lower()
    assert cli("namespace", "create", namespace).status == 0
    assert cli("table", "create", f"{namespace}/stock").status == 0
    monkeypatch.setenv(variable, f"{namespace}/stock")
    assert cli("set", "elsewhere", "7").status == 0
    assert cli("get", "elsewhere", "--namespace", namespace).out == b"7"
    assert cli("get", "elsewhere", "--table", "default").status == 3
    refused = cli("get", "elsewhere", "--namespace", "default")
    assert (refused.status, variable in refused.err) == (2, True)
    monkeypatch.setenv(variable, "a/b/c")
    assert "TABLE or NAMESPACE/TABLE" in cli("get", "elsewhere").err


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("KVSD_URL", "here set KVSD_HOST, KVSD_PORT, KVSD_USERNAME, KVSD_PASSWORD, KVSD_NAMESPACE and KVSD_TABLE"),
        ("KVSD_USER", "did you mean KVSD_USERNAME?"),
        ("KVSD_PASS", "did you mean KVSD_PASSWORD?"),
        ("KVSD_HOSTNAME", "did you mean KVSD_HOST?"),
    ],
)
def test_a_variable_that_one_may_expect_is_told_what_to_set(
    cli: Cli, server: Running, monkeypatch: pytest.MonkeyPatch, variable: str, words: str
) -> None:
    monkeypatch.setenv(variable, "x")
    err = cli("get", "absent").err
    assert f"environment {variable}: sets nothing" in err
    assert words in err
    assert "KVSD_LOG" not in err


@pytest.mark.parametrize("content", [None, b"\xff\n"])
def test_a_password_file_that_is_unfit_is_a_usage_error(cli: Cli, server: Running, content: bytes | None) -> None:
    path = Path("password")
    if content is not None:
        path.write_bytes(content)
    result = cli("get", "k", "--password-file", "password")
    path.unlink(missing_ok=True)
    assert result.status == 2
    assert "password file password" in result.err


def test_a_password_file_and_a_prompt_exclude_each_other(cli: Cli, server: Running) -> None:
    result = cli("get", "k", "--password-file", "password", "--askpass")
    assert result.status == 2
    assert "exclude each other" in result.err


def test_askpass_takes_the_password_from_the_terminal_without_an_echo(server: Running) -> None:
    password = password_of(server)
    typed = [(b"Password: ", password.encode() + b"\n")]
    status, screen = on_terminal("get", "absent", "--askpass", typed=typed, KVSD_PASSWORD="wrong")
    assert status == 3
    assert password not in screen


def test_an_interrupt_at_a_prompt_ends_quietly(server: Running) -> None:
    status, screen = on_terminal("get", "absent", "--askpass", typed=[(b"Password: ", b"\x03")])
    assert status == -signal.SIGINT
    assert "Traceback" not in screen
