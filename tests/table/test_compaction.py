"""One compaction: what it keeps, what it drops, and that no crash and no failure in it loses or revives a key."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog
from kvsd.table.entry import Kind
from kvsd.table.log import Read
from kvsd.table.segment_header import parse_name
from kvsd.table.segment_reader import SegmentReader
from kvsd.types import Fsync
from tests.table.driver import Table, files, segments
from tests.table.history import History, recovered
from tests.table.medium import Call, FaultyMedium

OPTIONS = {"segment_bytes": 1_000}


def open_table(root: Path, **options: object) -> Table:
    return Table(FaultyMedium(root), root, **{**OPTIONS, **options})  # type: ignore[arg-type]


def roll(table: Table) -> None:
    """Begin a new segment behind what is there."""
    table.log._roll()
    table.put(b"roll", b"")


def entries(table: Table, number: int) -> list[tuple[int, bytes, int]]:
    """Kind, key and seq of the sealed segment's entries."""
    reader = SegmentReader(table.log.sealed()[number], whole_batches=False)
    found = [(kind, key, seq) for kind, key, seq, *_ in reader]
    assert reader.sealed_at is not None
    return found


def names(root: Path) -> list[str]:
    return [path.name for path in segments(root / "t")]


def reopened(table: Table) -> Table:
    table.kill()
    return Table(table.log.medium, table.directory.parent, **OPTIONS)  # type: ignore[arg-type]


def test_a_run_becomes_one_file_with_what_is_the_newest_of_its_keys(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"old", b"1")
    table.put(b"kept", b"2")
    roll(table)
    table.put(b"old", b"3")
    roll(table)
    before = {key: table.store.index.find(key) for key in (b"kept", b"old")}
    table.compact(0, 2)
    assert names(tmp_path) == ["0000000001-0001.seg", "0000000003-0000.seg"]
    assert entries(table, 0) == [(Kind.SET, b"kept", 2), (Kind.SET, b"old", 5)]
    assert {key: (location or 0) >> 116 for key, location in before.items()} == {b"kept": 2, b"old": 5}
    assert table.items() == {b"kept": b"2", b"old": b"3", b"roll": b""}
    table = reopened(table)
    assert table.items() == {b"kept": b"2", b"old": b"3", b"roll": b""}
    assert table.store.version(b"old") == 5
    table.stop()


