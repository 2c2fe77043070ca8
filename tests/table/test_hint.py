"""Hints: what a start takes from them, and that it takes nothing from one that is damaged, foreign or stale."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.entry import HEADER_BYTES, Kind
from kvsd.table.hint import Hint
from kvsd.table.index import Block, Index
from kvsd.table.medium import Medium
from kvsd.table.segment import Segment
from kvsd.table.work import ROOM_BYTES
from tests.table.driver import Table, files, segments
from tests.table.encoding import HEADER, Written
from tests.table.medium import Call, FaultyMedium

SEGMENT_BYTES = 700


def facts(index: Index) -> tuple[object, ...]:
    """All that a start makes of a log."""
    dead = {number: size for number, size in index.dead_bytes.items() if size}
    return dict(index._locations), index.live, dead, index.expiries.times


def write(root: Path, steps: list[tuple[bytes, int | None]]) -> Path:
    """A stopped table in several segments; a value of so many bytes, or a deletion."""
    table = Table(FaultyMedium(root), root, segment_bytes=SEGMENT_BYTES)
    for number, (key, size) in enumerate(steps):
        if size is None:
            table.remove(key)
        else:
            table.store.set(key, bytes(size), (1 << 62) + number if size % 3 == 0 else 0)
            table.commit()
    table.stop()
    return table.directory


def write_hints(directory: Path) -> None:
    for path in segments(directory):
        hint.write(Medium(), path)


def opened(root: Path) -> Table:
    """A start that changes nothing on the disk that matters here."""
    return Table(FaultyMedium(root), root, segment_bytes=SEGMENT_BYTES)


class Counting(FaultyMedium):
    """Knows how much was read."""

    bytes_read = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self.bytes_read += len(data)
        return data


STEPS: list[tuple[bytes, int | None]] = [
    (b"a", 100),
    (b"bb", 99),
    (b"", 5),
    (b"a", 30),
    (b"bb", None),
    (b"ccc", 300),
    (b"a", 31),
    (b"d", 0),
    (b"ccc", None),
    (b"ccc", 9),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint, "_BLOCK_ENTRIES", 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"", b"a", b"b", b"key"]), st.none() | st.integers(0, 60)), max_size=40))
def test_a_start_from_hints_finds_what_one_from_the_log_finds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bytes, int | None]]
) -> None:
    root = tmp_path_factory.mktemp("table")
    directory = write(root, steps)
    without = opened(root)
    without.stop()
    write_hints(directory)
    medium = FaultyMedium(root)
    with_hints = Table(medium, root, segment_bytes=SEGMENT_BYTES)
    assert with_hints.log.take_unhinted() == []
    assert facts(with_hints.store._index) == facts(without.store._index)
    assert with_hints.log.last_seq == without.log.last_seq
    with_hints.items()
    with_hints.kill()
    assert not medium.open_files


def test_a_start_from_hints_reads_no_values(tmp_path: Path) -> None:
    directory = write(tmp_path, [(b"%d" % number, 2_000) for number in range(20)])
    write_hints(directory)
    medium = Counting(tmp_path)
    table = Table(medium, tmp_path)
    assert medium.bytes_read < 20 * 2_000
    assert table.store.recovering.bytes_done == table.store.recovering.bytes_total > 20 * 2_000
    table.kill()


def damages(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        yield data[:at]
    yield data + b"\0"
    yield b""


def test_a_hint_that_is_damaged_anywhere_changes_nothing(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", STEPS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    expected = opened(tmp_path / "b")
    expected.kill()
    paths = [path for path in segments(directory) if hint.write(Medium(), path)]
    assert len(paths) > 2
    for path in paths:
        data = hint.path_of(path).read_bytes()
        for damaged in damages(data):
            if damaged == data:
                continue
            hint.path_of(path).write_bytes(damaged)
            table = opened(tmp_path / "a")
            unhinted = table.log.take_unhinted()
            assert facts(table.store._index) == facts(expected.store._index)
            assert unhinted == [path], "a damaged hint was believed, or is not made anew"
            table.kill()
        hint.path_of(path).write_bytes(data)


@contextlib.contextmanager
def open_hint(path: Path) -> Iterator[Hint | None]:
    segment = Segment.open(Medium(), path)
    found = Hint.open(segment)
    yield found
    if found is not None:
        found.close()
    segment.close()


def hinted(root: Path) -> Path:
    written = Written()
    written.add(b"a", b"value")
    written.add(b"b", b"value")
    written.seal()
    path = written.save(root)
    assert hint.write(Medium(), path)
    return path


@pytest.mark.parametrize(
    "other",
    [
        replace(HEADER, table_id=bytes(16)),
        replace(HEADER, segment_id=2, covered_from=1),
        replace(HEADER, generation=1),
        replace(HEADER, mark=1),
    ],
    ids=["table", "segment", "generation", "mark"],
)
def test_the_hint_of_another_segment_is_ignored(tmp_path: Path, other: object) -> None:
    data = hint.path_of(hinted(tmp_path)).read_bytes()
    with open_hint(tmp_path / "t" / HEADER.name) as found:
        assert found is not None
    written = Written(header=other)  # type: ignore[arg-type]
    written.add(b"a", b"value")
    written.add(b"b", b"value")
    written.seal()
    path = written.save(tmp_path)
    hint.path_of(path).write_bytes(data)
    with open_hint(path) as found:
        assert found is None


def test_the_hint_of_another_content_of_the_same_file_is_ignored(tmp_path: Path) -> None:
    """The SEAL in the file decides."""
    hinted(tmp_path)
    written = Written()
    written.add(b"a", b"other")
    written.add(b"b", b"value")
    written.seal()
    path = written.save(tmp_path)
    table = opened(tmp_path)
    assert table.items() == {b"a": b"other", b"b": b"value"}
    assert table.log.take_unhinted() == [path]
    table.kill()


@pytest.mark.parametrize("break_seal", [lambda data: data[:-1], lambda data: data[:-1] + b"\xff"])
def test_without_its_seal_a_segment_is_not_taken_from_its_hint(
    tmp_path: Path, break_seal: Callable[[bytes], bytes]
) -> None:
    path = hinted(tmp_path)
    path.write_bytes(break_seal(path.read_bytes()))
    table = opened(tmp_path)
    assert table.items() == {b"a": b"value", b"b": b"value"}
    assert table.log.torn_tail
    table.kill()


def test_damage_to_an_entry_is_found_by_whoever_reads_it(tmp_path: Path) -> None:
    path = hinted(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"avalue") + 1] ^= 1
    path.write_bytes(data)
    table = opened(tmp_path)
    assert table.get(b"b") == b"value"
    with pytest.raises(CorruptLog):
        table.get(b"a")
    table.kill()


@pytest.mark.parametrize("kind", [Kind.CLEAR, Kind.CHAIN])
def test_a_segment_with_other_entries_gets_no_hint(tmp_path: Path, kind: Kind) -> None:
    written = Written()
    written.add(b"a")
    written.add(b"", b"", kind=kind)
    written.seal()
    path = written.save(tmp_path)
    before = files(tmp_path)
    assert not hint.write(Medium(), path)
    assert files(tmp_path) == before


def test_a_segment_that_is_not_sealed_gets_no_hint(tmp_path: Path) -> None:
    written = Written()
    written.add(b"a", bytes(100))
    path = written.save(tmp_path)
    before = files(tmp_path)
    with pytest.raises(CorruptLog):
        hint.write(Medium(), path)
    assert files(tmp_path) == before


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint, "_SLICE_ENTRIES", 1)
    path = hinted(tmp_path)
    hint.path_of(path).unlink()
    before = files(tmp_path)
    assert not hint.write(Medium(), path, lambda: True)
    assert files(tmp_path) == before


def test_a_hint_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    path = hinted(tmp_path)
    hint.path_of(path).unlink()
    before = files(tmp_path)
    for at in range(1, 50):
        medium = FaultyMedium(tmp_path)
        medium.fail(errno.EIO, at=at)
        with contextlib.suppress(OSError):
            hint.write(medium, path)
        assert not medium.open_files
        if not medium.failures:
            assert at > 5
            return
        found = {name: data for name, data in files(tmp_path).items() if hint.SUFFIX not in name}
        assert found == before
        assert not list(tmp_path.rglob("*.tmp")) or medium.counts[Call.UNLINK] == 0
    pytest.fail("it never came to its end")


def test_values_need_the_last_room_more_than_hints(tmp_path: Path) -> None:
    path = hinted(tmp_path)
    hint.path_of(path).unlink()
    medium = FaultyMedium(tmp_path)
    medium.room_bytes = ROOM_BYTES
    with pytest.raises(OSError, match="space"):
        hint.write(medium, path)
    assert not hint.path_of(path).exists()


def test_a_start_removes_hints_without_a_segment_and_unfinished_ones(tmp_path: Path) -> None:
    path = hinted(tmp_path)
    kept = hint.path_of(path)
    for name in ("0000000009-0000.hint", kept.name + ".tmp", "0000000009-0000.hint.tmp"):
        (path.parent / name).write_bytes(b"left over")
    (path.parent / "somebody.txt").write_bytes(b"not ours")
    table = opened(tmp_path)
    assert [found.name for found in path.parent.glob("*hint*")] == [kept.name]
    assert (path.parent / "somebody.txt").exists()
    table.kill()


def test_a_hint_goes_with_its_segment(tmp_path: Path) -> None:
    path = hinted(tmp_path)
    hint.discard(Medium(), path)
    hint.discard(Medium(), path)
    assert not hint.path_of(path).exists()
    assert path.exists()


def test_blocks_are_in_order_and_count_what_they_leave_out(tmp_path: Path) -> None:
    written = Written()
    for key in (b"a", b"b", b"a", b"a", b"c", b"d"):
        written.add(key, b"12345")
    written.seal()
    path = written.save(tmp_path)
    hint.write(Medium(), path)
    with open_hint(path) as found:
        assert found is not None
        blocks: list[Block] = list(found)
        assert found.is_whole
    assert [list(block.keys) for block in blocks] == [[b"b", b"a", b"c"], [b"d"]]
    assert [block.dead_bytes for block in blocks] == [2 * (HEADER_BYTES + 1 + 5), 0]


def test_keys_of_all_lengths_are_cut_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint, "_BLOCK_ENTRIES", 1_024)
    monkeypatch.setattr(hint, "_BLOCK_KEY_BYTES", 50_000)
    rng = random.Random(1)
    keys = [rng.randbytes(rng.choice((0, 1, 2, 1_024, 65_535))) for _ in range(20)]
    written = Written()
    for key in keys:
        written.add(key)
    written.seal()
    path = written.save(tmp_path)
    hint.write(Medium(), path)
    with open_hint(path) as found:
        assert found is not None
        blocks = list(found)
    assert len(blocks) > 2
    assert {key for block in blocks for key in block.keys} == set(keys)
