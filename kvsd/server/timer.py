"""Timers of a connection, for a process that may have been stopped meanwhile.

Owns: one timer that is set anew or stopped, and what a late one does. Must not know what it waits for.

A process that was stopped (SIGSTOP, a laptop's lid, a long pause) finds all its timers past and all that has arrived
unread. A timer that comes late lets the loop look at its sockets first: what was there in time may stop it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

LATE_SECONDS: Final = 0.05
"""More than a busy loop is late."""


class Timer:
    """Waits for one thing at a time."""

    __slots__ = ("_handle", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None

    @property
    def is_set(self) -> bool:
        return self._handle is not None

    def set(self, seconds: float, callback: Callable[..., None], *args: object) -> None:
        """Call `callback` after so many seconds, unless it is stopped or set anew before."""
        self.stop()
        due = self._loop.time() + seconds
        self._handle = self._loop.call_later(seconds, self._fire, due, callback, args)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self, due: float, callback: Callable[..., None], args: tuple[object, ...]) -> None:
        if self._loop.time() - due > LATE_SECONDS:
            # Twice: the loop looks at its sockets between the two, whatever it does first in its turn.
            self._handle = self._loop.call_soon(self._call_soon, callback, args)
        else:
            self._call(callback, args)

    def _call_soon(self, callback: Callable[..., None], args: tuple[object, ...]) -> None:
        self._handle = self._loop.call_soon(self._call, callback, args)

    def _call(self, callback: Callable[..., None], args: tuple[object, ...]) -> None:
        self._handle = None
        callback(*args)


@contextlib.asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError after so many seconds, as asyncio.timeout does, by such a timer."""
    timer = Timer()
    async with asyncio.timeout(None) as limit:
        timer.set(seconds, lambda: limit.reschedule(0))
        try:
            yield
        finally:
            timer.stop()
