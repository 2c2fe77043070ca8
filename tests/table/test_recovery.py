"""Damage at every byte, torn tails, and chains of segments that do not fit together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog, UnsupportedFormat
from kvsd.table.entry import HEADER_BYTES, MAX_FORMAT_VALUE_BYTES, Kind
from kvsd.table.progress import RecoveryAbandoned, RecoveryProgress
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, parse_name
from kvsd.table.work import RESERVE_NAME
from kvsd.types import Fsync
from tests.table.driver import START_US, Table, files, segments, ticking
from tests.table.encoding import HEADER, Written
from tests.table.medium import FaultyMedium

KEYS = (b"a", b"bb", b"", b"a", b"ccc")
SEGMENT_BYTES = 700


def write(root: Path, *, commits: int, sealed: bool) -> list[dict[bytes, bytes]]:
    """A log of several commits of one to three entries; returns the state after every entry."""
    medium = FaultyMedium(root)
    table = Table(medium, root, segment_bytes=SEGMENT_BYTES)
    states: list[dict[bytes, bytes]] = [{}]
    number = 0
    for commit in range(commits):
        for _ in range(1 + commit % 3):
            key, value = KEYS[number % len(KEYS)], b"value %d" % number
            number += 1
            if number % 4 == 0:
                table.delete(key)
                states.append({k: v for k, v in states[-1].items() if k != key})
            else:
                table.set(key, value)
                states.append(states[-1] | {key: value})
        table.commit()
    table.stop() if sealed else table.kill()
    (table.directory / RESERVE_NAME).unlink()
    return states


def outcome(root: Path) -> dict[bytes, bytes] | str:
    """What a start makes of `root`; a refusal must have changed nothing, and say where."""
    before = files(root)
    medium = FaultyMedium(root)
    try:
        table = Table(medium, root)
    except (CorruptLog, UnsupportedFormat) as error:
        assert files(root) == before
        assert not medium.open_files
        if isinstance(error, CorruptLog):
            assert error.path is not None
            assert error.offset is not None
            assert error.path in str(error)
        return type(error).__name__
    items = table.items()
    table.kill()
    return items


def each_damage(tmp_path: Path, source: Path, damage: Callable[[bytes, int], bytes]) -> list[tuple[str, int, object]]:
    """The outcome of `damage` at every byte of every segment, and at some of the zeros behind."""
    found: list[tuple[str, int, object]] = []
    paths = segments(source / "t")
    contents = {path.name: path.read_bytes() for path in paths}
    folder = tmp_path / "t"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        for at in range(min(len(content), len(content.rstrip(b"\0")) + HEADER_BYTES)):
            for other, data in contents.items():
                (folder / other).write_bytes(damage(data, at) if other == name else data)
            found.append((name, at, outcome(tmp_path)))
            for path in folder.iterdir():
                path.unlink()
    return found


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def cut(data: bytes, at: int) -> bytes:
    return data[:at]


@pytest.mark.parametrize("commits", [4, 8], ids=["one segment", "several"])
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_at_any_byte_is_an_acknowledged_prefix_or_is_told(
    tmp_path: Path, commits: int, sealed: bool, damage: Callable[[bytes, int], bytes]
) -> None:
    source = tmp_path / "source"
    states = write(source, commits=commits, sealed=sealed)
    names = [path.name for path in segments(source / "t")]
    assert len(names) == {4: 1, 8: 3}[commits]
    for name, _, found in each_damage(tmp_path / "damaged", source, damage):
        if isinstance(found, str):
            assert found in ("CorruptLog", "UnsupportedFormat")
        else:
            last_group = 0 if sealed else 1 + (commits - 1) % 3
            assert found in (states[-1 - last_group :] if damage is flip else states)
            assert name == names[-1], "damage in a sealed segment with a successor must be told"


def test_damage_before_synced_entries_is_corruption_and_not_a_torn_tail(tmp_path: Path) -> None:
    segment = Written()
    first = segment.add()
    segment.sync()
    segment.add()
    segment.sync()
    segment.data[first + HEADER_BYTES] ^= 1
    path = segment.save(tmp_path)
    before = files(tmp_path)
    with pytest.raises(CorruptLog, match="Nothing was changed") as caught:
        Table(FaultyMedium(tmp_path), tmp_path)
    assert (caught.value.path, caught.value.offset) == (str(path), first)
    assert files(tmp_path) == before


def test_damage_before_unsynced_entries_is_a_torn_tail(tmp_path: Path) -> None:
    """The pages of one group may reach the disk in any order."""
    segment = Written()
    segment.add(b"a")
    segment.sync()
    second = segment.add(b"b")
    segment.add(b"c")
    segment.data[second] ^= 1
    segment.save(tmp_path)
    assert outcome(tmp_path) == {b"a": b"v"}


def test_a_torn_tail_is_set_aside_each_time_under_its_own_name(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    path = segment.save(tmp_path)
    for number, tail in enumerate((b"torn", b"again"), 1):
        torn = bytes(segment.data) + tail
        path.write_bytes(torn)
        for later in segments(path.parent)[1:]:
            later.unlink()
        table = Table(FaultyMedium(tmp_path), tmp_path)
        assert table.log.torn_tail
        assert table.items() == {b"k": b"v"}
        table.kill()
        assert path.with_name(f"{path.name}.torn-{number}").read_bytes() == torn
    assert path.with_name(f"{path.name}.torn-1").read_bytes().endswith(b"torn")


def test_zeros_behind_the_entries_are_no_torn_tail(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    segment.data += bytes(100_000)
    path = segment.save(tmp_path)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert not table.log.torn_tail
    table.kill()
    assert not list(path.parent.glob("*.torn-*"))
    assert path.stat().st_size < 1_000


def test_damage_far_behind_the_entries_is_found_across_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header that tells of corruption may lie across the border of two reads."""
    segment = Written()
    first = segment.add(value=bytes(500))
    segment.sync()
    segment.add()
    segment.data[first] ^= 1
    segment.save(tmp_path)
    for size in range(90, 170):
        monkeypatch.setattr("kvsd.table.recovery._WINDOW_BYTES", size)
        assert outcome(tmp_path) == "CorruptLog"


