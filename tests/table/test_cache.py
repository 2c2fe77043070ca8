"""What the cache keeps, and that it counts what it holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvsd.table.cache import ValueCache


def test_the_least_recently_used_goes_first() -> None:
    cache = ValueCache(4_000)
    for number in range(20):
        cache.put(b"%02d" % number, bytes(100))
        assert cache.get(b"00") is not None
    assert cache.get(b"01") is None
    assert cache.get(b"19") is not None
    assert cache.used_bytes <= 4_000


def test_a_value_that_would_push_out_many_is_not_kept_nor_its_older_one() -> None:
    cache = ValueCache(8_000)
    cache.put(b"k", b"old")
    cache.put(b"k", bytes(2_000))
    assert cache.get(b"k") is None
    assert cache.used_bytes == 0


def test_long_keys_count() -> None:
    cache = ValueCache(100_000)
    for number in range(1_000):
        cache.put(b"%01000d" % number, b"")
    kept = sum(cache.get(b"%01000d" % number) is not None for number in range(1_000))
    assert 0 < kept < 100


def test_empty_values_are_kept() -> None:
    cache = ValueCache(8_000)
    cache.put(b"", b"")
    assert cache.get(b"") == b""


def test_without_room_nothing_is_kept() -> None:
    cache = ValueCache(0)
    cache.put(b"k", b"v")
    assert cache.get(b"k") is None
    assert cache.used_bytes == 0


def test_a_lower_limit_is_reached_in_bounded_steps() -> None:
    cache = ValueCache(10_000_000)
    for number in range(20_000):
        cache.put(b"%d" % number, b"v")
    before = cache.used_bytes
    cache.limit_bytes = 100_000
    cache.put(b"next", b"v")
    assert cache.used_bytes > before / 2
    steps = 1
    while cache.trim():
        steps += 1
    assert steps == 9
    assert 90_000 < cache.used_bytes <= 100_000
    assert cache.get(b"next") == b"v"


@given(st.lists(st.tuples(st.sampled_from("pdc"), st.binary(max_size=3), st.binary(max_size=900))))
def test_the_count_returns_to_zero_and_never_passes_the_limit(steps: list[tuple[str, bytes, bytes]]) -> None:
    cache = ValueCache(8_000)
    for action, key, value in steps:
        match action:
            case "p":
                cache.put(key, value)
            case "d":
                cache.discard(key)
            case _:
                cache.get(key)
        assert 0 <= cache.used_bytes <= 8_000
    for _, key, _ in steps:
        cache.discard(key)
    assert cache.used_bytes == 0
