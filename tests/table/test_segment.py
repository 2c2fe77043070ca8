"""A segment's header, its file and its descriptor."""

from __future__ import annotations

import errno
import struct
from dataclasses import fields, replace
from pathlib import Path
from zlib import crc32

import pytest

from kvsd.errors import CorruptLog, UnsupportedFormat
from kvsd.table.segment import Segment
from kvsd.table.segment_header import MAGIC, SEGMENT_HEADER_BYTES, SegmentHeader, new_mark, parse_name
from tests.table.driver import files
from tests.table.encoding import HEADER, Written
from tests.table.medium import Call, FaultyMedium

PATH = Path("somewhere")


def test_every_field_comes_back() -> None:
    header = SegmentHeader(bytes(range(16)), 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, loose=True)
    assert len(header.encode()) == SEGMENT_HEADER_BYTES
    decoded = SegmentHeader.decode(header.encode(), PATH)
    for field in fields(SegmentHeader):
        assert getattr(decoded, field.name) == getattr(header, field.name)


@pytest.mark.parametrize("at", range(SEGMENT_HEADER_BYTES))
def test_a_flip_of_any_header_byte_is_refused(at: int) -> None:
    data = bytearray(HEADER.encode())
    data[at] ^= 0x10
    with pytest.raises((CorruptLog, UnsupportedFormat), match="somewhere"):
        SegmentHeader.decode(bytes(data), PATH)


@pytest.mark.parametrize("size", [0, 1, SEGMENT_HEADER_BYTES - 1])
def test_half_a_header_is_corruption(size: int) -> None:
    with pytest.raises(CorruptLog):
        SegmentHeader.decode(HEADER.encode()[:size], PATH)


@pytest.mark.parametrize(("at", "what"), [(9, "version"), (11, "length"), (15, "must-understand flags")])
def test_a_newer_format_is_refused_and_not_called_damaged(at: int, what: str) -> None:
    data = bytearray(HEADER.encode())
    data[at] += 1
    data[-4:] = crc32(data[:-4]).to_bytes(4, "big")
    with pytest.raises(UnsupportedFormat, match="newer"):
        SegmentHeader.decode(bytes(data), PATH)


@pytest.mark.parametrize("at", range(8, 16))
@pytest.mark.parametrize("bit", range(8))
def test_a_flip_in_what_tells_a_newer_format_is_called_damage(at: int, bit: int) -> None:
    """A newer kvsd would not help."""
    data = bytearray(HEADER.encode())
    data[at] ^= 1 << bit
    with pytest.raises(CorruptLog, match="checksum"):
        SegmentHeader.decode(bytes(data) + bytes(100), PATH)


def test_a_longer_header_of_a_newer_format_is_read_to_its_end_before_it_is_judged(tmp_path: Path) -> None:
    fields = MAGIC + struct.pack(">HHI", 2, 256, 0) + bytes(236)
    path = tmp_path / HEADER.name
    for checksum, error in ((crc32(fields), UnsupportedFormat), (crc32(fields) ^ 1, CorruptLog)):
        path.write_bytes(fields + checksum.to_bytes(4, "big") + b"entries")
        medium = FaultyMedium(tmp_path)
        with pytest.raises(error):
            Segment.open(medium, path)
        assert not medium.open_files


def test_marks_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _: 0)
    assert new_mark() == 1


def test_names() -> None:
    assert HEADER.name == "0000000001-0000.seg"
    assert parse_name(replace(HEADER, segment_id=12, generation=3).name) == (12, 3)
    for name in ("reserve", "0000000001-0000.seg.tmp", "0000000001-0000.seg.torn-1", "1-0.seg", "lock"):
        assert parse_name(name) is None


def test_a_segment_that_cannot_be_created_leaves_no_descriptor(tmp_path: Path) -> None:
    for at in range(1, 6):
        medium = FaultyMedium(tmp_path / str(at))
        medium.fail(errno.EIO, at=at)
        with pytest.raises(OSError, match="error"):
            Segment.create(medium, medium.root, HEADER)
        assert not medium.open_files
    medium = FaultyMedium(tmp_path / "6")
    medium.fail(errno.EIO, at=6)
    Segment.create(medium, medium.root, HEADER).close()


