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

    __slots__ = ("_due_order", "_order", "due", "ever", "times")

    def __init__(self) -> None:
        self.times: dict[Key, int]
        """Key → microseconds since 1970."""
        self.ever: bool
        """Whether any key has had an expiry since the start; until then nobody pays for looking."""
        self.due: dict[Key, None]
        """Keys that `advance` has found to be due: invisible, and not yet swept."""
        self._due_order: KeyOrder
        """The keys in `due`, each behind its time: what was written late may be due before what was found."""
        self._order: KeyOrder
        """The keys that are not in `due`, each behind its time."""
        self.load({})

    def set(self, key: Key, expires_us: int) -> None:
        """Replace the expiry of `key`; 0 takes it away."""
        before = self.times.get(key, 0)
        if key in self.due:
            del self.due[key]
            self._due_order.discard(_packed(before, key))
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
        self._due_order = KeyOrder()
        for _ in self._due_order.build(()):
            pass
        self._order = KeyOrder()
        # Not sorted in one call: it would keep the interpreter from all other threads for half a second.
        for _ in self._order.build(map(_packed, times.values(), times)):
            pass

    def advance(self, now_us: int, at_most: int = AT_ONCE) -> list[Key]:
        """Move keys whose time has come to `due`, the earliest first; returns them."""
        keys = _move(self._order.page(b"", _end(now_us), at_most), self._order, self._due_order)
        self.due.update(dict.fromkeys(keys))
        return keys

    def retreat(self, now_us: int, at_most: int = AT_ONCE) -> list[Key]:
        """Take keys out of `due` whose time has not come after all, since the clock was set back; returns them."""
        if not self.is_ahead(now_us):
            return []
        keys = _move(self._due_order.page(_end(now_us), None, at_most), self._due_order, self._order)
        for key in keys:
            del self.due[key]
        return keys

    def is_ahead(self, now_us: int) -> bool:
        """Tell whether there is something to `retreat`: a key became due that is not due at this time."""
        return bool(self.due) and self._due_order.count(_end(now_us), None) > 0

    def found(self, now_us: int, at_most: int) -> list[Key]:
        """Return keys of `due` whose time has come, the earliest first."""
        return [packed[_TIME_BYTES:] for packed in self._due_order.page(b"", _end(now_us), at_most)]

    def past(self, now_us: int) -> int:
        """The number of keys that are due at this time, whether `advance` has found them or not."""
        return self.behind(now_us) + self._due_order.count(b"", _end(now_us))

    def behind(self, now_us: int) -> int:
        """The number of due keys that `advance` has not found yet."""
        return self._order.count(b"", _end(now_us))

    def free(self, at_once: int) -> Iterator[None]:
        """Let go of all keys, so many at each step."""
        yield from emptying(self.times, at_once)
        yield from emptying(self.due, at_once)
        yield from self._due_order.free()
        yield from self._order.free()


def _packed(expires_us: int, key: Key) -> bytes:
    return expires_us.to_bytes(_TIME_BYTES, "big") + key


def _move(found: list[bytes], source: KeyOrder, target: KeyOrder) -> list[Key]:
    """Returns the keys."""
    for packed in found:
        source.discard(packed)
        target.add(packed)
    return [packed[_TIME_BYTES:] for packed in found]


def _end(now_us: int) -> bytes:
    """Behind all that are due at this time."""
    return (now_us + 1).to_bytes(_TIME_BYTES, "big")
