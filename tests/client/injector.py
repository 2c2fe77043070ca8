"""An exception out of a signal handler, at each place where one can come.

CPython looks for signals behind calls, at the start of functions and when a loop goes round: nowhere else. A timer
would find some of these places, some of the time; here each is tried, and it is always the same one.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import kvsd

WATCHED = tuple(str(Path(kvsd.__file__).parent / part) for part in ("client", "protocol"))
LOOKS_FOR_SIGNALS = frozenset(
    dis.opmap[name] for name in ("RESUME", "CALL", "CALL_KW", "CALL_FUNCTION_EX", "JUMP_BACKWARD") if name in dis.opmap
)


class Limit(Exception):
    """What the handler raises: a soft time limit."""


class Injector:
    """Raises Limit at the `nth` such place in the clients, counted from 0; never where that is None."""

    def __init__(self, nth: int | None = None) -> None:
        self._nth = nth
        self._last: dict[FrameType, int] = {}
        self.places = 0

    @property
    def has_raised(self) -> bool:
        return self._nth is not None and self.places > self._nth

    def run(self, action: Callable[[], Any]) -> Any:
        """`action`, in this thread alone, as signals only come to one."""
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return action()
        finally:
            sys.settrace(before)
            self._last.clear()

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            previous = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if previous is not None and frame.f_code.co_code[previous] in LOOKS_FOR_SIGNALS:
                self.places += 1
                if self.places - 1 == self._nth:
                    raise Limit
        elif event == "return":
            self._last.pop(frame, None)
        return self._trace
