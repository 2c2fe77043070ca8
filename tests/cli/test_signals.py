"""What each signal does to a server at each moment of its life."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

import pytest

from . import terminal
from .conftest import PATIENCE_SECONDS, Cli

NEVER_ENDING = """
import socket, sys, threading, time
from kvsd.server import process, server
from kvsd.table.hint_writer import HintWriter
from kvsd.table.progress import RecoveryProgress

check = RecoveryProgress.check

def reached():
    print("reached", file=sys.stderr, flush=True)

def recovers(progress):
    reached()
    while True:
        check(progress)
        time.sleep(0.001)

def hangs(*_, **__):
    reached()
    time.sleep(3_600)

match sys.argv.pop(1):
    case "recovery":
        RecoveryProgress.check = recovers
    case "names":
        socket.getaddrinfo = hangs
    case "passwords":
        server.Authenticator.from_users = hangs
    case "slow disk":
        process.DISK_GRACE_SECONDS = 1.0
        one_by_one = threading.Lock()
        def slowly(*_):
            with one_by_one:
                time.sleep(0.3)
        HintWriter.add_last = slowly
    case "dead disk":
        process.DISK_GRACE_SECONDS = 0.2
        HintWriter.add_last = hangs

from kvsd.cli.main import main
sys.exit(main())
"""
"""`kvsd serve`, with one part of its life that takes as long as nobody ends it, and says when it is reached."""


@contextmanager
def started(command: list[str], **given: object) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        **given,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def serve(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvsd", "serve", "--listen-port", "0", *arguments]


def wait_for(stream: TextIO, words: str) -> None:
    assert any(words in line for line in stream), f"it ended without {words!r}"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, list[dict[str, str]]]:
    """Exit status, stdout, and the rest of the log."""
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, [json.loads(line) for line in err.splitlines() if line.startswith("{")]


# Stops


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("recovery", signal.SIGTERM),
        ("recovery", signal.SIGINT),
        ("recovery", signal.SIGQUIT),
        ("names", signal.SIGTERM),
        ("passwords", signal.SIGTERM),
    ],
)
def test_a_stop_signal_ends_a_start_that_takes_long(
    cli: Cli, folder: Path, moment: str, number: signal.Signals
) -> None:
    cli("init")
    with started([sys.executable, "-c", NEVER_ENDING, moment, *serve()[3:]]) as process:
        wait_for(process.stderr, "reached")
        process.send_signal(number)
        status, out, log = ended(process)
    assert (status, out) == (0, "")
    assert [line["event"] for line in log if line["level"] != "info"] == []
    assert log[-1]["event"] == "stopped"
    with started(serve()) as again:
        wait_for(again.stdout, "unavailable=0")


def test_a_stop_signal_ends_a_server_that_has_not_read_its_config_yet(cli: Cli, folder: Path) -> None:
    os.mkfifo(folder / "slow.yaml")
    # The pipe opens once the server reads it, which then waits for what is in there.
    with started(serve("--config", "slow.yaml")) as process, (folder / "slow.yaml").open("wb"):
        process.send_signal(signal.SIGTERM)
        status, out, _ = ended(process)
    assert (status, out) == (0, "")


def test_a_stop_waits_for_a_disk_that_is_slow_and_not_for_one_that_is_dead(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("init")
    monkeypatch.setenv("KVSD_SERVER_DRAIN_TIMEOUT_SECONDS", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("KVSD_SERVER_LISTEN_PORT", str(taken.getsockname()[1]))
    tables = [f"t{number}" for number in range(5)]
    for disk, expected in (("slow disk", 0), ("dead disk", 1)):
        with started([sys.executable, "-c", NEVER_ENDING, disk, "serve"]) as process:
            wait_for(process.stdout, "ready")
            for table in tables:
                if expected == 0:
                    assert cli("table", "create", table).status == 0
                assert cli("set", "--table", table, "k", "v").status == 0
            process.send_signal(signal.SIGTERM)
            status, _, log = ended(process)
        assert status == expected
        assert ("the disk does not answer; stopping without it" in [line["event"] for line in log]) == bool(expected)


# Hangups


def test_a_daemon_ignores_a_hangup_and_says_so(cli: Cli, folder: Path) -> None:
    cli("init")
    with started(serve(), stdin=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for(process.stdout, "ready")
        process.send_signal(signal.SIGHUP)
        wait_for(process.stderr, "SIGHUP is ignored")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


@contextmanager
def started_on_terminal() -> Iterator[tuple[subprocess.Popen[str], BinaryIO]]:
    """A server whose terminal goes away when ours closes; stdout and stderr are pipes."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", terminal._TAKE_TERMINAL, *serve()[3:]]
    with (
        os.fdopen(ours, "r+b", 0) as terminal_end,
        started(command, stdin=theirs, start_new_session=True) as process,
    ):
        os.close(theirs)
        yield process, terminal_end


def test_a_server_whose_terminal_goes_away_drains(cli: Cli, folder: Path) -> None:
    cli("init")
    with started_on_terminal() as (process, terminal_end):
        wait_for(process.stdout, "ready")
        terminal_end.close()
        status, _, log = ended(process)
    assert status == 0
    assert [(line["event"], line.get("signal")) for line in log[-2:]] == [("draining", "SIGHUP"), ("stopped", None)]


def test_a_hangup_from_somebody_else_does_not_stop_a_server_on_a_terminal(cli: Cli, folder: Path) -> None:
    cli("init")
    with started_on_terminal() as (process, _):
        wait_for(process.stdout, "ready")
        process.send_signal(signal.SIGHUP)
        wait_for(process.stderr, "SIGHUP is ignored")
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_nohup_holds(cli: Cli, folder: Path) -> None:
    cli("init")
    with started(["nohup", *serve()], stdin=subprocess.DEVNULL) as process:
        wait_for(process.stdout, "ready")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        status, _, log = ended(process)
    assert status == 0
    assert log[-2]["signal"] == "SIGTERM"
