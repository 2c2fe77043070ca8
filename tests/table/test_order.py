from bisect import bisect_left
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsd.table import order
from kvsd.table.order import KeyOrder

KEYS = st.binary(max_size=3)
CHANGES = st.lists(st.tuples(st.booleans(), KEYS), max_size=60)
RANGES = st.lists(st.tuples(KEYS, st.none() | KEYS, st.integers(1, 20)), min_size=1, max_size=10)


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_BUCKET_KEYS", 4)
    monkeypatch.setattr(order, "_SLICE_KEYS", 3)


def built(keys: set[bytes]) -> KeyOrder:
    result = KeyOrder()
    for _ in result.build(keys):
        pass
    return result


def change(keys: set[bytes], target: KeyOrder, is_there: bool, key: bytes) -> None:
    if is_there:
        keys.add(key)
        target.add(key)
    else:
        keys.discard(key)
        target.discard(key)


def check(keys: set[bytes], target: KeyOrder, start: bytes, end: bytes | None, limit: int) -> None:
    model = sorted(keys)
    first = bisect_left(model, start)
    last = len(model) if end is None else max(first, bisect_left(model, end))
    assert target.page(start, end, limit) == model[first:last][:limit]
    assert target.count(start, end) == last - first


@given(st.sets(KEYS, max_size=60), CHANGES, RANGES)
def test_pages_and_counts_are_those_of_a_sorted_list(
    keys: set[bytes], changes: list[tuple[bool, bytes]], ranges: list[tuple[bytes, bytes | None, int]]
) -> None:
    target = built(keys)
    for is_there, key in changes:
        change(keys, target, is_there, key)
    for start, end, limit in ranges:
        check(keys, target, start, end, limit)


@given(st.sets(KEYS, max_size=60), st.lists(CHANGES, max_size=12), RANGES)
def test_what_changes_during_a_build_is_neither_lost_nor_undone(
    keys: set[bytes], changes: list[list[tuple[bool, bytes]]], ranges: list[tuple[bytes, bytes | None, int]]
) -> None:
    target = KeyOrder()
    rounds: Iterator[list[tuple[bool, bytes]]] = iter(changes)
    seen = set(keys)
    for _ in target.build(seen, lambda key: key in keys):
        for is_there, key in next(rounds, []):
            change(keys, target, is_there, key)
    assert target.is_built
    for start, end, limit in ranges:
        check(keys, target, start, end, limit)


@settings(max_examples=20)
@given(st.sets(KEYS, min_size=20, max_size=60), st.integers(1, 12))
def test_a_build_that_is_given_up_leaves_nothing_behind(keys: set[bytes], steps: int) -> None:
    target = KeyOrder()
    build = target.build(keys)
    for _ in range(steps):
        next(build, None)
        if target.is_built:
            return
    build.close()  # type: ignore[attr-defined]
    target.add(b"unheard")
    for _ in target.build(keys - {b"unheard"}):
        pass
    check(keys - {b"unheard"}, target, b"", None, 100)


def test_nothing_is_kept_before_somebody_scans() -> None:
    target = KeyOrder()
    target.add(b"key")
    target.discard(b"other")
    assert not target.is_built
    assert [*target.build([b"key"])]
    assert target.page(b"", None, 9) == [b"key"]


def test_a_build_stops_often_however_the_keys_were_ordered() -> None:
    keys = [b"%05d" % (number * 7919 % 20_000) for number in range(20_000)]
    steps = sum(1 for _ in KeyOrder().build(keys))
    assert steps > len(keys) / 3


def test_a_table_that_is_emptied_and_filled_again_is_in_order() -> None:
    keys = {b"%03d" % number for number in range(100)}
    target = built(keys)
    for key in sorted(keys):
        target.discard(key)
    assert target.count(b"", None) == 0
    for key in sorted(keys, reverse=True):
        target.add(key)
    assert target.page(b"", None, 1_000) == sorted(keys)
