"""A line of asyncio tasks: who came first goes on first, and each is woken once.

Owns: the line. Knows nothing of what is waited for. An `asyncio.Event` or `asyncio.wait` in its place would wake all of
n tasks for each that can go on, or look through all of them for each that leaves: n times n steps.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Tasks of one event loop that wait."""

    __slots__ = ("_granted", "_line")

    def __init__(self) -> None:
        self._line: deque[asyncio.Future[None]] = deque()
        self._granted = 0

    @property
    def is_line(self) -> bool:
        """True while somebody waits who has not been let on."""
        self._drop_those_who_left()
        return bool(self._line)

    @property
    def granted(self) -> int:
        """The number of those who were let on, and have not come to run yet."""
        return self._granted

    async def wait(self) -> None:
        """Until it is this task's turn."""
        self._drop_those_who_left()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        finally:
            # One that is cancelled after its turn was granted has been counted, too.
            if turn.done() and not turn.cancelled():
                self._granted -= 1

    def grant(self, count: int) -> None:
        """Let the first `count` of those that wait go on."""
        while count > 0 and self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._granted += 1
                count -= 1

    def grant_all(self) -> None:
        """Let all go on."""
        self.grant(len(self._line))

    def _drop_those_who_left(self) -> None:
        """From the front: those who came together have their time together, so that few are behind one who stays."""
        while self._line and self._line[0].done():
            self._line.popleft()
