"""The full segments that have a descriptor: as many as there may be, those that were read lately.

Owns: that number, for all tables together, and the choice of those that are closed. Must not know what is in a
segment, nor how it is opened again: whoever needs one does that, on its worker.

A segment is read without any lock or count while it is open. So none is closed but on the thread that does so, the
event loop's, and none that is pinned.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, Protocol

_SPARE: Final = 8
"""The number of further ones that may be open for a moment, until those who have opened them are done."""


class Parkable(Protocol):
    """A segment that nobody writes any more."""

    was_read: bool
    """Since it was last asked."""

    @property
    def is_pinned(self) -> bool: ...
    @property
    def is_open(self) -> bool: ...
    def take(self, fd: int) -> None:
        """Have this descriptor from now on."""

    def park(self) -> None:
        """Close its descriptor."""


class OpenSegments:
    """The open ones of all tables of a server."""

    def __init__(self, limit: int = 128) -> None:
        self.limit = limit
        self._open: OrderedDict[Parkable, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def has_place(self) -> bool:
        return len(self._open) < self.limit

    def admit(self, segment: Parkable) -> None:
        """Count a `segment` that is open; the next `trim` closes another for it."""
        with self._lock:
            self._open[segment] = None

    def reopen(self, segment: Parkable, fd: int, *, insist: bool = False) -> bool:
        """Give `fd` to a `segment` that is pinned; False where it has one by now, or there are enough."""
        with self._lock:
            if segment.is_open or (not insist and len(self._open) >= self.limit + _SPARE):
                return False
            segment.take(fd)
            self._open[segment] = None
            return True

    def forget(self, segment: Parkable) -> None:
        """Forget one that is closed for good."""
        with self._lock:
            self._open.pop(segment, None)

    def trim(self) -> None:
        """Close what is too much, on the loop, those first that were not read for a while."""
        if len(self._open) <= self.limit:
            return
        with self._lock:
            for _ in range(2 * len(self._open)):  # once around to ask, and once around to choose
                if len(self._open) <= self.limit:
                    return
                segment, _ = self._open.popitem(last=False)
                if segment.is_pinned or segment.was_read:
                    segment.was_read = False
                    self._open[segment] = None
                else:
                    segment.park()
