from __future__ import annotations

import re

import pytest

from kvsd import __version__
from kvsd.cli import commands

from .conftest import Cli

COMMANDS = [
    *("init", "serve", "set", "get", "delete", "ping", "sizing", "restored", "passwd", "version"),
    *("config show", "config check", "certs init", "certs show", "certs check"),
]
CLIENT_COMMANDS = ["set", "get", "delete", "ping"]


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_help_lists_every_command(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert (result.status, result.err) == (0, "")
    for command in COMMANDS:
        assert f"\n  {command.split()[0]} " in result.out.decode()


@pytest.mark.parametrize("group", ["config", "certs"])
def test_a_group_alone_shows_its_help(cli: Cli, group: str) -> None:
    result = cli(group)
    assert result.status == 0
    assert b"Commands:" in result.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_begins_with_examples_and_fits_80_columns(cli: Cli, command: str) -> None:
    result = cli(*command.split(), "-h")
    assert result.status == 0
    text = result.out.decode()
    assert f"Examples:\n    kvsd {command}" in text or f"    kvsd {command} " in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", CLIENT_COMMANDS)
def test_every_client_command_takes_the_client_options(cli: Cli, command: str) -> None:
    text = cli(command, "--help").out.decode()
    for option in (
        *("--config", "--host", "--port", "--username", "--password-file", "--askpass"),
        *("--ca", "--insecure", "--disable-tls", "--timeout", "--json"),
    ):
        assert f"\n  {option} " in text


def test_serve_takes_its_options(cli: Cli) -> None:
    text = cli("serve", "--help").out.decode()
    for option in (
        *("-C, --config", "--listen-host", "--listen-port", "--root-dir", "--disable-tls"),
        *("--tls-certificate", "--tls-key", "--log-level", "--log-format"),
    ):
        assert f"{option} " in text


def test_the_rust_programs_server_command_works_and_is_not_listed(cli: Cli) -> None:
    assert b"kvsd server" in cli("server", "--help").out
    assert "\n  server " not in cli().out.decode()


@pytest.mark.parametrize("command", [*COMMANDS, "server"])
def test_no_command_takes_a_password_where_every_user_can_see_it(cli: Cli, command: str) -> None:
    result = cli(*command.split(), "--password", "hunter2")
    assert result.status == 2
    assert "hunter2" not in result.err


def test_a_misspelt_command_gets_the_nearest_one(cli: Cli) -> None:
    result = cli("gte", "k")
    assert result.status == 2
    assert result.err == "error: there is no command 'gte', did you mean 'get'?; `kvsd --help` lists all\n"


@pytest.mark.parametrize(
    ("word", "meant"), [("del", "delete"), ("rm", "delete"), ("put", "set"), ("ls", "keys"), ("start", "serve")]
)
def test_the_words_of_other_programs_get_ours(cli: Cli, word: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in cli(word, "k").err


@pytest.mark.parametrize(("word", "meant"), [("rm", "drop"), ("delete", "drop"), ("ls", "list"), ("new", "create")])
def test_the_same_in_a_group(cli: Cli, word: str, meant: str) -> None:
    result = cli("table", word, "t")
    assert result.status == 2
    assert result.err == (
        f"error: there is no command {word!r}, did you mean {meant!r}?; `kvsd table --help` lists all\n"
    )


def test_no_summary_is_cut_and_commands_stand_in_families(cli: Cli) -> None:
    text = cli("--help").out.decode()
    assert "..." not in text.partition("Options:")[2]
    assert max(map(len, text.splitlines())) <= 80
    listed = [name for family in commands._FAMILIES.values() for name in family]
    assert re.findall(r"^  ([a-z]+)  ", text.partition("Options:")[2], re.MULTILINE) == listed
    for family in commands._FAMILIES:
        assert f"\n{family}:\n" in text


@pytest.mark.parametrize("group", ["config", "certs", "table", "namespace"])
def test_no_summary_of_a_group_is_cut(cli: Cli, group: str) -> None:
    text = cli(group).out.decode()
    assert "..." not in text.partition("Commands:")[2]


def test_a_missing_argument_names_the_help_of_its_command(cli: Cli) -> None:
    result = cli("config", "show", "superfluous")
    assert result.status == 2
    assert result.err.startswith("error: got unexpected extra argument")
    assert "`kvsd config show --help`" in result.err


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version_is_told(cli: Cli, arguments: list[str]) -> None:
    assert cli(*arguments).out == f"kvsd {__version__}\n".encode()


def test_the_version_is_told_as_json(cli: Cli) -> None:
    assert cli("version", "--json").json["version"] == __version__
