"""What is committed, what is pending, and what a failed commit leaves."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog
from kvsd.table import index
from kvsd.table import store as store_module
from kvsd.table.expiry import AT_ONCE
from kvsd.table.log import Read
from kvsd.table.request import Count, Page, Scan
from tests.table.driver import START_US, Clock, Table, segments
from tests.table.medium import Call, FaultyMedium


@pytest.fixture
def medium(tmp_path: Path) -> FaultyMedium:
    return FaultyMedium(tmp_path)


@pytest.fixture
def table(medium: FaultyMedium) -> Table:
    return Table(medium, medium.root, cache_bytes=1 << 20)


def test_a_staged_write_is_pending_and_not_yet_what_reads_see(table: Table) -> None:
    table.set(b"k", b"v")
    assert table.store.get(b"k") is None
    assert table.store.pending[b"k"].value == b"v"
    table.commit()
    assert table.store.get(b"k") == b"v"
    assert not table.store.pending


def test_a_write_behind_a_taken_one_stays_pending_when_that_is_committed(table: Table) -> None:
    table.set(b"k", b"1")
    first = table.store.take()
    assert first is not None
    table.set(b"k", b"2")
    first.append.run()
    table.store.committed(first)
    assert table.store.get(b"k") == b"1"
    assert table.store.pending[b"k"].value == b"2"
    assert table.store.pending[b"k"].group == first.group + 1
    table.commit()
    assert table.store.get(b"k") == b"2"
    assert not table.store.pending


def test_keys_are_counted_as_they_come_and_go(table: Table) -> None:
    table.put(b"a", b"")
    table.put(b"b", b"")
    table.put(b"a", b"x")
    assert len(table.store) == 2
    table.remove(b"a")
    assert len(table.store) == 1
    assert table.store.get(b"a") is None


def test_a_deleted_key_that_is_set_again_knows_its_tombstone(table: Table) -> None:
    table.put(b"k", b"1")
    table.remove(b"k")
    tombstone = table.log.last_seq
    assert table.store._newest_seq(b"k") == tombstone
    table.set(b"k", b"2")
    assert table.store._newest_seq(b"k") == tombstone + 1


def test_a_failed_commit_leaves_what_was_committed_and_forgets_all_behind_it(
    medium: FaultyMedium, table: Table
) -> None:
    table.put(b"k", b"1")
    committed = index.seq_of(table.store._index._locations[b"k"])
    table.set(b"k", b"2")
    commit = table.store.take()
    assert commit is not None
    table.set(b"k", b"3")
    table.set(b"other", b"x")
    group = table.store.group
    medium.fail(errno.EIO, calls={Call.SYNC})
    with pytest.raises(OSError, match="error"):
        commit.append.run()
    table.store.failed(commit)
    assert table.store.get(b"k") == b"1"
    assert table.store.get(b"other") is None
    assert not table.store.pending
    assert table.store.group > group
    assert table.store.take() is None
    assert table.store._newest_seq(b"k") == committed


def test_the_cache_never_holds_what_is_not_committed(medium: FaultyMedium, table: Table) -> None:
    table.put(b"k", b"1")
    table.set(b"k", b"2")
    medium.fail(errno.EIO, calls={Call.WRITE})
    with pytest.raises(OSError, match="error"):
        table.commit()
    assert table.store.get(b"k") == b"1"


def test_a_value_comes_from_the_cache_then_from_the_page_cache_then_from_a_worker(medium: FaultyMedium) -> None:
    table = Table(medium, medium.root, cache_bytes=1 << 20)
    table.put(b"k", b"v")
    table.stop()
    table = Table(medium, medium.root, cache_bytes=1 << 20)
    reads = medium.counts[Call.READ]
    assert table.store.get(b"k") == b"v"
    assert medium.counts[Call.READ] == reads + 1
    assert table.store.get(b"k") == b"v"
    assert medium.counts[Call.READ] == reads + 1
    table.stop()
    medium.reads_cached = False
    table = Table(medium, medium.root, cache_bytes=1 << 20)
    read = table.store.get(b"k")
    assert isinstance(read, Read)
    assert (read.run().value, read.value_bytes) == (b"v", 1)
    read.done()
    table.stop()
    assert not medium.open_files


def test_damage_is_told_and_the_other_keys_are_served(medium: FaultyMedium) -> None:
    table = Table(medium, medium.root)
    table.put(b"a", b"value of a")
    table.put(b"b", b"value of b")
    path = segments(table.directory)[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(b"value of a", b"value of x"))
    with pytest.raises(CorruptLog, match="damaged"):
        table.store.get(b"a")
    assert table.store.get(b"b") == b"value of b"
    table.remove(b"a")
    assert table.store.get(b"a") is None
    table.put(b"a", b"anew")
    assert table.get(b"a") == b"anew"
    table.kill()


@pytest.mark.parametrize("key", [b"", b"k" * 65_535, b"\0\r\n\xff"])
@pytest.mark.parametrize("value", [b"", bytes(1 << 20)])
def test_any_bytes_come_back_after_a_restart(medium: FaultyMedium, key: bytes, value: bytes) -> None:
    table = Table(medium, medium.root)
    table.put(key, value)
    table.stop()
    again = Table(medium, medium.root)
    assert again.get(key) == value
    again.kill()


# Many keys at once


def test_counts_and_pages_are_right_while_many_keys_have_just_expired(medium: FaultyMedium) -> None:
    """They become due in slices; nobody sees those whose slice has not come."""
    clock = Clock()
    table = Table(medium, medium.root, now_us=clock)
    keys = [b"%04d" % number for number in range(4 * AT_ONCE)]
    for number, key in enumerate(keys):
        table.store.set(key, b"v", clock.now_us + (10 if number % 2 else 1_000))
    table.commit()
    alive = keys[::2]
    assert table.decide(Count(keys[10], keys[-10])) == len(keys) - 20
    clock.now_us += 10
    assert len(table.store) == len(alive)
    assert not table.store.is_ordered
    assert table.decide(Count(keys[10], keys[-10])) == len(alive) - 10
    page = table.decide(Scan(keys[100], None, 50, False))
    assert isinstance(page, Page)
    assert [key for key, _ in page.items] == alive[50:100]
    table.put(keys[11], b"again")
    assert table.decide(Count(keys[10], keys[-10])) == len(alive) - 9
    swept = 0
    while count := table.store.sweep(100):
        swept += count
        table.commit()
    assert swept == len(keys) // 2 - 1
    assert len(table.store) == len(alive) + 1
    assert table.decide(Count(keys[10], keys[-10])) == len(alive) - 9


def test_a_slice_of_expiries_is_bounded(medium: FaultyMedium) -> None:
    clock = Clock()
    table = Table(medium, medium.root, now_us=clock)
    for number in range(3 * AT_ONCE):
        table.store.set(b"%d" % number, b"v", clock.now_us + 10)
    table.commit()
    clock.now_us += 10
    expiries = table.store.index.expiries
    assert len(expiries.advance(clock.now_us)) == AT_ONCE
    assert expiries.behind(clock.now_us) == 2 * AT_ONCE
    assert table.store.sweep(10) == 10
    assert len(expiries.due) == AT_ONCE


def test_a_table_lets_go_of_its_memory_in_slices(medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_FREED_AT_ONCE", 10)
    table = Table(medium, medium.root, cache_bytes=1 << 20)
    for number in range(100):
        table.store.set(b"%d" % number, b"v", START_US * 2)
    table.commit()
    table.decide(Count(b"0", b"9"))
    assert sum(1 for _ in table.store.free()) >= 30
    assert len(table.store.index) == len(table.store.index.expiries.times) == len(table.store.cache._values) == 0
