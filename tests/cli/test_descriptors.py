"""Standard descriptors that are closed: what belongs there goes nowhere, and nowhere else either."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import pytest

from kvsd.cli.commands import _COMMANDS

from .conftest import PATIENCE_SECONDS, Cli, Running

CLOSED = [closed for count in (1, 2, 3) for closed in combinations((0, 1, 2), count)]
REDIRECTIONS = {0: "<&-", 1: ">&-", 2: "2>&-"}

LOOK = """
import os, sys
from kvsd.cli.main import main
try:
    status = main(["version"])
finally:
    answers = [str(status)]
    for step in (lambda: os.read(0, 1), lambda: os.write(1, b""), lambda: os.write(2, b"")):
        try:
            step()
            answers.append("open")
        except OSError as error:
            answers.append(error.strerror)
    answers.append(str(os.open(os.devnull, os.O_RDONLY) > 2))
    print("|".join(answers), file=open(sys.argv[1], "w"))
"""


def without(closed: tuple[int, ...], command: list[str]) -> list[str]:
    """`command`, started with these descriptors closed."""
    return ["/bin/sh", "-c", f'exec "$@" {" ".join(map(REDIRECTIONS.__getitem__, closed))}', "sh", *command]


def kvsd(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvsd", *arguments]


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[bytes]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "PYTHONPATH": path, **variables},
    )


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_no_file_gets_the_number_of_a_standard_descriptor(folder: Path, closed: tuple[int, ...]) -> None:
    run(without(closed, [sys.executable, "-c", LOOK, str(folder / "seen")]))
    status, *standard, others_are_higher = (folder / "seen").read_text().strip().split("|")
    bad = "Bad file descriptor"
    assert standard == [bad if 0 in closed else "open", bad if 1 in closed else "open", "open"]
    assert others_are_higher == "True"
    assert status == ("1" if 1 in closed else "0"), "what could not be written was not done"


@pytest.mark.parametrize("name", _COMMANDS)
def test_what_is_for_stderr_never_lands_in_the_data(folder: Path, name: str) -> None:
    arguments = {"init": ["init", "made"], "sizing": ["sizing", "--keys", "1M"]}.get(name, [name])
    with_it = run(kvsd(*arguments), KVSD_TYPO="1")
    if name == "init":
        arguments = ["init", "another"]
    without_it = run(without((2,), kvsd(*arguments)), KVSD_TYPO="1")
    assert without_it.returncode == with_it.returncode
    assert without_it.stdout.replace(b"another/", b"made/") == with_it.stdout
    assert without_it.stderr == b""


def test_values_are_exact_without_a_stderr(cli: Cli, server: Running) -> None:
    assert cli("set", "k", "v").status == 0
    for arguments in (["get", "k"], ["get", "--insecure", "k"], ["get", "--json", "none"], ["ping", "-c", "1"]):
        with_it = run(kvsd(*arguments), KVSD_TYPO="1")
        without_it = run(without((2,), kvsd(*arguments)), KVSD_TYPO="1")
        assert without_it.returncode == with_it.returncode
        if arguments[0] != "ping":  # whose times differ
            assert without_it.stdout == with_it.stdout
        assert without_it.stdout.count(b"\n") == with_it.stdout.count(b"\n")


def test_a_value_that_cannot_be_written_or_read_is_an_error(cli: Cli, server: Running) -> None:
    assert cli("set", "k", "v").status == 0
    unwritten = run(without((1,), kvsd("get", "k")))
    assert (unwritten.returncode, b"stdout is closed" in unwritten.stderr) == (1, True)
    assert run(without((1, 2), kvsd("get", "k"))).returncode == 1
    assert run(without((0,), kvsd("set", "k", "-"))).returncode != 0
    assert cli("get", "k").out == b"v"


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_a_server_without_them_serves_and_stops_in_order(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, closed: tuple[int, ...]
) -> None:
    cli("init")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    monkeypatch.setenv("KVSD_SERVER_LISTEN_PORT", port)
    command = without(closed, kvsd("serve"))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (result := cli("set", "k", "v")).status != 0:
                assert time.monotonic() < deadline, result.err
            assert cli("get", "k").out == b"v"
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    assert out.startswith(b"" if 1 in closed else b"kvsd ready on ")
    assert (err == b"") == (2 in closed)
