"""What counting, appending and expiring make of a value."""

from __future__ import annotations

import pytest

from kvsd.errors import InvalidValue
from kvsd.table import updates
from kvsd.table.request import Change

MAX, MIN = 2**63 - 1, -(2**63)


@pytest.mark.parametrize(
    ("old", "amount", "total"),
    [
        (None, 1, 1),
        (None, -5, -5),
        (b"41", 1, 42),
        (b"0", 0, 0),
        (b"-3", 5, 2),
        (b"%d" % (MAX - 1), 1, MAX),
        (None, MIN, MIN),
    ],
)
def test_a_counter_counts_and_keeps_its_expiry(old: bytes | None, amount: int, total: int) -> None:
    assert updates.increment(amount)(old, 7) == Change(total, b"%d" % total, 7)


@pytest.mark.parametrize("old", [b"", b"x", b"1.5", b" 1", b"1\n", b"+1", b"007", b"-", b"9" * 30, "٣".encode()])
def test_what_is_no_integer_is_not_counted_on(old: bytes) -> None:
    with pytest.raises(InvalidValue, match="no integer"):
        updates.increment(1)(old, 0)


@pytest.mark.parametrize(("old", "amount"), [(MAX, 1), (MIN, -1), (MAX, MAX), (MIN, MIN), (None, MAX + 1)])
def test_a_counter_does_not_overflow(old: int | None, amount: int) -> None:
    with pytest.raises(InvalidValue, match="the sum is no integer of 64 bits"):
        updates.increment(amount)(None if old is None else b"%d" % old, 0)


def test_append_keeps_the_expiry_and_the_limit() -> None:
    append = updates.append(b"cd", max_value_bytes=4)
    assert append(None, 0) == Change(2, b"cd", 0)
    assert append(b"ab", 9) == Change(4, b"abcd", 9)
    with pytest.raises(InvalidValue, match="would have 5 bytes, the limit is 4"):
        append(b"abc", 0)


def test_replace_gives_the_old_value_and_takes_the_expiry_away() -> None:
    assert updates.replace(b"new")(b"old", 9) == Change(b"old", b"new", 0)
    assert updates.replace(b"new")(None, 0) == Change(None, b"new", 0)


def test_expire_and_persist_write_only_where_that_changes_something() -> None:
    assert updates.expire(50)(b"v", 0) == Change(1, b"v", 50)
    assert updates.expire(50)(b"v", 50).is_kept
    assert updates.expire(50)(None, 0) == Change(0, None, 50, is_kept=True)
    assert updates.persist(b"v", 50) == Change(1, b"v")
    assert updates.persist(b"v", 0) == Change(0, b"v", is_kept=True)
    assert updates.persist(None, 0) == Change(0, None, is_kept=True)
