"""A shell command must feel instant: what is imported decides that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .conftest import Cli, Running

HEAVY = {"asyncio", "structlog", "cryptography", "rich", "pydantic", "uvloop", "kvsd.server", "kvsd.table"}

REPORT = """
import sys
from kvsd.cli.main import main
status = main(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(status)
"""


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a command has imported when it is done."""
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{REPORT}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    return set(process.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "arguments",
    [["get", "k"], ["set", "k", "v"], ["delete", "other"], ["ping"], ["table", "list"], ["namespace", "list"]],
)
def test_a_client_command_imports_nothing_heavy(cli: Cli, server: Running, arguments: list[str]) -> None:
    assert cli("set", "k", "v").status == 0
    loaded = loaded_by(*arguments)
    assert "kvsd.client.sync" in loaded
    assert not HEAVY & loaded


def test_plain_commands_do_without_the_classes_of_the_administration(server: Running) -> None:
    assert "kvsd.protocol.administration" not in loaded_by("ping")


def test_a_command_does_not_load_the_others(server: Running) -> None:
    assert not {"kvsd.cli.serve", "kvsd.cli.get", "kvsd.cli.certs"} & loaded_by("ping")


def test_the_help_imports_nothing_heavy() -> None:
    loaded = loaded_by("--help")
    assert "kvsd.cli.serve" in loaded
    assert not HEAVY & loaded


def test_yaml_is_only_read_where_there_is_a_file() -> None:
    assert "yaml" not in loaded_by("config", "show")
