"""A compacted log changes no answer, now or after any kind of end: not what is read, nor what a start finds.

Of random logs, with the index compared as a whole; the steps of a compaction have tests of their own.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog
from kvsd.table import compaction, compaction_input
from kvsd.table.entry import HEADER, HEADER_BYTES, Header, Kind
from kvsd.table.index import Index
from kvsd.table.medium import Medium
from kvsd.table.request import Batch, Delete, Fetch, Set
from kvsd.table.segment import Segment
from kvsd.table.segment_header import TEMPORARY, parse_name
from kvsd.table.segment_reader import SegmentReader
from kvsd.table.work import RESERVE_NAME
from tests.table.driver import Clock, Table, segments
from tests.table.history import History, recovered
from tests.table.medium import COUNTED, Call, FaultyMedium, PowerCut

SEGMENT_BYTES = 700
KEYS = [b"key-%d" % number for number in range(6)]


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small logs have many steps."""
    for module in (compaction_input, compaction):
        monkeypatch.setattr(module, "SLICE_RECORDS", 2)


def facts(index: Index) -> tuple[object, ...]:
    """All that a start makes of a log."""
    dead = {number: size for number, size in index.dead_bytes.items() if size}
    return dict(index._locations), index.live, dead, index.expiries.times


def write(table: Table, rng: random.Random, writes: int) -> None:
    """Sets, deletions, expiries and batches, each committed."""
    for number in range(writes):
        key = rng.choice(KEYS)
        match rng.randrange(5):
            case 0 if table.get(key) is not None:
                table.remove(key)
            case 1:
                table.store.set(key, b"expires %d" % number, (1 << 62) + number)
            case 2:
                steps = tuple(Set(key, rng.randbytes(30)) for key in rng.sample(KEYS, 3))
                table.decide(Batch((*steps, Delete(rng.choice(KEYS)))))
            case _:
                table.set(key, rng.randbytes(rng.randrange(150)))
        table.commit()


def table_of(root: Path, seed: int, writes: int = 60, **options: object) -> Table:
    table = Table(FaultyMedium(root), root, segment_bytes=SEGMENT_BYTES, **options)  # type: ignore[arg-type]
    write(table, random.Random(seed), writes)
    return table


def again(table: Table) -> Table:
    """What a new start makes of the files of `table`, which is killed."""
    medium = table.log.medium
    table.kill()
    assert isinstance(medium, FaultyMedium)
    assert not medium.open_files
    return Table(medium, medium.root, segment_bytes=SEGMENT_BYTES)


def compact(table: Table, first: int, end: int | None = None, between: Callable[[], None] = lambda: None) -> Path:
    """Compact these of the sealed segments, with a call of `between` after each step; returns the output's path."""
    run = table.log.sealed()[first:end]
    header = run[0].header
    generation = 1 + max(segment.header.generation for segment in run)
    for _ in table.compaction(first, len(run)):
        between()
    return table.directory / replace(header, generation=generation).name


def entries(path: Path) -> list[tuple[Header, bytes]]:
    """All of every entry but what depends on its place."""
    medium = Medium()
    segment = Segment.open(medium, path)
    found = []
    reader = SegmentReader(segment, whole_batches=False)
    for _, key, _, position, value_bytes, _ in reader:
        data = medium.read(segment.fd, HEADER_BYTES + len(key) + value_bytes, position & 0xFFFFFFFF)
        header = Header._make(HEADER.unpack_from(data))
        found.append((header._replace(mark=0, header_crc=0, synced_to=0), data[HEADER_BYTES:]))
    assert reader.seal is not None
    segment.close()
    return found


@pytest.mark.parametrize("seed", range(8))
def test_a_compacted_log_is_the_index_that_is_in_memory(tmp_path: Path, seed: int) -> None:
    """Locations, live keys, dead bytes and expiries: a start finds what the swap has made."""
    rng = random.Random(seed)
    table = table_of(tmp_path, seed)
    for _ in range(4):
        before = table.items()
        count = len(table.log.sealed())
        first = rng.randrange(count)
        compact(table, first, rng.randint(first + 1, count))
        assert table.items() == before
        in_memory = facts(table.store.index)
        table = again(table)
        assert facts(table.store.index) == in_memory
        table.write_hints()
        table = again(table)
        assert facts(table.store.index) == in_memory
        write(table, rng, 8)
    table.kill()


