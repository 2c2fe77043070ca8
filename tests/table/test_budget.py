"""The one counter of bytes that requests hold."""

from __future__ import annotations

from kvsd.table.budget import Budget


def test_what_fits_exactly_is_held_and_one_byte_more_is_refused() -> None:
    budget = Budget(100)
    assert budget.hold(60)
    assert not budget.hold(41)
    assert budget.held_bytes == 60
    assert budget.hold(40)
    assert not budget.hold(1)
    budget.release(100)
    assert budget.held_bytes == 0
    assert budget.hold(0)
