"""Ctrl-C: a command dies of it, since a shell's loop goes on after one that merely exits.

Owns: what SIGINT does to the process of a command, and letting a command tidy up before. Knows no command.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


def die_of_them() -> None:
    """Have SIGINT end the process at once; no exception and no traceback, whatever it is doing.

    Nothing changes where it is ignored, as in the background jobs of a script.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def die() -> None:
    """End the process by SIGINT, now that all is tidy."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def tidied_up() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt inside, for what has something to tidy up: a terminal, half a file."""
    at_once = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if at_once:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
