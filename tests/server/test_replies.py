"""What is written to a connection that is lost meanwhile."""

from __future__ import annotations

import asyncio

from kvsd.server.replies import Replies
from kvsd.table.budget import Budget


class LostWhileWriting(asyncio.Transport):
    """As the loops' transports behave: the first write finds that the peer is gone, and nobody is told at once."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes += 1

    def is_closing(self) -> bool:
        return self.writes > 0


async def test_a_long_reply_is_not_written_on_to_a_connection_that_is_lost() -> None:
    """The loop said so on stderr for each piece: 160 lines for a value of 10 MiB, of any client that left."""
    budget = Budget(1 << 30)
    replies, transport = Replies(budget, lambda: None), LostWhileWriting()
    replies.open(transport)
    replies.say(bytes(10 << 20))
    replies.send()
    assert transport.writes == 1
    replies.close()
    assert budget.held_bytes == 0
