"""The blocking connections of one client.

Owns: how many there are, which are idle, and lending each to one thread at a time. Knows nothing of calls.

An exception from a signal handler can come out of any line of the main thread. So nothing here is taken that is not
certain to be given back: a thread enters itself in a dictionary, inside of the `try` that takes it out again, and holds
no lock. Entering, leaving and handing over are single operations of dict and deque, which are atomic. A handler may
use the same client.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final, TypeVar

from kvsd.client import failures, forks
from kvsd.client.settings import ConnectSettings
from kvsd.client.sync_connection import Connection

T = TypeVar("T")

LONGEST_NAP_SECONDS: Final = 0.1
"""The time after which a waiting thread looks itself: one that was interrupted while it left may have woken nobody."""


class Lease:
    """A thread's place in the line, and its bell where it waits."""

    __slots__ = ("bell",)

    def __init__(self) -> None:
        self.bell: threading.Lock | None = None


class Pool:
    """At most `size` connections, opened when they are first needed."""

    def __init__(self, settings: ConnectSettings, size: int, open_: Callable[[float], Connection]) -> None:
        self._settings = settings
        self._size = size
        self._open = open_
        # In the order in which they came: the first `size` have their turn.
        self._leases: dict[Lease, None] = {}
        # The one used last goes out first, so that those which a quiet time does not need stay idle.
        self._idle: deque[Connection] = deque()
        self._closed = False
        forks.watch(self)

    def use(self, action: Callable[[Connection, float], T], deadline: float) -> T:
        """Carry out `action` with a connection, which is kept afterwards if it is still usable, else closed.

        Raises Timeout where none is free by `deadline`, ClientUnusable where the pool was closed, and whatever opening
        a connection and `action` raise.
        """
        lease = Lease()
        leases, idle = self._leases, self._idle
        connection: Connection | None = None
        try:
            leases[lease] = None
            if len(leases) > self._size:
                self._wait(lease, deadline)
            connection = self._take(deadline)
            result = action(connection, deadline)
        finally:
            # The first call of each block is certain to be made: signals are looked for behind calls.
            try:
                if connection is not None:
                    if connection.usable:
                        idle.append(connection)
                    else:
                        connection.close()
            finally:
                leases.pop(lease, None)
                self._leave()
        return result

    def close(self) -> None:
        """Close the idle connections, and each lent one when it comes back."""
        self._closed = True
        while (connection := self._pop()) is not None:
            connection.close()

    def after_fork(self) -> None:
        """The connections are the parent's, and the threads that had leases are not in this process."""
        inherited, self._idle, self._leases = self._idle, deque(), {}
        for connection in inherited:
            connection.close()

    def _wait(self, lease: Lease, deadline: float) -> None:
        """Wait until there are few enough before `lease`."""
        bell = lease.bell = threading.Lock()
        bell.acquire()
        # list: a copy that is made at once, whatever other threads do.
        while lease not in list(self._leases)[: self._size]:
            seconds = deadline - monotonic()
            if seconds <= 0:
                raise failures.no_free_connection(self._settings, self._size)
            bell.acquire(timeout=min(seconds, LONGEST_NAP_SECONDS))

    def _leave(self) -> None:
        """Behind a lease that is over: wake those whose turn it is now."""
        # Asked only now: a close before the connection came back has not seen it, and one behind that takes it.
        if self._closed:
            self.close()
        if len(self._leases) >= self._size:
            for lease in list(self._leases)[: self._size]:
                if lease.bell is not None:
                    with suppress(RuntimeError):  # it rings already
                        lease.bell.release()

    def _take(self, deadline: float) -> Connection:
        if self._closed:
            raise failures.closed(self._settings)
        while (connection := self._pop()) is not None:
            if not connection.is_stale():
                return connection
            connection.close()
        return self._open(deadline)

    def _pop(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None
