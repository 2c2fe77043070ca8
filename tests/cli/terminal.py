"""A command on a terminal of its own, as a person would run it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence

PATIENCE_SECONDS = 20

# The session's first process takes the terminal for its own: getpass asks there, whatever stdin is.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
fcntl.ioctl(0, termios.TIOCSWINSZ, b"\\x18\\0\\x50\\0\\0\\0\\0\\0")
os.execv(sys.executable, [sys.executable, "-m", "kvsd", *sys.argv[1:]])
"""


def on_terminal(*arguments: str, typed: Sequence[tuple[bytes, bytes]] = (), **variables: str) -> tuple[int, str]:
    """The exit status and the screen, 80 columns wide; each of `typed` is a prompt and what is typed after it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _TAKE_TERMINAL, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables},
    )
    os.close(theirs)
    deadline = time.monotonic() + PATIENCE_SECONDS
    screen = b""
    seen = 0
    waiting = list(typed)
    try:
        while data := _read(ours, deadline):
            screen += data
            if waiting and (found := screen.find(waiting[0][0], seen)) >= 0:
                prompt, answer = waiting.pop(0)
                seen = found + len(prompt)
                os.write(ours, answer)
        return process.wait(PATIENCE_SECONDS), screen.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def _read(terminal: int, deadline: float) -> bytes:
    """What comes next; nothing once the command is gone."""
    ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
    assert ready, "the command neither ended nor said anything"
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux reports the end so
        return b""
