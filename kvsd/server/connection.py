"""The listener's view of a conversation: that somebody speaks, has logged in, and that it ends.

Owns: the `closed` future. Must not know what is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Connection(asyncio.BufferedProtocol):
    """Base of the protocols that a Listener makes."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is, however it ended."""
        self.on_speaking: Callable[[], None] = lambda: None
        """To be called when the peer has said something,"""
        self.on_admitted: Callable[[], None] = lambda: None
        """and when it has logged in: until then it may have to give way to others."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.on_speaking = self.on_admitted = lambda: None
        self.closed.set_result(None)
