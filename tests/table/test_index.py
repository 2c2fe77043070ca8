"""The packing of locations, and the count of live keys."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from kvsd.table import index
from kvsd.table.entry import Kind
from kvsd.table.index import Index

U64 = st.integers(0, 2**64 - 1)


@given(seq=U64, position=U64, value_bytes=st.integers(0, 2**32 - 1), flags=st.integers(0, 255))
def test_every_field_of_a_location_comes_back(seq: int, position: int, value_bytes: int, flags: int) -> None:
    location = index.pack(seq, position, value_bytes, flags)
    assert index.seq_of(location) == seq
    assert index.position_of(location) == position
    assert index.value_bytes_of(location) == value_bytes
    assert index.is_tombstone(location) == bool(flags & 1)


def test_a_location_is_as_small_as_told() -> None:
    assert sys.getsizeof(index.pack(2**64 - 1, 2**64 - 1, 2**32 - 1, 255)) <= 48


def test_tombstones_stay_and_do_not_count_as_live() -> None:
    found = Index()
    found.put(b"a", index.pack(1, 1, 1))
    found.put(b"b", index.pack(2, 2, 1))
    found.put(b"a", index.pack(3, 3, 0, index.TOMBSTONE))
    assert (found.live, len(found)) == (1, 2)
    location = found.find(b"a")
    assert location is not None
    assert index.is_tombstone(location)
    found.put(b"a", index.pack(4, 4, 0, index.TOMBSTONE))
    assert found.live == 1
    found.put(b"a", index.pack(5, 5, 9))
    assert found.live == 2
    assert found.find(b"never") is None


def test_a_replay_gives_what_the_same_puts_would() -> None:
    found = Index()
    found.replay(
        [
            (Kind.SET, b"gone", 1, 10, 5),
            (Kind.CLEAR, b"", 2, 20, 0),
            (Kind.SET, b"a", 3, 30, 5),
            (Kind.SET, b"b", 4, 40, 6),
            (Kind.CHAIN, b"b", 5, 50, 6),
            (Kind.DELETE, b"a", 6, 60, 0),
            (Kind.EXPIRED, b"c", 7, 70, 0),
        ]
    )
    assert found.find(b"gone") is None
    assert found.find(b"a") == index.pack(6, 60, 0, index.TOMBSTONE)
    assert found.find(b"b") == index.pack(4, 40, 6)
    assert found.find(b"c") == index.pack(7, 70, 0, index.TOMBSTONE)
    assert (found.live, len(found)) == (1, 3)
