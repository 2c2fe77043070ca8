"""What is still wanted of a log's entries."""

from __future__ import annotations

from kvsd.table.entry import Kind, Record
from kvsd.table.index import TOMBSTONE, Index, pack
from kvsd.table.retention import Retention


def record(kind: Kind, key: bytes, seq: int) -> Record:
    return kind, key, seq, 0, 0, 0


def wanted(index: Index, *records: tuple[Record, int], nothing_older: bool = False) -> list[bool]:
    """Of records with their previous seqs."""
    return Retention(index, nothing_older=nothing_older).wanted(
        [found for found, _ in records], lambda at: records[at][1]
    )


def index_of(**newest: tuple[int, bool]) -> Index:
    """Key → seq of its newest entry, and whether that is a tombstone."""
    index = Index()
    for key, (seq, is_tombstone) in newest.items():
        index.put(key.encode(), pack(seq, 0, 0, TOMBSTONE if is_tombstone else 0))
    return index


def test_the_newest_value_is_wanted_and_older_ones_are_not() -> None:
    index = index_of(k=(5, False))
    assert wanted(index, (record(Kind.SET, b"k", 2), 0), (record(Kind.SET, b"k", 5), 2)) == [False, True]
    assert wanted(index, (record(Kind.SET, b"unknown", 2), 0)) == [False]


def test_a_tombstone_is_wanted_while_an_older_segment_may_hold_its_key() -> None:
    index = index_of(k=(5, True))
    for kind in (Kind.DELETE, Kind.EXPIRED):
        assert wanted(index, (record(kind, b"k", 5), 3)) == [True]
        assert wanted(index, (record(Kind.SET, b"k", 3), 1), (record(kind, b"k", 5), 3)) == [False, True]
        assert wanted(index, (record(kind, b"k", 5), 3), nothing_older=True) == [False]
        assert wanted(index, (record(Kind.SET, b"k", 3), 0), (record(kind, b"k", 5), 3)) == [False, False]


def test_a_tombstone_that_is_not_the_newest_is_never_wanted() -> None:
    assert wanted(index_of(k=(5, False)), (record(Kind.DELETE, b"k", 3), 1)) == [False]


def test_a_clear_and_a_link_of_the_chain_are_always_wanted() -> None:
    both = (record(Kind.CLEAR, b"", 3), 0), (record(Kind.CHAIN, b"", 4), 0)
    assert wanted(index_of(), *both, nothing_older=True) == [True, True]
