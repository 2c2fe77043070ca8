"""Connections that have not logged in, and which of them give way to others.

Owns: their order, how many each address has, and how long each may stay where others wait. Must not know sockets, nor
what logging in takes.
"""

from __future__ import annotations

import asyncio
from typing import Final, TypeAlias

SILENT_SECONDS: Final = 0.1
"""The time after which one that has said nothing gives way, where the limit is reached and somebody waits."""
SPEAKING_SECONDS: Final = 1.0
"""The same for one that has begun a handshake or sent credentials: it takes some round trips and a password's hash."""

Newcomer: TypeAlias = "asyncio.Task[None]"
"""The task that sees a connection through; who gives way is cancelled."""


class Newcomers:
    """All newcomers, in the order in which they came; each is added, may speak, and is discarded at least once."""

    def __init__(self, max_per_address: int) -> None:
        self._max_per_address = max_per_address
        self._silent: dict[Newcomer, float] = {}
        self._speaking: dict[Newcomer, float] = {}
        """Each with the time when it came."""
        self._address: dict[Newcomer, str] = {}
        self._of_address: dict[str, dict[Newcomer, None]] = {}

    def __len__(self) -> int:
        return len(self._address)

    def add(self, newcomer: Newcomer, address: str, now: float) -> None:
        """Take in one that has come. The oldest one of its address gives way where that has as many as it may."""
        others = self._of_address.setdefault(address, {})
        others[newcomer] = None
        self._address[newcomer] = address
        self._silent[newcomer] = now
        if len(others) > self._max_per_address:
            self._dismiss(next(iter(others)))

    def speaks(self, newcomer: Newcomer) -> None:
        came = self._silent.pop(newcomer, None)
        if came is not None:
            self._speaking[newcomer] = came

    def discard(self, newcomer: Newcomer) -> None:
        """Forget one that has logged in, or left."""
        address = self._address.pop(newcomer, None)
        if address is None:
            return
        self._silent.pop(newcomer, None)
        self._speaking.pop(newcomer, None)
        others = self._of_address[address]
        del others[newcomer]
        if not others:
            del self._of_address[address]

    def make_way(self, now: float) -> float | None:
        """Dismiss the one that has said nothing for longest, or else the oldest; 0 then.

        Where each has some time left, the seconds until that is over for one; None where there are none.
        """
        waits = []
        for newcomers, seconds in (self._silent, SILENT_SECONDS), (self._speaking, SPEAKING_SECONDS):
            for newcomer, came in newcomers.items():
                left = came + seconds - now
                if left <= 0:
                    self._dismiss(newcomer)
                    return 0
                waits.append(left)
                break
        return min(waits, default=None)

    def _dismiss(self, newcomer: Newcomer) -> None:
        self.discard(newcomer)
        newcomer.cancel("gave way: it had not logged in")
