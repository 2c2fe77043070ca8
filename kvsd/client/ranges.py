"""Ranges of keys: from a prefix and bounds to one start and one end.

Owns: that arithmetic. Knows nothing of calls.
"""

from __future__ import annotations

from typing import NamedTuple

from kvsd.types import Key, KeyLike, to_bytes


class Range(NamedTuple):
    start: Key
    """Included."""
    end: Key | None
    """Excluded; None: to the last key."""


def range_of(prefix: KeyLike, start: KeyLike | None, end: KeyLike | None) -> Range:
    """The keys that begin with `prefix`, from `start` (included) to `end` (excluded)."""
    first, behind = to_bytes(prefix), _behind(to_bytes(prefix))
    if start is not None:
        first = max(first, to_bytes(start))
    if end is not None:
        behind = to_bytes(end) if behind is None else min(behind, to_bytes(end))
    return Range(first, behind)


def _behind(prefix: Key) -> Key | None:
    """The first key behind all that begin with `prefix`."""
    shorter = prefix.rstrip(b"\xff")
    return shorter[:-1] + bytes((shorter[-1] + 1,)) if shorter else None
