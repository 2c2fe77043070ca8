"""Numbers, times, rolls, fills and syncs of one log."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kvsd.table.entry import HEADER, HEADER_BYTES, Header, Kind
from kvsd.table.log import MAX_FILL_BYTES
from kvsd.table.segment import FIRST_FILL_BYTES, Segment
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES
from kvsd.types import Fsync
from tests.table.driver import START_US, Table, segments
from tests.table.medium import Call, FaultyMedium


def entries(path: Path) -> list[Header]:
    """The headers of one segment's entries, whatever they say."""
    data = path.read_bytes()
    found = []
    at = SEGMENT_HEADER_BYTES
    while len(data) - at >= HEADER_BYTES and any(data[at : at + HEADER_BYTES]):
        found.append(Header._make(HEADER.unpack_from(data, at)))
        at += HEADER_BYTES + found[-1].key_bytes + found[-1].value_bytes
    return found


def all_entries(table: Table) -> list[Header]:
    return [header for path in segments(table.directory) for header in entries(path)]


def test_a_log_rolls_and_nothing_is_lost_on_the_way(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=500)
    expected = {b"%d" % number: b"value %d" % number for number in range(40)}
    for key, value in expected.items():
        table.put(key, value)
    assert len(segments(table.directory)) > 5
    assert table.items() == expected
    for path in segments(table.directory)[:-1]:
        assert path.stat().st_size <= 500 + HEADER_BYTES + 24
        assert entries(path)[-1].kind == Kind.SEAL
    table.stop()
    again = Table(medium, tmp_path, segment_bytes=500)
    assert again.items() == expected
    again.kill()


def test_one_group_may_roll_several_times(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=400)
    for number in range(20):
        table.set(b"%d" % number, bytes(100))
    table.commit()
    assert len(segments(table.directory)) > 5
    assert len(table.items()) == 20
    table.put(b"more", b"v")
    table.kill()
    assert not medium.open_files
    again = Table(medium, tmp_path)
    assert len(again.items()) == 21
    again.kill()