def test_what_is_kept_keeps_all_of_its_header_and_its_order(tmp_path: Path) -> None:
    table = table_of(tmp_path, 3)
    run = [segment.path for segment in table.log.sealed()[1:]]
    before = [entry for path in run for entry in entries(path)]
    after = entries(compact(table, 1))
    assert 0 < len(after) < len(before)
    assert [entry for entry in before if entry in after] == after
    assert any(header.batch_count > 1 for header, _ in after)
    assert not any(path.exists() for path in run)
    table.kill()


def test_the_output_answers_for_what_its_inputs_did(tmp_path: Path) -> None:
    table = table_of(tmp_path, 3)
    run = [segment.header for segment in table.log.sealed()[1:6]]
    behind = table.log.sealed()[6].header
    header = Segment.open(Medium(), compact(table, 1, 6)).header
    assert (header.segment_id, header.generation) == (run[0].segment_id, 1)
    assert (header.covered_from, header.covered_to) == (run[0].covered_from, behind.covered_from - 1)
    assert header.mark not in [old.mark for old in run]
    assert header.covered_from < header.dropped_through <= header.covered_to
    table.kill()


def test_a_deleted_key_is_not_resurrected_by_compacting_any_part(tmp_path: Path) -> None:
    """Every contiguous run of a small log, then every run of what that leaves, with a start after each."""
    table = Table(FaultyMedium(tmp_path / "a"), tmp_path / "a", segment_bytes=500)
    for number in range(3):
        table.put(b"gone", b"%d" % number + bytes(150))
        table.put(b"stays", b"%d" % number + bytes(150))
    table.remove(b"gone")
    for _ in range(3):
        table.put(b"other", bytes(200))
    count = len(table.log.sealed())
    assert count >= 4
    expected = table.items()
    assert b"gone" not in expected
    table.kill()
    names = itertools.count()
    for first, end in itertools.combinations(range(count + 1), 2):
        root = tmp_path / str(next(names))
        shutil.copytree(tmp_path / "a", root)
        once = Table(FaultyMedium(root), root, segment_bytes=500)
        compact(once, first, end)
        left = len(once.log.sealed())
        once.kill()
        for second in range(left):
            copy = tmp_path / str(next(names))
            shutil.copytree(root, copy)
            twice = Table(FaultyMedium(copy), copy, segment_bytes=500)
            compact(twice, second, second + 2)
            assert twice.items() == expected
            twice.kill()
            assert recovered(FaultyMedium(copy)) == expected
            shutil.rmtree(copy)


