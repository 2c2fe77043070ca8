"""When keys expire: absolute times, and which of them have passed.

Owns: the keys that have an expiry, and which of these are due. Must not know the log; whoever writes or forgets a
key says so here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvsd.table.memory import emptying
from kvsd.table.order import KeyOrder
from kvsd.types import Key

AT_ONCE: Final = 250
"""Keys that become due in one call: a millisecond or two."""

_TIME_BYTES: Final = 8


class Expiries:
    """Costs nothing for a key without an expiry, and about 150 bytes for one that has it.

    The times are kept in order. A heap would be cheaper by a microsecond for each, but what is replaced stays in it: it
    must be made anew now and then, which took 156 ms for 300,000 keys, and it cannot tell how many are due.
    """

    __slots__ = ("_order", "due", "ever", "times")

    def __init__(self) -> None:
        self.times: dict[Key, int]
        """Key → microseconds since 1970."""
        self.ever: bool
        """Whether any key has had an expiry since the start; until then nobody pays for looking."""
        self.due: dict[Key, None]
        """Keys that `advance` has found to be due, in that order: invisible, and not yet swept."""
        self._order: KeyOrder
        """The keys that are not in `due`, each behind its time."""
        self.load({})

    def set(self, key: Key, expires_us: int) -> None:
        """Replace the expiry of `key`; 0 takes it away."""
        before = self.times.get(key, 0)
        if key in self.due:
            del self.due[key]
        elif before:
            self._order.discard(_packed(before, key))
        if expires_us:
            self.ever = True
            self.times[key] = expires_us  # in place: a dict whose keys come and go is made anew at times
            self._order.add(_packed(expires_us, key))
        elif before:
            del self.times[key]

    def load(self, times: dict[Key, int]) -> None:
        """Take over what recovery has found."""
        self.times = times
        self.ever = bool(times)
        self.due = {}
        self._order = KeyOrder()
        # Not sorted in one call: it would keep the interpreter from all other threads for half a second.
        for _ in self._order.build(map(_packed, times.values(), times)):
            pass

    def advance(self, now_us: int, at_most: int = AT_ONCE) -> list[Key]:
        """Move keys whose time has come to `due`, the earliest first; returns them."""
        found = self._order.page(b"", _end(now_us), at_most)
        keys = [packed[_TIME_BYTES:] for packed in found]
        for packed in found:
            self._order.discard(packed)
        self.due.update(dict.fromkeys(keys))
        return keys

    def retreat(self, now_us: int, at_most: int = AT_ONCE) -> list[Key]:
        """Take keys out of `due` whose time has not come after all, since the clock was set back; returns them."""
        keys: list[Key] = []
        while len(keys) < at_most and self.is_ahead(now_us):
            key, _ = self.due.popitem()
            self._order.add(_packed(self.times[key], key))
            keys.append(key)
        return keys

    def is_ahead(self, now_us: int) -> bool:
        """Tell whether there is something to `retreat`: the last that became due is not due at this time."""
        return bool(self.due) and self.times[next(reversed(self.due))] > now_us

    def behind(self, now_us: int) -> int:
        """The number of due keys that `advance` has not found yet."""
        return self._order.count(b"", _end(now_us))

    def free(self, at_once: int) -> Iterator[None]:
        """Let go of all keys, so many at each step."""
        yield from emptying(self.times, at_once)
        yield from emptying(self.due, at_once)
        yield from self._order.free()


def _packed(expires_us: int, key: Key) -> bytes:
    return expires_us.to_bytes(_TIME_BYTES, "big") + key


def _end(now_us: int) -> bytes:
    """Behind all that are due at this time."""
    return (now_us + 1).to_bytes(_TIME_BYTES, "big")