def test_an_entry_larger_than_a_segment_has_one_of_its_own(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    table.put(b"small", b"v")
    table.put(b"large", bytes(5_000))
    table.put(b"after", b"v")
    assert len(segments(table.directory)) == 3
    assert len(table.items()) == 3
    table.kill()


def test_numbers_and_times_rise_over_rolls_and_restarts_and_each_entry_knows_the_one_before(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    for _ in range(3):
        table = Table(medium, tmp_path, segment_bytes=400)
        for number in range(5):
            table.put(b"k", b"%d" % number)
            if number == 2:
                table.remove(b"k")
        table.stop()
    headers = all_entries(table)
    assert all(a.seq < b.seq and a.timestamp_us < b.timestamp_us for a, b in itertools.pairwise(headers))
    writes = [header for header in headers if header.kind != Kind.SEAL]
    assert [header.prev_seq for header in writes] == [0, *(header.seq for header in writes[:-1])]


@pytest.mark.parametrize("clock", [lambda: START_US, iter(range(START_US + 100, START_US, -1)).__next__])
def test_times_rise_although_the_clock_does_not(tmp_path: Path, clock: object) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, now_us=clock)  # type: ignore[arg-type]
    for _ in range(5):
        table.put(b"k", b"v")
    table.stop()
    times = [header.timestamp_us for header in all_entries(table)]
    assert all(a < b for a, b in itertools.pairwise(times))


def test_entries_say_how_far_the_segment_was_synced_before_them(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    table.set(b"a", b"")
    table.set(b"b", b"")
    table.commit()
    table.put(b"c", b"")
    table.kill()
    first, second, third = entries(segments(table.directory)[0])
    assert first.synced_to == second.synced_to == SEGMENT_HEADER_BYTES
    assert third.synced_to == SEGMENT_HEADER_BYTES + 2 * (HEADER_BYTES + len(b"a"))


def test_a_group_that_was_staged_during_a_sync_counts_on_it_by_its_first_entry_alone(tmp_path: Path) -> None:
    """Which is written once that sync is over."""
    table = Table(FaultyMedium(tmp_path), tmp_path)
    table.set(b"a", b"")
    commit = table.store.take()
    assert commit is not None
    table.set(b"b", b"")
    table.set(b"c", b"")
    commit.append.run()
    table.store.committed(commit)
    table.put(b"d", b"")
    table.stop()
    synced_to = SEGMENT_HEADER_BYTES + HEADER_BYTES + 1
    [path] = segments(table.directory)
    assert [header.synced_to for header in entries(path)[:4]] == [SEGMENT_HEADER_BYTES, synced_to] * 2
    again = Table(FaultyMedium(tmp_path), tmp_path)
    assert len(again.items()) == 4, "the SEAL does not fit"
    again.kill()


def test_a_sync_at_intervals_is_what_later_entries_count_on(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, fsync=Fsync.INTERVAL)
    syncs = medium.counts[Call.SYNC]
    table.put(b"a", b"")
    table.put(b"b", b"")
    assert medium.counts[Call.SYNC] == syncs
    table.sync()
    assert medium.counts[Call.SYNC] == syncs + 1
    assert table.log.sync() is None
    table.put(b"c", b"")
    table.kill()
    synced_to = [header.synced_to for header in entries(segments(table.directory)[0])]
    assert synced_to == [SEGMENT_HEADER_BYTES] * 2 + [SEGMENT_HEADER_BYTES + 2 * (HEADER_BYTES + 1)]


def test_an_interval_sync_that_ends_behind_a_roll_is_of_no_use_to_the_new_segment(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, fsync=Fsync.INTERVAL, segment_bytes=530)
    table.put(b"a", bytes(100))
    sync = table.log.sync()
    assert sync is not None
    table.put(b"b", bytes(200))
    sync.run()
    table.log.synced(sync)
    table.put(b"c", b"")
    table.kill()
    assert entries(segments(table.directory)[1])[1].synced_to == SEGMENT_HEADER_BYTES


def test_fills_grow_up_to_their_limit_and_no_further_than_the_segment(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    limit = 9 << 20
    table = Table(medium, tmp_path, segment_bytes=limit)
    sizes = []
    for number in range(100):
        table.put(b"%d" % number, bytes(100_000 if number % 2 else 10))
        fill = table.log.fill()
        if fill is not None:
            assert table.log.fill() is None, "one at a time"
            assert fill.start >= table.log._tail.end
            assert fill.start + fill.size <= limit
            fill.run()
            table.log.filled(fill)
            sizes.append(fill.size)
    assert sizes[0] == FIRST_FILL_BYTES
    assert max(sizes) == MAX_FILL_BYTES
    assert len(table.items()) == 100
    table.stop()


def test_a_small_table_reserves_little(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    for number in range(100):
        table.put(b"%d" % number, b"v")
        table.fill()
    assert segments(table.directory)[0].stat().st_size < 2 * FIRST_FILL_BYTES
    table.kill()


def test_appends_inside_the_filled_part_change_no_size(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    table.put(b"k", b"v")
    table.fill()
    size = segments(table.directory)[0].stat().st_size
    table.put(b"k", b"w")
    assert segments(table.directory)[0].stat().st_size == size
    assert table.log.fill() is None
    table.kill()


def test_an_append_waits_for_the_fill_that_is_in_its_way(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    table.put(b"k", b"v")
    fill = table.log.fill()
    assert fill is not None
    table.set(b"k", b"w")
    assert table.store.take() is None
    fill.run()
    table.log.filled(fill)
    table.commit()
    assert table.get(b"k") == b"w"
    table.kill()


def test_a_log_that_never_syncs_is_never_filled(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, fsync=Fsync.NEVER)
    syncs = medium.counts[Call.SYNC]
    table.put(b"k", b"v")
    assert table.log.fill() is None
    assert medium.counts[Call.SYNC] == syncs
    table.kill()


def test_nothing_to_do_is_no_job(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.log.take() is None
    assert table.log.sync() is None
    table.stop()


def test_a_fill_meets_a_full_disk_in_silence(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    medium.room_bytes = 1_000
    table.fill()
    table.put(b"k", b"w")
    table.kill()
    medium.heal()
    assert Table(medium, tmp_path).get(b"k") == b"w"
    medium.kill()


def test_a_read_keeps_its_descriptor_while_the_log_closes(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    medium.reads_cached = False
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    read = table.store.get(b"k")
    table.stop()
    assert len(medium.open_files) == 1
    assert read.run().value == b"v"  # type: ignore[union-attr]
    read.done()  # type: ignore[union-attr]
    assert not medium.open_files


def test_a_segment_that_is_born_in_a_roll_is_known_by_its_header(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=300)
    table.put(b"a", bytes(100))
    table.put(b"b", bytes(100))
    table.kill()
    first, second = (Segment.open(medium, path).header for path in segments(table.directory))
    assert second.table_id == first.table_id
    assert second.mark != first.mark
    assert (first.covered_from, second.covered_from) == (1, 3)
    assert second.base_seq == 2
    medium.kill()
