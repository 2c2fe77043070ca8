from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import PATIENCE_SECONDS, Cli, Running

READY = re.compile(
    r"kvsd ready on (127\.0\.0\.1):(\d+) tls=on data=(\S+) tables=1 unavailable=0 entries=(\d+) recovered_ms=\d+\n"
)


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`kvsd serve` as a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-m", "kvsd", "serve", "--listen-port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> re.Match[str]:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "no ready line"
    line = process.stdout.readline()
    match = READY.fullmatch(line)
    assert match, line + (process.communicate(timeout=PATIENCE_SECONDS)[1] if not line else "")
    return match


def test_what_was_set_is_there_after_a_restart(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("init")
    with serving() as first:
        monkeypatch.setenv("KVSD_PORT", ready(first)[2])
        assert cli("set", "hello", "rust").out == b"OK\n"
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=PATIENCE_SECONDS)
    assert (first.returncode, out) == (0, "")
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events[-1] == "stopped"
    with serving() as second:
        match = ready(second)
        monkeypatch.setenv("KVSD_PORT", match[2])
        assert (match[3], match[4]) == (str(folder / "data"), "1")
        assert cli("get", "hello").out == b"rust"
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == 0


def test_the_logs_of_a_service_are_json_even_where_they_warn(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli("init")
    monkeypatch.setenv("KVSD_HSOT", "x")
    with serving("--root-dir", "elsewhere", "--log-level", "warning") as process:
        assert ready(process)[3].endswith("/elsewhere")
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    [warning] = [json.loads(line) for line in err.splitlines() if "KVSD_HSOT" in line]
    assert warning["level"] == "warning"


def test_a_server_whose_ready_line_nobody_reads_serves_on(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("init")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    path = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "kvsd", "serve", "--listen-port", port, "--log-level", "info"]
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        os.close(writing)
        try:
            monkeypatch.setenv("KVSD_PORT", port)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while (result := cli("ping")).status != 0:
                assert time.monotonic() < deadline, result.err
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "Traceback" not in err


def test_without_a_config_the_error_names_init(cli: Cli) -> None:
    result = cli("serve")
    assert (result.status, result.out) == (2, b"")
    assert "`kvsd init`" in result.err


def test_a_second_server_on_the_same_data_is_refused(cli: Cli, server: Running) -> None:
    result = cli("serve", "--listen-port", "0")
    assert (result.status, result.out) == (2, b"")
    assert "in use by another kvsd" in result.err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--listen-port", "x"), ("--listen-host", "a b"), ("--log-level", "loud"), ("--log-format", "xml")],
)
def test_a_value_that_cannot_be_names_its_flag(cli: Cli, server: Running, option: str, value: str) -> None:
    result = cli("serve", option, value)
    assert result.status == 2
    assert f"flag {option}: server." in result.err


def test_a_config_file_and_a_user_in_the_environment_are_enough(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("init")
    config = folder / "config.yaml"
    text = config.read_text()
    kept, _, rest = text.partition("  users:\n")
    config.write_text(kept + "client:\n  ca: certs/ca.pem\n")
    assert rest
    (folder / "password").write_text("hunter2\n")
    assert "no users are configured" in cli("serve").err
    monkeypatch.setenv("KVSD_USERNAME", "ann")
    monkeypatch.setenv("KVSD_PASSWORD_FILE", str(folder / "password"))
    with serving() as process:
        monkeypatch.setenv("KVSD_PORT", ready(process)[2])
        assert cli("set", "k", "v").out == b"OK\n"
        assert cli("get", "k", "--password-file", "config.yaml").status == 5
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "hunter2" not in err