def test_a_segment_has_its_name_only_with_a_synced_header(tmp_path: Path) -> None:
    for at in (Call.WRITE, Call.SYNC, Call.RENAME):
        medium = FaultyMedium(tmp_path / at)
        medium.fail(errno.EIO, calls={at})
        with pytest.raises(OSError, match="error"):
            Segment.create(medium, medium.root, HEADER)
        assert set(files(medium.root)) == {HEADER.name + ".tmp"}


@pytest.fixture
def written(tmp_path: Path) -> tuple[FaultyMedium, Segment, int]:
    segment = Written()
    segment.add(b"other", b"x")
    offset = segment.add(b"key", b"value")
    path = segment.save(tmp_path)
    medium = FaultyMedium(tmp_path)
    return medium, Segment.open(medium, path), offset


def test_an_entry_is_read_both_ways(written: tuple[FaultyMedium, Segment, int]) -> None:
    _, segment, offset = written
    assert segment.read(offset, b"key", 2, 5).value == b"value"
    assert segment.read_cached(offset, b"key", 2, 5).value == b"value"
    segment.close()


@pytest.mark.parametrize("at", range(64 + 8))
def test_a_flip_of_any_byte_of_an_entry_is_never_served(written: tuple[FaultyMedium, Segment, int], at: int) -> None:
    medium, segment, offset = written
    byte = medium.read(segment.fd, 1, offset + at)
    medium.write(segment.fd, [bytes([byte[0] ^ 2])], offset + at)
    for read in (segment.read, segment.read_cached):
        with pytest.raises(CorruptLog, match=f"offset {offset}") as caught:
            read(offset, b"key", 2, 5)
        assert caught.value.offset == offset
    segment.close()


@pytest.mark.parametrize(
    ("key", "seq", "shift"),
    [(b"kex", 2, 0), (b"key", 3, 0), (b"key", 2, 1), (b"key", 2, -70)],
    ids=["key", "seq", "offset", "another entry"],
)
def test_an_entry_other_than_asked_for_is_never_served(
    written: tuple[FaultyMedium, Segment, int], key: bytes, seq: int, shift: int
) -> None:
    _, segment, offset = written
    with pytest.raises(CorruptLog):
        segment.read(offset + shift, key, seq, 5)
    segment.close()


def test_a_file_that_has_become_shorter_is_damaged_and_not_served_short(
    written: tuple[FaultyMedium, Segment, int],
) -> None:
    medium, segment, offset = written
    medium.truncate(segment.fd, offset + 70)
    assert segment.read_cached(offset, b"key", 2, 5) is None
    with pytest.raises(CorruptLog):
        segment.read(offset, b"key", 2, 5)
    segment.close()


def test_a_read_that_fails_is_told_as_damage_of_that_entry(written: tuple[FaultyMedium, Segment, int]) -> None:
    medium, segment, offset = written
    medium.fail(errno.EIO, calls={Call.READ}, forever=True)
    for read in (segment.read, segment.read_cached):
        with pytest.raises(CorruptLog, match="cannot be read"):
            read(offset, b"key", 2, 5)
    segment.close()


def test_without_a_way_to_tell_cached_bytes_all_reads_are_cold(tmp_path: Path) -> None:
    path = Written().save(tmp_path)
    medium = FaultyMedium(tmp_path)
    medium.reads_cached = False
    segment = Segment.open(medium, path)
    assert segment.read_cached(192, b"", 1, 0) is None
    segment.close()


def test_the_descriptor_stays_open_until_the_last_pin_is_gone(written: tuple[FaultyMedium, Segment, int]) -> None:
    medium, segment, offset = written
    segment.pin()
    segment.pin()
    segment.close()
    segment.close()
    segment.unpin()
    assert segment.read(offset, b"key", 2, 5).value == b"value"
    segment.unpin()
    assert not medium.open_files


def test_an_unpinned_segment_stays_open_until_it_is_closed(written: tuple[FaultyMedium, Segment, int]) -> None:
    medium, segment, _ = written
    segment.pin()
    segment.unpin()
    assert medium.open_files
    segment.close()
    assert not medium.open_files