def test_entries_keep_times_expiry_previous_seq_and_batch(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.store.set(b"e", b"1", 1 << 60)
    table.commit()
    table.store.batch([(b"a", b"1", 0), (b"e", b"2", 1 << 61), (b"c", None, 0)])
    table.commit()
    roll(table)
    segment = table.log.sealed()[0]
    before = [
        segment.medium.read(segment.fd, 64, p & 0xFFFFFFFF)[16:]
        for *_, p, _, _ in SegmentReader(segment, whole_batches=False)
    ]
    table.compact(0, 1)
    segment = table.log.sealed()[0]
    after = [
        segment.medium.read(segment.fd, 64, p & 0xFFFFFFFF)[16:]
        for *_, p, _, _ in SegmentReader(segment, whole_batches=False)
    ]
    assert after == before[1:3]
    assert table.store.expires_us(b"e") == 1 << 61
    table = reopened(table)
    assert table.store.expires_us(b"e") == 1 << 61
    table.stop()


def test_a_deleted_key_does_not_come_back_when_only_its_tombstone_is_compacted(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"k", b"v")
    roll(table)
    table.remove(b"k")
    roll(table)
    table.compact(1, 1)
    assert [kind for kind, key, _ in entries(table, 1) if key == b"k"] == [Kind.DELETE]
    table = reopened(table)
    assert table.get(b"k") is None
    table.compact(0, 2)
    assert table.store.index.find(b"k") is None
    assert all(key != b"k" for _, key, _ in entries(table, 0))
    table = reopened(table)
    assert table.get(b"k") is None
    table.stop()


def test_a_tombstone_goes_with_the_first_entry_of_its_key_wherever_that_is(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"other", b"v")
    roll(table)
    table.put(b"k", b"v")
    roll(table)
    table.remove(b"k")
    roll(table)
    table.compact(1, 2)
    assert table.store.index.find(b"k") is None
    assert all(key != b"k" for _, key, _ in entries(table, 1))
    table = reopened(table)
    assert table.items() == {b"other": b"v", b"roll": b""}
    table.stop()


def test_a_run_without_anything_wanted_leaves_a_file_that_answers_for_its_range(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"a", b"1")
    roll(table)
    table.put(b"k", b"1")
    roll(table)
    table.put(b"k", b"2")
    table.put(b"roll", b"2")
    table.compact(1, 1)
    assert entries(table, 1) == []
    for _ in range(2):
        table = reopened(table)
        assert table.items() == {b"a": b"1", b"k": b"2", b"roll": b"2"}
    table.compact(0, None)
    table = reopened(table)
    assert table.items() == {b"a": b"1", b"k": b"2", b"roll": b"2"}
    table.stop()


def test_outputs_can_be_compacted_again(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    for number in range(6):
        table.put(b"k%d" % (number % 2), b"%d" % number)
        roll(table)
    table.compact(0, 2)
    table.compact(1, 2)
    table.compact(0, 2)
    table = reopened(table)
    assert table.items() == {b"k0": b"4", b"k1": b"5", b"roll": b""}
    assert names(tmp_path)[0] == "0000000001-0002.seg"
    table.stop()


def test_a_write_between_the_choice_and_the_swap_wins_and_its_forerunner_counts_as_dead(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"k", b"old")
    table.put(b"live", b"v")
    roll(table)
    for number, _ in enumerate(table.compaction(0, 1)):
        if number == 2:
            table.put(b"k", b"new")
    assert table.get(b"k") == b"new"
    number = table.log.sealed()[0].header.number
    assert table.store.index.dead_bytes == {number: 64 + 1 + 3}
    dead = dict(table.store.index.dead_bytes)
    table = reopened(table)
    assert table.store.index.dead_bytes == dead
    assert table.get(b"k") == b"new"
    table.stop()


def test_a_read_that_has_begun_still_finds_its_file(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"k", b"v")
    roll(table)
    table.log.medium.read_cached = lambda *_: None  # type: ignore[method-assign]
    read = table.store.get(b"k")
    assert isinstance(read, Read)
    table.compact(0, 1)
    open_files = len(table.log.medium.open_files)  # type: ignore[attr-defined]
    assert read.run().value == b"v"
    read.done()
    assert len(table.log.medium.open_files) == open_files - 1  # type: ignore[attr-defined]
    table.stop()


def test_an_unsynced_newer_value_is_synced_before_the_durable_older_one_goes(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path / "a")
    table = Table(medium, medium.root, fsync=Fsync.NEVER, segment_bytes=1_000)
    table.put(b"k", b"old")
    roll(table)
    table.put(b"k", b"new")
    table.compact(0, 1)
    table.kill()
    for seed in range(20):
        after = medium.disk().survivors(random.Random(seed), tmp_path / f"b{seed}")
        assert recovered(after, fsync=Fsync.NEVER)[b"k"] == b"new"


def busy(history: History, rng: random.Random) -> None:
    """Writes over few keys in small segments, with compactions of any run and writes between their steps."""

    def write() -> None:
        key = b"key-%d" % rng.randrange(4)
        if key in history.states[-1] and rng.random() < 0.4:
            history.remove(key)
        else:
            history.put(key, rng.randbytes(rng.randrange(300)))
        history.commit()

    for _ in range(4):
        for _ in range(rng.randint(3, 6)):
            write()
        count = len(history.table.log.sealed())
        if count:
            first = rng.randrange(count)
            for number, _ in enumerate(history.table.compaction(first, rng.randint(1, count - first))):
                if number % 3 == 1 and rng.random() < 0.5:
                    write()


@pytest.mark.parametrize("seed", range(3))
def test_a_power_cut_at_any_call_of_a_compaction_loses_and_revives_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    history = History(FaultyMedium(tmp_path / "a"), **OPTIONS)
    busy(history, rng)
    history.table.kill()
    for count, disk in history.medium.prefixes():
        for turn in range(2):
            root = tmp_path / f"b{turn}"
            after = disk.survivors(rng, root)
            allowed = history.allowed(count)
            if turn:  # a second cut, during the recovery from the first
                after.cut_power(at=rng.randint(1, 12))
                try:
                    recovered(after, **OPTIONS)
                except Exception as error:
                    assert "PowerCut" in repr(error)
                after.kill()
                after = after.disk().survivors(rng, root / "again")
            assert recovered(after, **OPTIONS) in allowed
            assert_no_orphans(after.root / "t")
            shutil.rmtree(root)


def three_segments(root: Path) -> Table:
    table = open_table(root)
    for turn in range(3):
        table.put(b"k", b"%d" % turn)
        table.put(b"only%d" % turn, b"v")
        roll(table)
    return table


def test_inputs_go_only_once_the_name_of_the_output_is_durable(tmp_path: Path) -> None:
    table = three_segments(tmp_path / "a")
    expected = table.items()
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    begin = len(medium.operations)
    table.compact(0, 3)
    table.kill()
    check_cuts(medium, begin, expected, tmp_path)


def test_a_start_removes_inputs_only_once_the_name_of_the_output_is_durable(tmp_path: Path) -> None:
    table = three_segments(tmp_path / "a")
    expected = table.items()
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    medium.fail(errno.EIO, calls={Call.SYNC_DIRECTORY})
    with pytest.raises(OSError, match="Input/output"):
        table.compact(0, 3)
    medium.kill()
    begin = len(medium.operations)
    assert recovered(medium, **OPTIONS) == expected
    check_cuts(medium, begin, expected, tmp_path)


def check_cuts(medium: FaultyMedium, begin: int, expected: dict[bytes, bytes], root: Path) -> None:
    """Whatever of the names survives a power cut after any operation since `begin`."""
    for count, disk in medium.prefixes():
        for seed in range(16 if count >= begin else 0):
            after = disk.survivors(random.Random(seed), root / "cut")
            assert recovered(after, **OPTIONS) == expected
            shutil.rmtree(root / "cut")


def assert_no_orphans(folder: Path) -> None:
    """One file a segment, hints only beside their segments, and nothing half done."""
    numbers = [name[0] for path in folder.iterdir() if (name := parse_name(path.name))]
    assert len(numbers) == len(set(numbers))
    assert not list(folder.glob("*.tmp"))
    assert all(path.with_suffix(".seg").exists() for path in folder.glob("*.hint"))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failure_at_any_call_leaves_a_table_that_serves_on_and_starts_again(tmp_path: Path, number: int) -> None:
    for at in itertools.count(1):
        root = tmp_path / str(at)
        table = open_table(root)
        for turn in range(3):
            table.put(b"a", b"%d" % turn)
            table.put(b"gone", b"v")
            table.remove(b"gone")
            roll(table)
        expected = table.items()
        medium = table.log.medium
        assert isinstance(medium, FaultyMedium)
        medium.fail(number, at=at)
        try:
            table.compact(0, 3)
        except OSError as error:
            assert error.errno == number
        failures = medium.failures
        medium.heal()
        assert table.items() == expected
        table.put(b"more", b"v")
        table = reopened(table)
        assert table.items() == expected | {b"more": b"v"}
        assert_no_orphans(root / "t")
        table.stop()
        assert not medium.open_files
        if not failures:
            assert at > 10
            break


def test_damage_in_an_input_is_found_and_changes_nothing(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"a", b"1")
    table.put(b"b", b"2")
    roll(table)
    path = table.log.sealed()[0].path
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    before = files(tmp_path)
    with pytest.raises(CorruptLog, match=path.stem):
        table.compact(0, 1)
    assert files(tmp_path) == before
    assert table.get(b"a") == b"1"
    table.kill()


def test_an_output_that_does_not_give_back_what_was_written_is_withdrawn(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    table.put(b"a", b"1")
    roll(table)
    before = names(tmp_path)
    path = tmp_path / "t" / "0000000001-0001.seg"
    steps = table.compaction(0, 1)
    while not path.exists():
        next(steps)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptLog, match="0001-0001"):
        list(steps)
    assert names(tmp_path) == before
    table = reopened(table)
    assert table.get(b"a") == b"1"
    table.stop()


def test_inputs_that_were_not_removed_are_at_the_next_start_even_if_damaged(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    for turn in range(3):
        table.put(b"k", b"%d" % turn)
        roll(table)
    inputs = [segment.path for segment in table.log.sealed()]
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    medium.fail(errno.EIO, calls={Call.UNLINK}, forever=True)
    with pytest.raises(OSError, match="Input/output"):
        table.compact(0, 3)
    medium.heal()
    inputs[1].write_bytes(inputs[1].read_bytes()[:250])
    table = reopened(table)
    assert table.items() == {b"k": b"2", b"roll": b""}
    assert not any(path.exists() for path in inputs)
    table.stop()


def test_a_hole_beside_an_output_is_still_corruption(tmp_path: Path) -> None:
    table = open_table(tmp_path)
    for turn in range(4):
        table.put(b"k", b"%d" % turn)
        roll(table)
    table.compact(0, 2)
    lost = table.log.sealed()[1].path
    table.kill()
    lost.unlink()
    with pytest.raises(CorruptLog, match="missing"):
        Table(table.log.medium, tmp_path)
