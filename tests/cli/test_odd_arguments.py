"""Arguments, folders and surroundings that nobody has in mind: plain errors, whatever the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.main import get_command

from kvsd.cli import commands
from kvsd.cli.client import shared_options

from .conftest import Cli, Running, a_server
from .every_command import CASES, Case, registered, words_of
from .test_every_command import DOCUMENTED

WORDS = [
    "",
    "x" * 100_000,
    "ü漢\u202e\n",
    os.fsdecode(b"\xff\xfe"),
    "99999999999999999999",
    "-99999999999999999999",
    "1e400",
    "a/b/c",
    "~nobody-of-this-name/x",
    "..",
]


def parameters(command: str) -> list[TyperArgument | TyperOption]:
    """What the command takes."""
    found = get_command(commands._app)
    for name in command.split():
        assert isinstance(found, TyperGroup)
        found = found.get_command(None, name)  # type: ignore[arg-type, assignment]  # needs no context
    return [parameter for parameter in found.params if isinstance(parameter, TyperArgument | TyperOption)]


def calls(command: str, words: list[str]) -> Iterator[list[str]]:
    """The command with each odd word in each place that takes one."""
    name = command.split()
    taken = parameters(command)
    places = [parameter for parameter in taken if isinstance(parameter, TyperArgument)]
    required = [
        option
        for parameter in taken
        if isinstance(parameter, TyperOption) and parameter.required
        for option in (parameter.opts[0], "1")
    ]
    yield name
    for word in WORDS:
        yield [*name, *required, "--", *[word for _ in places]]
        yield [*name, *required, *[word for _ in places], word]
        for parameter in taken:
            if not isinstance(parameter, TyperOption) or parameter.is_flag:
                continue
            # Those of all client commands are tried with one of them.
            if parameter.opts[0] in shared_options() and command != "get":
                continue
            if (parameter.opts[-1], word) == ("--count", WORDS[4]):
                continue  # as many pings as were asked for
            if parameter.opts[0] == "--host" and word.strip("x").isalnum():
                continue  # a name that is looked up in the network
            yield [*words, parameter.opts[0], word]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of its own, since tables and namespaces come and go."""
    with a_server(tmp_path_factory.mktemp("server") / "kvsd") as running:
        yield running


@pytest.fixture(autouse=True)
def _elsewhere(running: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that may be littered, from which the server is found."""
    monkeypatch.setenv("KVSD_CONFIG", str(running.folder / "config.yaml"))
    monkeypatch.setenv("KVSD_PORT", str(running.port))
    monkeypatch.setenv("KVSD_TIMEOUT", "10")


def assert_plain(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    told = ([word[:99] for word in words], result.status, result.err[:999])
    assert result.status in DOCUMENTED, told
    assert "Traceback" not in result.err, told
    assert "unexpected " not in result.err.replace("unexpected extra argument", ""), told
    assert "a message has a number" not in result.err, told  # of the wire, which nobody sees
    assert len(result.err) < 5_000, told
    if result.status not in {0, 3} and not result.out:
        assert result.err.splitlines()[-1].startswith("error: "), told


def valid(case: Case, tmp_path: Path, running: Running) -> list[str]:
    """A call that would be carried out, or begin to be."""
    words = words_of(case.arguments, key="odd", name="odd", folder=tmp_path / "own")
    # A server that could not listen even if it had the data to itself.
    return ["serve", "--listen-port", str(running.port)] if words[0] == "serve" else words


@pytest.mark.slow
@pytest.mark.parametrize("command", registered())
def test_an_odd_argument_is_a_plain_error(cli: Cli, running: Running, tmp_path: Path, command: str) -> None:
    for words in calls(command, valid(CASES[command], tmp_path, running)):
        if words != ["serve"]:
            assert_plain(cli, words)


@pytest.mark.parametrize("command", registered())
def test_a_deleted_working_directory_is_a_plain_error(
    cli: Cli, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.delenv("KVSD_CONFIG")
    assert_plain(cli, valid(CASES[command], tmp_path, running))


@pytest.mark.parametrize("command", registered())
def test_without_a_home_a_command_is_carried_out_or_a_plain_error(
    cli: Cli, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "KVSD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert_plain(cli, valid(CASES[command], tmp_path, running))