def test_a_tombstone_stays_while_an_older_segment_holds_its_key(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    table.put(b"k", bytes(200))
    table.put(b"x", bytes(200))
    table.remove(b"k")
    table.put(b"x", bytes(250))
    table.put(b"x", bytes(250))
    assert table.store.index.find(b"k") is not None
    compact(table, 1)
    assert table.store.index.find(b"k") is not None
    compact(table, 0)
    assert table.store.index.find(b"k") is None
    assert again(table).store.index.find(b"k") is None


def test_a_tombstone_goes_once_nothing_older_is_replaced(tmp_path: Path) -> None:
    """Else the first segment, which nobody changes any more, would keep all tombstones for good."""
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    table.put(b"base", bytes(200))
    table.put(b"k", bytes(200))
    table.put(b"x", bytes(200))
    table.remove(b"k")
    table.put(b"x", bytes(250))
    table.put(b"x", bytes(250))
    assert len(table.log.sealed()) == 5
    compact(table, 3)
    assert table.store.index.find(b"k") is not None, "segment 2 holds it"
    compact(table, 1, 3)
    compact(table, 2)
    assert table.store.index.find(b"k") is None
    table = again(table)
    assert table.items() == {b"base": bytes(200), b"x": bytes(250)}
    assert table.store.index.find(b"k") is None
    table.kill()


def test_a_recreated_key_keeps_its_previous_seq_across_a_compaction(tmp_path: Path) -> None:
    table = table_of(tmp_path, 1)
    table.put(b"again", b"1")
    first = table.decide(Fetch(b"again"))
    write(table, random.Random(2), 30)
    compact(table, 0)
    table.put(b"again", b"2")
    table.stop()
    entry = next(
        header
        for path in reversed(segments(table.directory))
        for header, body in entries(path)
        if body.startswith(b"again")
    )
    assert entry.prev_seq == first.version  # type: ignore[union-attr]


def test_a_run_without_anything_wanted_leaves_a_file_that_holds_its_place(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    for number in range(8):
        table.put(b"k", b"%d" % number + bytes(200))
    compact(table, 1, 4)
    assert len(table.log.sealed()) == 5
    table = again(table)
    assert table.get(b"k") == b"7" + bytes(200)
    compact(table, 0)
    assert again(table).get(b"k") == b"7" + bytes(200)


@pytest.mark.parametrize("seed", range(6))
def test_writes_between_any_two_steps_are_kept(tmp_path: Path, seed: int) -> None:
    """Between choice and swap the newest entry of a key may be another."""
    rng = random.Random(seed)
    table = table_of(tmp_path, seed)

    def between() -> None:
        nonlocal expected
        if rng.random() < 0.7:
            write(table, rng, 1)
        expected = table.items()

    expected = table.items()
    for _ in range(3):
        compact(table, rng.randrange(3), None, between)
        assert table.items() == expected
        dead = {number: size for number, size in table.store.index.dead_bytes.items() if size}
        in_memory = dict(table.store.index._locations)
        table = again(table)
        found = dict(table.store.index._locations)
        assert found == in_memory
        assert {number: size for number, size in table.store.index.dead_bytes.items() if size} == dead
    table.kill()


def chain(table: Table) -> set[str]:
    """The files that a table's folder is to hold."""
    return {segment.path.name for segment in table.log._segments.values()} | {RESERVE_NAME}


def test_a_process_that_is_killed_in_any_call_leaves_no_orphan(tmp_path: Path) -> None:
    """And loses nothing; nor does the start after it, killed in any of its calls."""
    source = table_of(tmp_path / "source", 5)
    expected = source.items()
    source.kill()
    for at in itertools.count(1):
        root = tmp_path / "a"
        shutil.copytree(tmp_path / "source", root)
        medium = FaultyMedium(root)
        table = Table(medium, root, segment_bytes=SEGMENT_BYTES)
        medium.cut_power(at=at)
        try:
            compact(table, 1, 7)
        except PowerCut:
            medium.kill()
        else:
            break
        medium.cut_power(at=at % 7 + 1)
        with contextlib.suppress(PowerCut):
            Table(medium, root, segment_bytes=SEGMENT_BYTES)
        medium.kill()
        table = Table(medium, root, segment_bytes=SEGMENT_BYTES)
        assert table.items() == expected
        assert set(medium.names(table.directory)) == chain(table)
        table.kill()
        shutil.rmtree(root)
    assert at > 10


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
def test_a_failure_of_any_call_costs_nothing_but_the_compaction(tmp_path: Path, number: int, forever: bool) -> None:
    source = table_of(tmp_path / "source", 5)
    expected = source.items() | {b"new": b"value"}
    source.kill()
    for at in itertools.count(1):
        root = tmp_path / "a"
        shutil.copytree(tmp_path / "source", root)
        medium = FaultyMedium(root)
        table = Table(medium, root, segment_bytes=SEGMENT_BYTES)
        medium.fail(number, at=at, calls=COUNTED | {Call.READ}, forever=forever)
        failure = None
        try:
            compact(table, 1, 7)
        except (OSError, CorruptLog) as error:
            failure = error
        medium.heal()
        table.put(b"new", b"value")
        assert table.items() == expected
        table = again(table)
        assert table.items() == expected
        assert set(medium.names(table.directory)) == chain(table)
        table.kill()
        shutil.rmtree(root)
        if failure is None:
            break
    assert at > 20


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_after_any_operation_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    """Reordered as the medium may; with a second cut during the recovery, and a start behind it."""
    rng = random.Random(seed)
    history = History(FaultyMedium(tmp_path / "a"), segment_bytes=SEGMENT_BYTES)
    for turn in range(4):
        for _ in range(12):
            key = rng.choice(KEYS)
            if key in history.states[-1] and rng.random() < 0.3:
                history.remove(key)
            else:
                history.put(key, rng.randbytes(rng.randrange(200)))
            history.commit()
        sealed = len(history.table.log.sealed())
        first = rng.randrange(sealed)
        compact(history.table, first, rng.randint(first + 1, sealed))
        history.table.write_hints()
        if turn % 2:
            history.table.kill()
            history.table = history.open()
    history.table.kill()
    for count, disk in history.medium.prefixes():
        for cut in range(3):
            root = tmp_path / "b"
            names = itertools.count()
            after = disk.survivors(rng, root / str(next(names)))
            if cut == 2:
                after.cut_power(at=rng.randint(1, 12))
                with contextlib.suppress(PowerCut):
                    recovered(after, **history.options)
                after.kill()
                after = after.disk().survivors(rng, root / str(next(names)))
            allowed = history.allowed(count)
            table = Table(after, after.root, **history.options)
            assert table.items() in allowed
            left = {name for name in after.names(table.directory) if not name.endswith(".hint") and "torn" not in name}
            assert left == chain(table)
            if table.log.sealed():
                compact(table, 0)
            assert table.items() in allowed
            table.kill()
            shutil.rmtree(root)


def test_inputs_without_a_complete_output_are_the_log(tmp_path: Path) -> None:
    """What is no more than a temporary file was never there."""
    table = table_of(tmp_path, 4)
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    expected = table.items()
    medium.fail(errno.EIO, calls={Call.RENAME})
    names = set(medium.names(table.directory))
    with pytest.raises(OSError, match="Input/output"):
        compact(table, 1, 6)
    assert set(medium.names(table.directory)) == names
    assert table.items() == expected
    table.kill()


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_damage_in_an_input_is_told_and_leaves_everything_as_it_was(tmp_path: Path, damage: str) -> None:
    table = table_of(tmp_path, 4)
    medium = table.log.medium
    victim = table.log.sealed()[3]
    data = bytearray(victim.path.read_bytes())
    if damage == "flip":
        data[300] ^= 1
    else:
        del data[-40:]
    victim.path.write_bytes(data)
    names = set(medium.names(table.directory))
    in_memory = facts(table.store.index)
    with pytest.raises(CorruptLog) as caught:
        compact(table, 1, 6)
    assert caught.value.path == str(victim.path)
    assert caught.value.offset is not None
    assert set(medium.names(table.directory)) == names
    assert not any(name.endswith(TEMPORARY) for name in names)
    assert facts(table.store.index) == in_memory
    table.kill()


def test_a_damaged_output_is_told_and_not_replaced_by_anything(tmp_path: Path) -> None:
    """At a start, even if the inputs are there still: nothing is changed before somebody has looked."""
    table = table_of(tmp_path, 4)
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    medium.fail(errno.EIO, calls={Call.UNLINK}, forever=True)
    with pytest.raises(OSError, match="Input/output"):
        compact(table, 1, 6)
    medium.heal()
    table.kill()
    output = next(path for path in segments(table.directory) if (parse_name(path.name) or (0, 0))[1])
    data = bytearray(output.read_bytes())
    data[250] ^= 1
    output.write_bytes(data)
    before = {path.name: path.read_bytes() for path in table.directory.iterdir()}
    with pytest.raises(CorruptLog):
        Table(medium, medium.root, segment_bytes=SEGMENT_BYTES)
    assert {path.name: path.read_bytes() for path in table.directory.iterdir()} == before


def test_a_compacted_segment_that_is_the_last_one_left_is_not_cut_like_a_torn_tail(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    for key in KEYS:
        table.put(key, bytes(200))
    path = compact(table, 0)
    table.kill()
    for other in segments(table.directory):
        if other != path:
            other.unlink()
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptLog):
        Table(FaultyMedium(tmp_path), tmp_path)


def test_no_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    table = table_of(tmp_path, 4)
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    medium.room_bytes = 500
    operations = len(medium.operations)
    with pytest.raises(OSError, match="not enough room"):
        compact(table, 0)
    assert len(medium.operations) == operations
    table.kill()


def test_what_is_all_dead_goes_even_from_a_full_disk(tmp_path: Path) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400)
    for number in range(8):
        table.put(b"k", b"%d" % number + bytes(200))
    medium = table.log.medium
    assert isinstance(medium, FaultyMedium)
    medium.room_bytes = 600
    compact(table, 0, 5)
    assert medium.room_bytes is not None
    assert medium.room_bytes > 600
    table.kill()


def test_an_expired_value_goes_once_its_expiry_is_in_the_log(tmp_path: Path) -> None:
    clock = Clock()
    table = Table(FaultyMedium(tmp_path), tmp_path, segment_bytes=400, now_us=clock)
    table.store.set(b"k", bytes(200), clock.now_us + 10)
    table.commit()
    table.put(b"x", bytes(200))
    clock.now_us += 20
    compact(table, 0)
    assert table.store.index.find(b"k") is not None, "replay knows no clock"
    assert table.store.sweep(10) == 1
    table.commit()
    table.put(b"y", bytes(300))
    table.put(b"x", bytes(300))
    compact(table, 0)
    assert table.store.index.find(b"k") is None
    kept = [(header.kind, body[:1]) for path in segments(table.directory)[:-1] for header, body in entries(path)]
    assert kept == [(Kind.SET, b"y")]
    table.kill()
