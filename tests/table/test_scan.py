"""One pass over a segment, and how it says where and why it ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvsd.table.scan import Record, Scan
from kvsd.table.segment import SEGMENT_HEADER_BYTES, Segment
from tests.table.driver import START_US
from tests.table.encoding import Written
from tests.table.medium import FaultyMedium


def scanned(tmp_path: Path, segment: Written, *, whole_batches: bool = True) -> tuple[Scan, list[Record]]:
    path = segment.save(tmp_path)
    opened = Segment.open(FaultyMedium(tmp_path), path)
    scan = Scan(opened, whole_batches=whole_batches)
    records = list(scan)
    opened.close()
    return scan, records


def test_an_empty_segment_inherits_its_numbers(tmp_path: Path) -> None:
    scan, records = scanned(tmp_path, Written())
    assert records == []
    assert (scan.accepted_to, scan.count, scan.end_seq, scan.covered_through) == (SEGMENT_HEADER_BYTES, 0, 0, 0)
    assert scan.last_timestamp_us == START_US
    assert scan.ended_because == "the file ends"


def test_a_record_says_where_its_entry_is(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"a", b"1")
    offset = segment.add(b"bb", b"22")
    scan, records = scanned(tmp_path, segment)
    assert records[1] == (1, b"bb", 2, 1 << 46 | offset, 2, 0)
    assert (scan.accepted_to, scan.count, scan.last_seq, scan.digest) == (len(segment.data), 2, 2, segment.digest)


def test_a_scan_ends_at_the_seal(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    at = len(segment.data)
    segment.seal()
    scan, records = scanned(tmp_path, segment)
    assert len(records) == 1
    assert (scan.sealed_at, scan.accepted_to, scan.end_seq, scan.covered_through) == (at, len(segment.data), 2, 2)
    assert not scan.lost_numbers


def test_a_seal_whose_number_jumps_says_that_numbers_were_lost(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    segment.seal(seq=2 + (1 << 32))
    scan, _ = scanned(tmp_path, segment)
    assert scan.lost_numbers


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
    scan, records = scanned(tmp_path, segment)
    assert len(records) == 1
    assert scan.accepted_to == at
    assert reason in scan.ended_because


def test_an_unfinished_batch_leaves_no_trace(tmp_path: Path) -> None:
    segment = Written()
    at = segment.add()
    segment.add(b"b", batch=(0, 2))
    scan, records = scanned(tmp_path, segment)
    single = Written()
    single.add()
    assert len(records) == 1
    assert at == SEGMENT_HEADER_BYTES
    assert (scan.accepted_to, scan.count, scan.last_seq, scan.digest) == (len(single.data), 1, 1, single.digest)


def test_a_seal_inside_a_batch_is_not_believed(tmp_path: Path) -> None:
    segment = Written()
    segment.add(b"b", batch=(0, 2))
    segment.seal()
    scan, records = scanned(tmp_path, segment)
    assert scan.sealed_at is None
    assert records == []
