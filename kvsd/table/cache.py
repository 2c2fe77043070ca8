"""Recently used values in memory, within a bound.

Owns: what is kept and what goes. Must not know where values come from; its user puts only committed ones in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from kvsd.table.memory import emptying
from kvsd.types import Key, Value

_ENTRY_BYTES: Final = 220
"""Measured beside key and value: two object headers, a slot and a link of the ordered dict."""

_TRIMMED_AT_ONCE: Final = 2_000


class ValueCache:
    """Least recently used goes first. A hit costs 28 ns for the move, twice what a CLOCK bit in a set would cost,
    and needs no second structure and no sweep (docs/decisions/0001-lru-cache.md)."""

    __slots__ = ("_values", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        """May be changed; `trim` brings the cache within it."""
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: Key) -> Value | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Keep `value` unless it alone would push out a large part of the others."""
        values = self._values
        old = values.pop(key, None)
        used = self.used_bytes if old is None else self.used_bytes - _cost(key, old)
        cost = _ENTRY_BYTES + len(key) + len(value)
        if cost <= self.limit_bytes >> 3:
            values[key] = value
            used += cost
        self.used_bytes = used
        if used > self.limit_bytes:
            self.trim()

    def trim(self) -> bool:
        """Let some values go while there are too many, a millisecond's worth; whether there are still too many."""
        values, used = self._values, self.used_bytes
        for _ in range(_TRIMMED_AT_ONCE):
            if used <= self.limit_bytes:
                break
            used -= _cost(*values.popitem(last=False))
        self.used_bytes = used
        return used > self.limit_bytes

    def free(self, at_once: int) -> Iterator[None]:
        """Let go of all values, so many at each step."""
        yield from emptying(self._values, at_once)

    def discard(self, key: Key) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self.used_bytes -= _cost(key, value)


def _cost(key: Key, value: Value) -> int:
    return _ENTRY_BYTES + len(key) + len(value)