def test_a_value_that_holds_a_whole_segment_is_no_part_of_the_log(tmp_path: Path) -> None:
    inner = Written()
    inner.add(b"evil", b"x")
    inner.sync()
    inner.add(b"evil", b"y")
    segment = Written(replace(HEADER, mark=0x0BADCAFE))
    segment.add(b"a")
    segment.sync()
    at = segment.add(b"b", bytes(inner.data))
    for damaged in (False, True):
        if damaged:
            segment.data[at] ^= 1
        segment.save(tmp_path / str(damaged))
    assert outcome(tmp_path / "False") == {b"a": b"v", b"b": bytes(inner.data)}
    assert outcome(tmp_path / "True") == {b"a": b"v"}


def test_an_entry_that_was_moved_is_not_accepted(tmp_path: Path) -> None:
    segment = Written()
    first = segment.add(b"a")
    end = len(segment.data)
    segment.data += segment.data[first:end]
    segment.save(tmp_path)
    assert outcome(tmp_path) == {b"a": b"v"}


def test_an_entry_of_another_segment_is_not_accepted_at_its_own_offset(tmp_path: Path) -> None:
    """Even with the same mark: the segment's id is in the checksum."""
    old = Written()
    old.add(b"stale")
    segment = Written(replace(HEADER, segment_id=2))
    segment.data += old.data[SEGMENT_HEADER_BYTES:]
    path = segment.save(tmp_path)
    assert path.name == "0000000002-0000.seg"
    assert outcome(tmp_path) == {}


def test_a_number_or_a_time_that_does_not_rise_ends_the_log(tmp_path: Path) -> None:
    for name, fields in {"seq": {"seq": 1}, "time": {"timestamp_us": START_US + 1}}.items():
        segment = Written()
        segment.add(b"a")
        segment.add(b"b", **fields)
        segment.save(tmp_path / name)
        assert outcome(tmp_path / name) == {b"a": b"v"}


def chain(count: int = 3) -> list[Written]:
    made = [Written()]
    for number in range(count):
        made[-1].add(b"key-%d" % number)
        if number < count - 1:
            made[-1].seal()
            made.append(made[-1].successor())
    return made


def test_a_whole_chain_is_accepted(tmp_path: Path) -> None:
    for segment in chain():
        segment.save(tmp_path)
    assert outcome(tmp_path) == {b"key-0": b"v", b"key-1": b"v", b"key-2": b"v"}


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_segment_is_corruption(tmp_path: Path, missing: int) -> None:
    for number, segment in enumerate(chain()):
        if number != missing:
            segment.save(tmp_path)
    assert outcome(tmp_path) == "CorruptLog"


