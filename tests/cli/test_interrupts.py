"""Ctrl-C: the process dies of SIGINT, as a shell's loop expects, and says nothing about it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import Running
from .terminal import on_terminal


def interrupted(module: str) -> str:
    """The code of a kvsd that gets SIGINT when it imports `module`."""
    return f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
class Interrupt:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
from kvsd.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("kvsd.cli.output", ["get", "k"]),
        ("typer", ["get", "k"]),
        ("kvsd.cli.get", ["get", "k"]),
        ("kvsd.config.load", ["get", "k"]),
        ("ssl", ["get", "k"]),
        ("yaml", ["set", "k", "v"]),
        ("unicodedata", ["get", "absent"]),
        ("cryptography", ["init", "new"]),
        ("difflib", ["gte"]),
    ],
)
def test_an_interrupt_ends_the_process_by_its_signal_without_a_word(
    server: Running, module: str, arguments: list[str]
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", interrupted(module), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")
    assert not Path("new").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_an_interrupt_ends_a_loop_of_the_shell(server: Running) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; from kvsd.cli.main import main; sys.exit(main())"
    loop = 'for n in 1 2 3; do "$0" -c "$1" ping -c 1000000 -i 1000; echo went on; done; echo behind'
    with subprocess.Popen(
        ["bash", "-c", loop, sys.executable, code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            assert shell.stdout is not None
            assert shell.stdout.readline().endswith(" ms\n")
            os.killpg(shell.pid, signal.SIGINT)  # as a terminal does
            out, err = shell.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert (shell.returncode, out) == (-signal.SIGINT, "")
    assert err.startswith("1 round trips: ")


def test_a_shell_shows_the_exit_status_130(server: Running) -> None:
    ended = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" get k; echo $?', sys.executable, interrupted("kvsd.cli.get")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert ended.stdout == b"130\n"


def test_an_ignored_interrupt_stays_ignored() -> None:
    # As in the background jobs of a script.
    code = f"""
import os, signal, sys
sys.path[:0] = {sys.path!r}
signal.signal(signal.SIGINT, signal.SIG_IGN)
from kvsd.cli import commands
run = commands.run
def interrupted(arguments):
    os.kill(os.getpid(), signal.SIGINT)
    return run(arguments)
commands.run = interrupted
from kvsd.cli.main import main
sys.exit(main())
"""
    ended = subprocess.run([sys.executable, "-c", code, "version"], capture_output=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_compaction_that_is_waited_for_gives_the_cursor_back(server: Running) -> None:
    code_of_show, code_of_hide = "\x1b[?25h", "\x1b[?25l"
    status, screen = on_terminal("compact", typed=[(b"compacting", b"\x03")])
    assert status in {0, -signal.SIGINT}
    assert screen.rfind(code_of_show) >= screen.rfind(code_of_hide)
