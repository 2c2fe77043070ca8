"""Ctrl-C in a command that has something to tidy up first: a terminal, half a file, figures to sum up.

Owns: when SIGINT raises KeyboardInterrupt in the process of a command, which else dies of it (see `main`). Knows no
command.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tidied_up() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt inside."""
    dies_of_it = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if dies_of_it:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if dies_of_it:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
