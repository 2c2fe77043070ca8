"""The standard descriptors of the process.

Owns: that each of them is taken. Must not know what is read from them or written to them.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_STDERR: Final = 2
_MODES: Final = (os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)
"""The way in which the null device takes the place of each. What is for stderr shall vanish; but nothing can be read
from stdin, and nothing be written to stdout: an empty value and a lost one would pass for success."""


def open_missing() -> None:
    """Put the null device in the place of each standard descriptor that the process was started without.

    Else the next file or socket that is opened gets its number, and takes the blows: libuv aborts, and a warning lands
    among the data.
    """
    for descriptor, mode in enumerate(_MODES):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free: this one
            os.set_inheritable(descriptor, True)
    if sys.stderr is None:  # and print, told to write there, would write to stdout
        sys.stderr = os.fdopen(_STDERR, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
