"""Which entries of a log are still wanted.

Owns: that rule, in one place. Must not know files, nor how a compaction goes about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from kvsd.table.entry import TOMBSTONES, Kind, Record
from kvsd.table.index import TOMBSTONE, Index, seq_of
from kvsd.types import Key

_ALWAYS: Final = frozenset((Kind.CLEAR, Kind.CHAIN))


class Retention:
    """Judges the records of one run of segments, in their order; the index may change in between.

    The newest entry of a key is wanted. If it is a tombstone, then only while an older segment may hold the key: not
    if none holds anything that is replaced (`nothing_older`), nor if the key's first entry of all is in the run. An
    expired value is wanted like any other, until the sweep has logged it: replay knows no clock.
    """

    __slots__ = ("_born", "_index", "_nothing_older")

    def __init__(self, index: Index, *, nothing_older: bool) -> None:
        self._index = index
        self._nothing_older = nothing_older
        self._born: set[Key] = set()
        """Keys that are deleted by now, and whose first entry of all was in this run."""

    def wanted(self, records: Sequence[Record], prev_seq: Callable[[int], int]) -> list[bool]:
        """One answer for each of `records`; `prev_seq` tells the previous seq that the record at a place names."""
        find, born = self._index.find, self._born
        answers: list[bool] = []
        for place, (kind, key, seq, _, _, _) in enumerate(records):
            if kind in _ALWAYS:
                answers.append(True)
                continue
            location = find(key)
            is_newest = location is not None and seq_of(location) == seq
            if location is not None and location & TOMBSTONE and not self._nothing_older:
                # No previous entry means that the log held none then; what came since is here or newer.
                if not prev_seq(place):
                    born.add(key)
                if is_newest and key in born:
                    born.discard(key)
                    is_newest = False
            elif is_newest and kind in TOMBSTONES:
                is_newest = False
            answers.append(is_newest)
        return answers
