"""Key → Location of the newest entry, in memory (Bitcask's keydir).

Owns: the packing of a Location into one int: about 155 bytes a key in all, against 267 with tuples or objects.
Must not know files; a position is opaque here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from kvsd.table.entry import TOMBSTONES, Kind
from kvsd.table.scan import Record
from kvsd.types import Key

Location: TypeAlias = int
"""seq (64 bits) | position (64) | value_bytes (32) | flags (8), most significant first: 168 bits are 48 bytes."""

TOMBSTONE: Final = 1


def pack(seq: int, position: int, value_bytes: int, flags: int = 0) -> Location:
    return seq << 104 | position << 40 | value_bytes << 8 | flags


def seq_of(location: Location) -> int:
    return location >> 104


def position_of(location: Location) -> int:
    return location >> 40 & 0xFFFFFFFFFFFFFFFF


def value_bytes_of(location: Location) -> int:
    return location >> 8 & 0xFFFFFFFF


def is_tombstone(location: Location) -> bool:
    return bool(location & TOMBSTONE)


class Index:
    """Tombstones stay, flagged, so that a recreated key knows its previous entry."""

    __slots__ = ("_locations", "live")

    def __init__(self) -> None:
        self._locations: dict[Key, Location] = {}
        self.live = 0
        """Keys that have a value."""

    def __len__(self) -> int:
        """Keys, the deleted ones included."""
        return len(self._locations)

    def find(self, key: Key) -> Location | None:
        """The newest entry's Location, which may be a tombstone's; None for a key never seen."""
        return self._locations.get(key)

    def put(self, key: Key, location: Location) -> None:
        old = self._locations.get(key)
        was_live = old is not None and not old & TOMBSTONE
        self._locations[key] = location
        self.live += (not location & TOMBSTONE) - was_live

    def replay(self, records: Iterable[Record]) -> None:
        """Build the index from a log's records, in their order.

        Packing in this loop, and counting at its end, takes 0.8 µs of the 1.9 that an entry took with calls.
        """
        locations = self._locations
        for kind, key, seq, position, value_bytes in records:
            if kind == Kind.SET:
                locations[key] = seq << 104 | position << 40 | value_bytes << 8
            elif kind in TOMBSTONES:
                locations[key] = pack(seq, position, 0, TOMBSTONE)
            elif kind == Kind.CLEAR:
                locations.clear()
        self.live = sum(1 for location in locations.values() if not location & TOMBSTONE)
