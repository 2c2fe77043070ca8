"""What the listener sees of a conversation: that it ends.

Owns: the `closed` future. Must not know what is said.
"""

from __future__ import annotations

import asyncio


class Connection(asyncio.BufferedProtocol):
    """Base of the protocols that a Listener makes."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is, however it ended."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)
