"""A table's place among the tables: its mailbox, and who answers what is put there.

Owns: that every Request which reaches the mailbox is answered, by an actor, or by the reason why there is none. Must
not know how a table is opened, nor when it closes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from typing import Final

from kvsd.errors import KvsdError
from kvsd.server.names import TableName
from kvsd.server.table_settings import TableSettings
from kvsd.table.actor import TableActor
from kvsd.table.committer import State
from kvsd.table.known import KnownLog
from kvsd.table.request import Request

MAILBOX_REQUESTS: Final = 1_024
"""Requests that wait for their table; who brings one more waits too."""

_TURNED_AWAY_AT_ONCE: Final = 1_000
"""Operations: each becomes an error that is sent."""

_ticks: Final = itertools.count(1)


class TableMailbox(asyncio.Queue[Request | None]):
    """A bounded queue that tells when it was last used, and somebody that it is, while no actor waits for it."""

    _queue: deque[Request | None]

    def __init__(self) -> None:
        super().__init__(MAILBOX_REQUESTS)
        self.used_at = 0
        self.on_put: Callable[[], None] | None = None

    def _put(self, item: Request | None) -> None:
        self._queue.append(item)  # what the base class does; a call would cost a tenth of a microsecond
        self.used_at = next(_ticks)
        if self.on_put is not None:
            self.on_put()


class Slot:
    """One table: closed, opening, open, or unavailable."""

    def __init__(self, name: TableName, settings: TableSettings, want: Callable[[Slot], None]) -> None:
        self.name = name
        self.settings = settings
        self.known: KnownLog | None = None
        """The least that must be found of its log when it is opened."""
        self.mailbox = TableMailbox()
        self.mailbox.on_put = self.knock
        self.actor: TableActor | None = None
        self.running: asyncio.Task[None] | None = None
        self.opening: asyncio.Task[None] | None = None
        self.closing = False
        self.refusal: Callable[[], KvsdError] | None = None
        """What Requests are answered with while there is no actor; None: they wait for one."""
        self.is_unavailable = False
        """It could not be opened, and is not tried again before `reopen`."""
        self.lock = asyncio.Lock()
        """Held by whoever opens, closes or administers the table from outside."""
        self._want = want
        self._loop = asyncio.get_running_loop()

    @property
    def state(self) -> str:
        if self.actor is not None:
            return "unavailable" if self.actor.unavailable is not None else self.actor.state.value
        if self.is_unavailable:
            return "unavailable"
        return "closed" if self.opening is None else "loading"

    @property
    def is_healthy(self) -> bool:
        """Whether an actor would be replaced by one like it; not where its disk has failed it, or we have."""
        return self.actor is not None and self.actor.state is not State.READ_ONLY and self.actor.unavailable is None

    def knock(self) -> None:
        """Something is in the mailbox, and no actor takes it."""
        if self.refusal is not None:
            self._loop.call_soon(self.turn_away)
        elif self.opening is None:
            self._want(self)

    def refuse(self, refusal: Callable[[], KvsdError] | None) -> None:
        """Answer all that waits, and what comes, with this error; None: let it wait from now on."""
        self.refusal = refusal
        if self.actor is None and not self.mailbox.empty():
            self.knock()

    def turn_away(self) -> None:
        """Answer what waits, a few milliseconds' worth at once."""
        operations = 0
        while self.refusal is not None and self.actor is None and not self.mailbox.empty():
            if operations >= _TURNED_AWAY_AT_ONCE:
                self._loop.call_soon(self.turn_away)
                break
            request = self.mailbox.get_nowait()
            if request is not None:
                operations += len(request.operations)
                request.results = [self.refusal()] * len(request.operations)
                request.waits = 1
                request.resolve()