def test_a_segment_that_overlaps_its_predecessor_is_corruption(tmp_path: Path) -> None:
    first, second, _ = chain()
    first.save(tmp_path)
    Written(replace(second.header, covered_from=2)).save(tmp_path)
    assert outcome(tmp_path) == "CorruptLog"


def test_a_renamed_segment_is_corruption(tmp_path: Path) -> None:
    segment = Written()
    path = segment.save(tmp_path)
    path.rename(path.with_name("0000000007-0000.seg"))
    assert outcome(tmp_path) == "CorruptLog"


def test_a_segment_of_another_table_is_corruption(tmp_path: Path) -> None:
    first, second, _ = chain()
    first.save(tmp_path)
    foreign = Written(replace(second.header, table_id=bytes(16)))
    foreign.save(tmp_path)
    assert outcome(tmp_path) == "CorruptLog"


def test_a_middle_segment_without_its_seal_is_corruption(tmp_path: Path) -> None:
    first, second, third = chain()
    first.save(tmp_path)
    third.save(tmp_path)
    second.save(tmp_path).write_bytes(second.data[: -HEADER_BYTES - 24])
    assert outcome(tmp_path) == "CorruptLog"


@pytest.mark.parametrize("last", [False, True])
def test_data_behind_a_seal_is_corruption(tmp_path: Path, last: bool) -> None:
    first, second, _ = chain()
    first.data += bytes(5) + b"x"
    first.save(tmp_path)
    if not last:
        second.save(tmp_path)
    (tmp_path / "t" / "0000000009-0000.seg.tmp").write_bytes(b"kept, since nothing may be changed")
    assert outcome(tmp_path) == "CorruptLog"


@pytest.mark.parametrize("wrong", [{"count": 7}, {"digest": 1}, {"last_seq": 9}])
def test_a_seal_that_does_not_fit_its_entries_is_not_believed(tmp_path: Path, wrong: dict[str, int]) -> None:
    segment = Written()
    segment.add()
    segment.seal(**wrong)
    successor = segment.successor()
    segment.save(tmp_path)
    successor.save(tmp_path)
    assert outcome(tmp_path) == "CorruptLog"


@pytest.mark.parametrize("complete", [False, True])
def test_a_batch_at_the_tail_is_kept_whole_or_dropped_whole(tmp_path: Path, complete: bool) -> None:
    segment = Written()
    segment.add(b"a")
    segment.sync()
    for index in range(3 if complete else 2):
        segment.add(b"batch-%d" % index, batch=(index, 3))
    segment.save(tmp_path)
    batch = {b"batch-0": b"v", b"batch-1": b"v", b"batch-2": b"v"}
    assert outcome(tmp_path) == {b"a": b"v"} | (batch if complete else {})


@pytest.mark.parametrize(
    "batches",
    [
        [(0, 3), (1, 3), (0, 1)],
        [(0, 3), (1, 3), (0, 3)],
        [(1, 3), (2, 3)],
        [(0, 3), (1, 2)],
    ],
    ids=["a single behind", "another batch behind", "without its start", "mixed counts"],
)
def test_parts_of_batches_never_pass_for_a_whole_one(tmp_path: Path, batches: list[tuple[int, int]]) -> None:
    segment = Written()
    segment.add(b"a")
    for number, batch in enumerate(batches):
        segment.add(b"batch-%d" % number, batch=batch)
    segment.save(tmp_path)
    assert outcome(tmp_path) == {b"a": b"v"}


def test_an_incomplete_batch_before_synced_entries_is_corruption(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"batch", batch=(0, 2))
    segment.sync()
    segment.add(b"later")
    segment.save(tmp_path)
    assert outcome(tmp_path) == "CorruptLog"


def test_a_sealed_middle_segment_may_hold_a_part_of_a_batch(tmp_path: Path) -> None:
    """Compaction drops entries one by one; completeness was settled before the SEAL."""
    segment = Written()
    segment.add(b"part", batch=(1, 3))
    segment.seal()
    segment.save(tmp_path)
    segment.successor().save(tmp_path)
    assert outcome(tmp_path) == {b"part": b"v"}


def test_every_kind_has_its_effect(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"cleared")
    segment.add(b"", b"", kind=Kind.CLEAR)
    segment.add(b"a")
    segment.add(b"b")
    segment.add(b"c")
    segment.add(b"a", b"", kind=Kind.DELETE)
    segment.add(b"b", b"", kind=Kind.EXPIRED)
    segment.add(b"c", b"hash", kind=Kind.CHAIN)
    segment.save(tmp_path)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.items() == {b"c": b"v"}
    assert len(table.store) == 1
    table.kill()


