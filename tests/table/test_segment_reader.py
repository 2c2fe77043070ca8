"""One pass over a segment, and how it says where and why it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvsd.table.entry import Record
from kvsd.table.segment import Segment
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES
from kvsd.table.segment_reader import SegmentReader
from tests.table.driver import START_US
from tests.table.encoding import Written
from tests.table.medium import FaultyMedium


def read(tmp_path: Path, segment: Written, *, whole_batches: bool = True) -> tuple[SegmentReader, list[Record]]:
    path = segment.save(tmp_path)
    opened = Segment.open(FaultyMedium(tmp_path), path)
    reader = SegmentReader(opened, whole_batches=whole_batches)
    records = list(reader)
    opened.close()
    return reader, records


def test_an_empty_segment_inherits_its_numbers(tmp_path: Path) -> None:
    reader, records = read(tmp_path, Written())
    assert records == []
    assert (reader.accepted_to, reader.count, reader.end_seq, reader.covered_through) == (SEGMENT_HEADER_BYTES, 0, 0, 0)
    assert reader.last_timestamp_us == START_US
    assert reader.ended_because == "the file ends"


def test_a_record_says_where_its_entry_is(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"a", b"1")
    offset = segment.add(b"bb", b"22")
    reader, records = read(tmp_path, segment)
    assert records[1] == (1, b"bb", 2, 1 << 46 | offset, 2, 0)
    assert reader.accepted_to == len(segment.data)
    assert (reader.count, reader.last_seq, reader.digest) == (2, 2, segment.digest)


def test_reading_ends_at_the_seal(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    at = len(segment.data)
    segment.seal()
    reader, records = read(tmp_path, segment)
    assert len(records) == 1
    assert (reader.sealed_at, reader.accepted_to) == (at, len(segment.data))
    assert (reader.end_seq, reader.covered_through) == (2, 2)
    assert not reader.lost_numbers


def test_a_seal_whose_number_jumps_says_that_numbers_were_lost(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    segment.seal(seq=2 + (1 << 32))
    reader, _ = read(tmp_path, segment)
    assert reader.lost_numbers


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data, at: data[:at], "the file ends"),
        (lambda data, at: data[: at + 10], "inside an entry's header"),
        (lambda data, at: data[: at + 65], "inside an entry"),
        (lambda data, at: data[: at + 8] + b"x" + data[at + 9 :], "no intact entry header"),
        (lambda data, at: data[:-1] + b"x", "fails its checksum"),
    ],
)
def test_the_reason_for_the_end_is_told(tmp_path: Path, damage: object, reason: str) -> None:
    segment = Written()
    segment.add()
    at = segment.add()
    segment.data = damage(segment.data, at)  # type: ignore[operator]
    reader, records = read(tmp_path, segment)
    assert len(records) == 1
    assert reader.accepted_to == at
    assert reason in reader.ended_because


def test_an_unfinished_batch_leaves_no_trace(tmp_path: Path) -> None:
    segment = Written()
    at = segment.add()
    segment.add(b"b", batch=(0, 2))
    reader, records = read(tmp_path, segment)
    single = Written()
    single.add()
    assert len(records) == 1
    assert at == SEGMENT_HEADER_BYTES
    assert (reader.accepted_to, reader.count, reader.last_seq, reader.digest) == (len(single.data), 1, 1, single.digest)


def test_a_seal_inside_a_batch_is_not_believed(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"b", batch=(0, 2))
    segment.seal()
    reader, records = read(tmp_path, segment)
    assert reader.sealed_at is None
    assert records == []
