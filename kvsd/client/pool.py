"""The blocking connections of one client.

Owns: how many there are, which are idle, and lending each to one thread at a time. Knows nothing of calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from kvsd.client import failures
from kvsd.client.settings import ConnectSettings
from kvsd.client.sync_connection import Connection


class Pool:
    """At most `size` connections, opened when they are first needed."""

    def __init__(self, settings: ConnectSettings, size: int, open_: Callable[[float], Connection]) -> None:
        self._settings = settings
        self._size = size
        self._open = open_
        self._permits = threading.BoundedSemaphore(size)
        # The one used last goes out first, so that those which a quiet time does not need stay idle. Appending and
        # popping are atomic.
        self._idle: deque[Connection] = deque()
        self._closed = False

    @contextmanager
    def lend(self, deadline: float) -> Iterator[Connection]:
        """A connection for the block; afterwards it is kept if it is still usable, else closed.

        Raises Timeout where none is free by `deadline`, ConnectionLost where the pool was closed, and whatever
        opening a connection raises.
        """
        if not self._permits.acquire(timeout=max(deadline - monotonic(), 0)):
            raise failures.no_free_connection(self._settings, self._size)
        try:
            connection = self._take(deadline)
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._permits.release()

    def close(self) -> None:
        """Close the idle connections, and each lent one when it comes back."""
        self._closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def _take(self, deadline: float) -> Connection:
        if self._closed:
            raise failures.closed_by_us(self._settings)
        while (connection := self._pop()) is not None:
            if not connection.is_stale():
                return connection
            connection.close()
        return self._open(deadline)

    def _give_back(self, connection: Connection) -> None:
        if not connection.usable:
            connection.close()
            return
        self._idle.append(connection)
        # Asked only now: a close before the append has not seen it, and one behind it takes it.
        if self._closed:
            self.close()

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None
