"""When keys expire: absolute times, and which of them have passed.

Owns: the keys that have an expiry, and which of these are due. Must not know the log; whoever writes or forgets a
key says so here.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from kvsd.types import Key


class Expiries:
    """Costs nothing for a key without an expiry, and about 150 bytes for one that has it."""

    __slots__ = ("_advanced_us", "_heap", "due", "ever", "times")

    def __init__(self) -> None:
        self.times: dict[Key, int] = {}
        """Key → microseconds since 1970."""
        self.ever = False
        """Whether any key has had an expiry since the start; until then nobody pays for looking."""
        self._heap: list[tuple[int, Key]] = []
        """May hold times that have been replaced since; those are skipped when their turn comes."""
        self._advanced_us = 0
        self.due: dict[Key, None] = {}
        """Keys whose time had passed at the last `advance`, in that order: invisible, and not yet swept."""

    def set(self, key: Key, expires_us: int) -> None:
        """Replace the expiry of `key`; 0 takes it away."""
        self.due.pop(key, None)
        if expires_us:
            self.ever = True
            self.times[key] = expires_us
            heappush(self._heap, (expires_us, key))
            if len(self._heap) > 64 + 2 * len(self.times):
                self._heap = [(time, key) for key, time in self.times.items() if key not in self.due]
                heapify(self._heap)
        else:
            self.times.pop(key, None)

    def load(self, times: dict[Key, int]) -> None:
        """Take over what recovery has found."""
        self.times = times
        self.ever = bool(times)
        self._heap = [(time, key) for key, time in times.items()]
        heapify(self._heap)
        self.due = {}

    def advance(self, now_us: int) -> None:
        """Move the keys whose time has come to `due`; and back, where the clock was set back."""
        if now_us < self._advanced_us:
            for key in [key for key in self.due if self.times[key] > now_us]:
                self.set(key, self.times[key])
        self._advanced_us = now_us
        heap, times = self._heap, self.times
        while heap and heap[0][0] <= now_us:
            expires_us, key = heappop(heap)
            if times.get(key) == expires_us:
                self.due[key] = None
