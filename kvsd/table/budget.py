"""The bytes that requests may keep in memory, all connections together.

Owns: one counter and its limit. Must not know who holds the bytes.
"""

from __future__ import annotations

from kvsd.errors import Busy


class Budget:
    """Covers half-received values, queued writes and unsent replies. Never waits: what does not fit is refused."""

    __slots__ = ("held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def hold(self, size: int) -> bool:
        """Take `size` bytes if they fit; whoever got True calls `release` with the same size once."""
        held = self.held_bytes + size
        if held > self.limit_bytes:
            return False
        self.held_bytes = held
        return True

    def take(self, size: int) -> None:
        """Take `size` bytes whether they fit or not: what is owed anyway, which leaves less to others."""
        self.held_bytes += size

    def release(self, size: int) -> None:
        self.held_bytes -= size


def out_of_memory() -> Busy:
    """What is answered to whatever the budget refused."""
    return Busy("the server's memory for requests is used up (server.memory_bytes); nothing was done, try again")
