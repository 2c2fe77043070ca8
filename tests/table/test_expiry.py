"""Which keys are due, whatever was set, replaced and taken away before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvsd.table.expiry import Expiries


def test_a_key_is_due_from_its_time_on() -> None:
    expiries = Expiries()
    expiries.set(b"k", 10)
    expiries.advance(9)
    assert not expiries.due
    expiries.advance(10)
    assert list(expiries.due) == [b"k"]


def test_a_replaced_expiry_does_not_count() -> None:
    expiries = Expiries()
    expiries.set(b"later", 10)
    expiries.set(b"later", 20)
    expiries.set(b"never", 10)
    expiries.set(b"never", 0)
    expiries.advance(15)
    assert not expiries.due
    assert expiries.times == {b"later": 20}


def test_a_key_that_is_due_and_written_anew_is_due_no_more() -> None:
    expiries = Expiries()
    expiries.set(b"k", 10)
    expiries.advance(10)
    expiries.set(b"k", 30)
    assert not expiries.due
    expiries.advance(30)
    assert list(expiries.due) == [b"k"]


def test_an_expiry_that_is_set_over_and_over_does_not_pile_up() -> None:
    expiries = Expiries()
    for time in range(1, 10_000):
        expiries.set(b"k", time)
    assert expiries._order.count(b"", None) == 1


def test_a_key_that_is_found_late_hides_none_whose_time_is_ahead_again() -> None:
    expiries = Expiries()
    expiries.set(b"tomorrow", 90)
    expiries.advance(100)  # the clock is ahead
    expiries.set(b"soon", 20)
    expiries.advance(100)
    assert expiries.is_ahead(25)  # and is set right
    assert expiries.retreat(25) == [b"tomorrow"]
    assert expiries.found(25, at_most=9) == [b"soon"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"a", b"b", b"c", b"d"]), st.integers(0, 30), st.integers(-15, 15), st.integers(1, 3)
        ),
        max_size=40,
    )
)
def test_due_is_what_the_clock_says_though_it_goes_back_and_forth(steps: list[tuple[bytes, int, int, int]]) -> None:
    expiries, times = Expiries(), dict[bytes, int]()
    now = 15
    for key, expires_us, later, at_most in steps:
        expiries.set(key, expires_us)
        times[key] = expires_us
        now = max(0, now + later)
        due = {key for key, time in times.items() if time and time <= now}
        assert expiries.past(now) == len(due)
        while expiries.is_ahead(now) or expiries.behind(now):
            assert expiries.retreat(now, at_most) + expiries.advance(now, at_most)
        assert set(expiries.due) == due
        assert expiries.found(now, 9) == sorted(due, key=lambda key: (times[key], key))


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 9), st.integers(0, 9))))
def test_due_is_what_a_search_of_all_keys_would_find(steps: list[tuple[bytes, int, int]]) -> None:
    expiries, times = Expiries(), dict[bytes, int]()
    now = 0
    for key, expires_us, later in steps:
        expiries.set(key, expires_us)
        times[key] = expires_us
        now += later
        expiries.advance(now)
        assert set(expiries.due) == {key for key, time in times.items() if time and time <= now}