@pytest.mark.parametrize("kind", [0, 7, 255])
def test_a_kind_that_is_not_known_is_never_skipped(tmp_path: Path, kind: int) -> None:
    segment = Written()
    segment.add()
    segment.add(kind=kind)
    segment.save(tmp_path)
    assert outcome(tmp_path) == "UnsupportedFormat"


def test_a_codec_that_is_not_known_is_never_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Written()
    monkeypatch.setattr("kvsd.table.entry.CODEC_RAW", 1)
    segment.add()
    segment.save(tmp_path)
    assert outcome(tmp_path) == "UnsupportedFormat"


def test_a_value_longer_than_the_format_allows_is_no_entry(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"a")
    segment.add(b"b", value_bytes=MAX_FORMAT_VALUE_BYTES + 1)
    segment.save(tmp_path)
    assert outcome(tmp_path) == {b"a": b"v"}


def test_values_larger_than_the_read_window_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvsd.table.segment_reader._WINDOW_BYTES", 100)
    segment = Written()
    values = {b"%d" % size: bytes([size]) * size for size in (0, 30, 36, 37, 99, 100, 250)}
    for key, value in values.items():
        segment.add(key, value)
    segment.save(tmp_path)
    assert outcome(tmp_path) == values


def test_clean_restarts_leave_no_pile_of_files(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    table.stop()
    for _ in range(10):
        table = Table(medium, tmp_path)
        table.stop()
    names = [path.name for path in table.directory.iterdir()]
    assert len(names) == 3, names
    assert sorted(filter(parse_name, names))[0] == "0000000001-0000.seg"


def test_empty_segments_that_a_crash_has_left_are_removed_at_the_next_start(tmp_path: Path) -> None:
    """Between the birth of the successor and the end of its empty predecessor."""
    empty = Written()
    empty.seal()
    second = empty.successor()
    second.seal()
    third = second.successor()
    third.add()
    for segment in (empty, second, third):
        segment.save(tmp_path)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.items() == {b"k": b"v"}
    assert [path.name[:10] for path in segments(table.directory)] == ["0000000003", "0000000004"]
    table.stop()
    assert outcome(tmp_path) == {b"k": b"v"}


def test_what_interrupted_creations_left_is_removed(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    table.stop()
    leftover = table.directory / "0000000002-0000.seg.tmp"
    foreign = table.directory / "notes.tmp"
    leftover.write_bytes(b"half a segment")
    foreign.write_bytes(b"not ours")
    Table(FaultyMedium(tmp_path), tmp_path).kill()
    assert not leftover.exists()
    assert foreign.exists()


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.NEVER])
@pytest.mark.parametrize("then", list(Fsync))
def test_an_unclean_stop_of_a_loose_log_leaves_a_gap_and_raises_the_epoch(
    tmp_path: Path, fsync: Fsync, then: Fsync
) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, fsync=fsync)
    table.put(b"k", b"v")
    before, epoch = table.log.last_seq, table.log._active.header.epoch
    table.kill()
    table = Table(medium, tmp_path, fsync=then)
    assert table.log.last_seq >= before + (1 << 32)
    assert table.log._active.header.epoch == epoch + 1
    table.put(b"k", b"w")
    table.stop()
    assert outcome(tmp_path) == {b"k": b"w"}


@pytest.mark.parametrize("fsync", list(Fsync))
def test_a_clean_stop_leaves_no_gap(tmp_path: Path, fsync: Fsync) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, fsync=fsync)
    table.put(b"k", b"v")
    table.stop()
    table = Table(medium, tmp_path, fsync=fsync)
    assert table.log.last_seq == 2
    assert table.log._active.header.epoch == 1
    table.kill()


