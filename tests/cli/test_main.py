from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from kvsd import errors
from kvsd.cli import commands
from kvsd.cli.failures import CommandFailed, KeyNotFound, UsageError

from .conftest import Cli

Fail = Callable[[BaseException], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Has every command raise an error."""

    def arrange(error: BaseException) -> None:
        def raise_it(_: list[str]) -> int:
            raise error

        monkeypatch.setattr(commands, "run", raise_it)

    return arrange


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CommandFailed, 1),
        (errors.Busy, 1),
        (errors.ReadOnly, 1),
        (errors.InternalError, 1),
        (UsageError, 2),
        (errors.ConfigError, 2),
        (errors.InvalidValue, 2),
        (errors.TableNotFound, 3),
        (errors.Conflict, 4),
        (errors.AuthenticationError, 5),
        (errors.Forbidden, 5),
        (errors.ConnectionLost, 6),
        (errors.CannotConnect, 6),
        (errors.ConnectionRefused, 6),
        (errors.CertificateError, 6),
        (errors.Timeout, 7),
        (errors.CorruptLog, 8),
    ],
)
def test_a_script_tells_errors_apart_by_the_exit_status(
    cli: Cli, fail: Fail, error: type[errors.KvsdError], status: int
) -> None:
    fail(error("it went wrong"))
    result = cli("get", "k")
    assert (result.status, result.out, result.err) == (status, b"", "error: it went wrong\n")


def test_an_absent_key_is_told_by_the_exit_status_too(cli: Cli, fail: Fail) -> None:
    fail(KeyNotFound("k"))
    result = cli("get", "k")
    assert (result.status, result.out, result.err) == (3, b"", "error: there is no key k\n")


def test_an_error_is_json_where_json_was_asked_for(cli: Cli, fail: Fail) -> None:
    fail(errors.Conflict("it went wrong"))
    assert cli("get", "k", "--json").error == {"code": "CONFLICT", "message": "it went wrong"}


def test_a_key_named_json_does_not_turn_errors_into_json(cli: Cli, fail: Fail) -> None:
    fail(errors.Conflict("it went wrong"))
    assert cli("get", "--", "--json").err == "error: it went wrong\n"


def test_a_usage_error_is_json_too(cli: Cli) -> None:
    result = cli("get", "--json")
    assert result.status == 2
    assert result.error["code"] == "USAGE"


def test_an_interrupt_ends_without_a_traceback(cli: Cli, fail: Fail) -> None:
    fail(KeyboardInterrupt())
    result = cli("get", "k")
    assert (result.status, result.out, result.err) == (130, b"", "")


def test_an_unexpected_error_shows_neither_a_traceback_nor_its_text(cli: Cli, fail: Fail) -> None:
    fail(RuntimeError("the password is hunter2"))
    result = cli("get", "k")
    assert result.status == 1
    assert result.err == "error: unexpected RuntimeError; set KVSD_DEBUG=1 and run the command again to see where\n"


def test_an_unexpected_error_shows_all_on_demand(cli: Cli, fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(RuntimeError("why"))
    monkeypatch.setenv("KVSD_DEBUG", "1")
    with pytest.raises(RuntimeError, match="why"):
        cli("get", "k")


def run(*arguments: str, **streams: object) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-m", "kvsd", *arguments],
        stderr=subprocess.PIPE,
        timeout=20,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        **streams,
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run("config", "show", stdout=writing)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")


def test_help_into_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run("--help", stdout=writing)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110 - a device
def test_output_that_is_lost_is_reported() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        result = run("version", stdout=full)
    assert (result.returncode, result.stderr) == (1, b"error: cannot write the output: No space left on device\n")


def test_a_closed_stdout_is_reported() -> None:
    command = f"exec {sys.executable} -m kvsd version >&-"
    path = os.pathsep.join(filter(None, sys.path))
    result = subprocess.run(
        ["sh", "-c", command], stderr=subprocess.PIPE, timeout=20, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert (result.returncode, result.stderr) == (1, b"error: cannot write the output: stdout is closed\n")
