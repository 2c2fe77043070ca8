"""The packing of locations, and the count of live keys."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from kvsd.table import index
from kvsd.table.entry import Kind
from kvsd.table.index import EXPIRES, TOMBSTONE, Index, pack

U64 = st.integers(0, 2**64 - 1)


@given(seq=U64, position=st.integers(0, 2**78 - 1), value_bytes=st.integers(0, 2**30), flags=st.integers(0, 127))
def test_every_field_of_a_location_comes_back(seq: int, position: int, value_bytes: int, flags: int) -> None:
    location = index.pack(seq, position, value_bytes, flags)
    assert index.seq_of(location) == seq
    assert index.position_of(location) == position
    assert index.value_bytes_of(location) == value_bytes
    assert bool(location & index.TOMBSTONE) == bool(flags & 1)


def test_a_location_is_as_small_as_told() -> None:
    assert sys.getsizeof(index.pack(2**64 - 1, 2**78 - 1, 2**31 - 1, 127)) <= 48


def test_tombstones_stay_and_do_not_count_as_live() -> None:
    found = Index()
    found.put(b"a", index.pack(1, 1, 1))
    found.put(b"b", index.pack(2, 2, 1))
    found.put(b"a", index.pack(3, 3, 0, index.TOMBSTONE))
    assert (found.live, len(found)) == (1, 2)
    location = found.find(b"a")
    assert location is not None
    assert location & index.TOMBSTONE
    found.put(b"a", index.pack(4, 4, 0, index.TOMBSTONE))
    assert found.live == 1
    found.put(b"a", index.pack(5, 5, 9))
    assert found.live == 2
    assert found.find(b"never") is None


def test_a_replay_gives_what_the_same_puts_would() -> None:
    found = Index()
    found.replay(
        [
            (Kind.SET, b"gone", 1, 10, 5, 0),
            (Kind.CLEAR, b"", 2, 20, 0, 0),
            (Kind.SET, b"a", 3, 30, 5, 0),
            (Kind.SET, b"b", 4, 40, 6, 0),
            (Kind.CHAIN, b"b", 5, 50, 6, 0),
            (Kind.DELETE, b"a", 6, 60, 0, 0),
            (Kind.EXPIRED, b"c", 7, 70, 0, 0),
        ]
    )
    found.finish()
    assert found.find(b"gone") is None
    assert found.find(b"a") == index.pack(6, 60, 0, index.TOMBSTONE)
    assert found.find(b"b") == index.pack(4, 40, 6)
    assert found.find(b"c") == index.pack(7, 70, 0, index.TOMBSTONE)
    assert (found.live, len(found)) == (1, 3)


def test_a_replay_keeps_the_newest_expiry_and_a_later_write_takes_it_away() -> None:
    found = Index()
    found.replay(
        [
            (Kind.SET, b"stays", 1, 10, 5, 0),
            (Kind.SET, b"goes", 2, 20, 5, 1_000),
            (Kind.SET, b"goes", 3, 30, 5, 2_000),
            (Kind.SET, b"kept", 4, 40, 5, 3_000),
            (Kind.SET, b"kept", 5, 50, 5, 0),
            (Kind.SET, b"deleted", 6, 60, 5, 4_000),
            (Kind.DELETE, b"deleted", 7, 70, 0, 0),
        ]
    )
    assert found.expiries.times == {b"goes": 2_000}
    assert found.find(b"goes") == index.pack(3, 30, 5, index.EXPIRES)
    assert found.find(b"kept") == index.pack(5, 50, 5)


def test_what_is_replaced_is_counted_as_dead_in_its_segment() -> None:
    found = Index()
    first, second = 1 << 14 << 32, 2 << 14 << 32
    found.replay(
        [(Kind.SET, b"a", 1, first, 10, 0), (Kind.SET, b"b", 2, first, 10, 0), (Kind.SET, b"a", 3, second, 5, 0)]
    )
    assert found.dead_bytes == {1 << 14: 64 + 1 + 10}
    found.put(b"b", index.pack(4, second, 0, index.TOMBSTONE))
    found.put(b"b", index.pack(5, second, 7))
    assert found.dead_bytes == {1 << 14: 2 * 75, 2 << 14: 65}


def test_only_tombstones_of_the_given_segments_are_forgotten() -> None:
    index = Index()
    index.put(b"here", pack(1, 7 << 32, 0, TOMBSTONE))
    index.put(b"newer", pack(2, 8 << 32, 0, TOMBSTONE))
    index.put(b"live", pack(3, 7 << 32, 5))
    index.forget([b"here", b"newer", b"live", b"unknown"], {7})
    assert (index.find(b"here"), len(index), index.live) == (None, 2, 1)


def test_a_copied_entry_is_found_at_its_new_place_or_dead_there() -> None:
    index = Index()
    index.put(b"k", pack(5, 7 << 32 | 100, 3, EXPIRES), 9)
    index.relocate([(Kind.SET, b"k", 4, 8 << 32 | 200, 3, 0), (Kind.SET, b"k", 5, 8 << 32 | 300, 3, 9)])
    assert index.find(b"k") == pack(5, 8 << 32 | 300, 3, EXPIRES)
    assert index.dead_bytes == {8: 64 + 1 + 3}
    index.relocate([(Kind.CLEAR, b"", 6, 8 << 32 | 400, 0, 0)])
    assert index.dead_bytes == {8: 64 + 1 + 3}