def test_an_unclean_stop_leaves_no_gap_where_each_append_was_synced(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    table.kill()
    table = Table(medium, tmp_path)
    assert table.log.last_seq == 2
    table.kill()


def test_times_rise_over_a_restart_although_the_clock_went_back(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, now_us=ticking(START_US + 10**9))
    table.put(b"k", b"v")
    table.kill()
    table = Table(medium, tmp_path, now_us=ticking(START_US - 10**9))
    table.put(b"k", b"w")
    table.stop()
    assert outcome(tmp_path) == {b"k": b"w"}


def logs_to_abandon(root: Path, *, sealed: bool, hinted: bool, torn: bool) -> dict[bytes, bytes]:
    """Several segments, with or without hints, and a tail; what a start must find."""
    medium = FaultyMedium(root)
    table = Table(medium, root, segment_bytes=SEGMENT_BYTES)
    for number in range(40):
        table.put(b"%d" % (number % 15), b"value %d" % number)
    if hinted:
        table.write_hints()
    items = table.items()
    table.stop() if sealed else table.kill()
    if torn:
        with max((root / "t").glob("*.seg")).open("ab") as file:
            file.write(b"an interrupted append")
    return items


@pytest.mark.parametrize(
    ("sealed", "hinted", "torn"),
    [(True, False, False), (True, True, False), (False, False, False), (False, True, True)],
)
def test_a_recovery_that_is_given_up_at_any_moment_leaves_what_the_next_start_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool, hinted: bool, torn: bool
) -> None:
    checks_left = 0

    def check(_: RecoveryProgress) -> None:
        nonlocal checks_left
        checks_left -= 1
        if checks_left < 0:
            raise RecoveryAbandoned

    abandoned = 0
    while True:
        root = tmp_path / str(abandoned)
        root.mkdir()
        items = logs_to_abandon(root, sealed=sealed, hinted=hinted, torn=torn)
        checks_left = abandoned
        medium = FaultyMedium(root)
        with monkeypatch.context() as patch:
            patch.setattr(RecoveryProgress, "check", check)
            try:
                Table(medium, root).kill()
                break
            except RecoveryAbandoned:
                assert not medium.open_files
                abandoned += 1
        table = Table(FaultyMedium(root), root)
        assert table.items() == items
        table.stop()
    assert abandoned >= 10


@pytest.mark.parametrize("hinted", [True, False])
def test_a_recovery_can_be_given_up_within_milliseconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hinted: bool
) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=2 << 20)
    for number in range(20_000):
        table.set(b"%d" % number, bytes(100))
        if number % 500 == 0:
            table.commit()
    table.commit()
    table.stop()
    if hinted:
        table.write_hints()
    seen: list[int] = []
    monkeypatch.setattr(RecoveryProgress, "check", lambda progress: seen.append(progress.bytes_done))
    Table(FaultyMedium(tmp_path), tmp_path).kill()
    largest = max(later - earlier for earlier, later in pairwise(seen))
    assert largest <= 300 << 10, "about 5 ms of work for the smallest entries"


def test_a_copy_that_was_read_while_the_log_was_written_is_refused(tmp_path: Path) -> None:
    """The manual says why such a copy is no backup, even without a compaction."""
    table = Table(FaultyMedium(tmp_path), tmp_path)
    for number in range(3):  # the second gets room ahead of it
        table.put(b"early %d" % number, bytes(1_000))
        table.fill()
    [segment] = table.directory.glob("*.seg")
    read_to = 16 << 10
    before = segment.read_bytes()[:read_to]
    assert len(before) == read_to
    for number in range(40):
        table.put(b"late %d" % number, bytes(1_000))
    after = segment.read_bytes()[read_to:]
    copy = tmp_path / "copy"
    (copy / "t").mkdir(parents=True)
    (copy / "t" / segment.name).write_bytes(before + after)
    with pytest.raises(CorruptLog, match="yet synced entries follow"):
        Table(FaultyMedium(copy), copy)
    assert len(table.items()) == 43
    table.stop()


def test_damage_in_the_group_before_the_last_is_told_though_the_last_was_staged_beside_it(tmp_path: Path) -> None:
    """While a group is on its way to the disk the next one is collected, and must not say what was known then."""
    source = tmp_path / "source"
    table = Table(FaultyMedium(source), source)
    table.put(b"a", b"first")
    table.set(b"b", b"second")
    under_way = table.store.take()
    assert under_way is not None
    table.set(b"c", b"third")
    table.set(b"d", b"third")
    under_way.append.run()
    table.store.committed(under_way)
    table.commit()
    table.kill()
    everything = {b"a": b"first", b"b": b"second", b"c": b"third", b"d": b"third"}
    [path] = segments(source / "t")
    data = path.read_bytes()
    second, third = data.index(b"bsecond") - HEADER_BYTES, data.index(b"cthird") - HEADER_BYTES
    for name, at, found in each_damage(tmp_path / "damaged", source, flip):
        assert name == path.name
        if at < third:
            assert found == "CorruptLog", f"damage at {at} of a group that was acknowledged"
        elif isinstance(found, dict):
            assert found.items() <= everything.items()
            assert {b"a", b"b"} <= set(found)
    assert second < third
    assert outcome(source) == everything
