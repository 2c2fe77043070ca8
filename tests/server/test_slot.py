"""A table's place among the tables."""

from __future__ import annotations

from kvsd.server.slot import MAILBOX_REQUESTS, TableMailbox


async def test_the_mailbox_is_bounded() -> None:
    assert TableMailbox().maxsize == MAILBOX_REQUESTS > 0
