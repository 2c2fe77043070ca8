"""What a table of a given shape takes of memory and disk, told before there is one.

Owns: the arithmetic over the layouts, whose figures stay with their owners. Must not know settings, nor who asks.
Checked against a real table by tests/table/test_sizing.py and benchmarks/recovery.py.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from kvsd.table import hint
from kvsd.table.compaction_output import MARGIN_BYTES
from kvsd.table.entry import HEADER_BYTES
from kvsd.table.index import pack
from kvsd.table.segment_header import OVERHEAD_BYTES, SEGMENT_HEADER_BYTES
from kvsd.table.work import RESERVE_BYTES

_ALLOCATION: Final = 16
"""CPython rounds the size of an object up to a multiple of it."""
_POOL_SHARE: Final = 1.01
"""With what its pools of small objects need."""
_SLOT_BYTES: Final = 4
_ENTRY_BYTES: Final = 24
"""A dict has a power of two of slots, and entries for two thirds of them; it doubles once these are used up."""
_ORDER_BYTES: Final = 18
"""Measured while an order is built; 10 stay in use, and most of the others stay with the process."""


class Memory(NamedTuple):
    """In bytes."""

    keys: int
    """At rest."""
    peak: int
    """While the index last doubled, or at rest, where that is more."""
    order: int
    """On top, once somebody has scanned."""


class Disk(NamedTuple):
    """In bytes."""

    entries: int
    """One for each key, with the headers and SEALs of their segments; exact."""
    hints: int
    """Of these segments; exact."""
    garbage: int
    room: int
    """For a segment that is written, one that a compaction or a start puts in the place of others, and a margin."""


def memory(keys: int, key_bytes: int) -> Memory:
    """Of `keys` keys, at least one: those that were deleted and not yet compacted away are keys, too.

    Not in it: 150 bytes for each key with an expiry, and cached values.
    """
    a_key = int((_allocated(sys.getsizeof(b"") + key_bytes) + sys.getsizeof(LARGEST_LOCATION)) * _POOL_SHARE)
    slots = 8
    while slots * 2 // 3 < keys:
        slots *= 2
    at_rest = keys * a_key + _table_bytes(slots)
    # The old table is there until all of it is in the new one.
    before = slots // 2
    doubling = before * 2 // 3 * a_key + _table_bytes(before) + _table_bytes(slots) if before >= 8 else 0
    return Memory(at_rest, max(at_rest, doubling), keys * _ORDER_BYTES)


def disk(keys: int, key_bytes: int, value_bytes: int, *, segment_bytes: int, garbage: float) -> Disk:
    """Of one set of each of `keys` keys, at least one, and `garbage`, the share from 0 to less than 1 of the log that
    is replaced entries."""
    entry_bytes = HEADER_BYTES + key_bytes + value_bytes
    in_full = max(1, (segment_bytes - SEGMENT_HEADER_BYTES) // entry_bytes)
    full, rest = divmod(keys, in_full)
    segments = full + (rest > 0)
    entries = keys * entry_bytes + segments * OVERHEAD_BYTES
    hints = full * hint.size_bytes(in_full, key_bytes) + (hint.size_bytes(rest, key_bytes) if rest else 0)
    dead = int((entries + hints) * garbage / (1 - garbage))
    return Disk(entries, hints, dead, 2 * max(segment_bytes, entry_bytes) + MARGIN_BYTES + RESERVE_BYTES)


LARGEST_LOCATION: Final = pack((1 << 64) - 1, 0, 0)


def _allocated(size: int) -> int:
    return -(-size // _ALLOCATION) * _ALLOCATION


def _table_bytes(slots: int) -> int:
    return slots * _SLOT_BYTES + slots * 2 // 3 * _ENTRY_BYTES
