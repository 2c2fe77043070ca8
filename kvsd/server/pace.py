"""The least rate at which a peer must send a message that it has begun, or take the replies that it is owed.

Owns: the rate, and the account of one window after the other. Must not know timers, nor whose bytes these are.

Both keep memory that others could use: without this, a byte now and then would keep it for ever.
"""

from __future__ import annotations

from typing import Final

LEAST_BYTES_PER_SECOND: Final = 16 << 10


class Pace:
    """Windows of a number of seconds; in each, something must end, or move on by as many bytes as the rate asks for."""

    __slots__ = ("_begun", "_done_bytes", "window_seconds")

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._begun: float | None = None
        self._done_bytes = 0

    def reset(self) -> None:
        """Forget what has ended: the next one begins with a window of its own."""
        self._begun = None

    def left_seconds(self, now: float, done_bytes: int) -> float:
        """Seconds until the next look, or 0 where it has been too slow; `done_bytes` is how far it has come in all."""
        if self._begun is None:
            self._begin(now, done_bytes)
        assert self._begun is not None
        left = self._begun + self.window_seconds - now
        if left > 0:
            return left
        if done_bytes - self._done_bytes < LEAST_BYTES_PER_SECOND * self.window_seconds:
            return 0
        self._begin(now, done_bytes)
        return self.window_seconds

    def _begin(self, now: float, done_bytes: int) -> None:
        self._begun, self._done_bytes = now, done_bytes
