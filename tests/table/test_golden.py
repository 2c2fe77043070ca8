"""The format of the first release, byte by byte, and the example in its description."""

from __future__ import annotations

import re
from pathlib import Path

from kvsd.table import hint
from kvsd.table.entry import HEADER, HEADER_BYTES, SEAL_VALUE, Header, Kind, header_is_intact
from kvsd.table.medium import Medium
from kvsd.table.segment_header import OLD_SUFFIX, SEGMENT_HEADER_BYTES, SUFFIX, SegmentHeader, parse_name
from tests.table import golden
from tests.table.driver import START_US, Table, files, segments
from tests.table.medium import FaultyMedium

DOCUMENT = Path(__file__).parents[2] / "docs" / "log-format.md"


def test_the_log_of_the_first_release_is_read(tmp_path: Path) -> None:
    for name, data in files(golden.FOLDER).items():
        (tmp_path / "t").mkdir(exist_ok=True)
        (tmp_path / "t" / name).write_bytes(data)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.items() == golden.ITEMS
    assert table.log.last_seq == 10
    assert not table.log.torn_tail
    table.put(b"new", b"behind old files")
    table.kill()
    assert {Path(name).suffix for name in files(table.directory) if parse_name(name)} == {OLD_SUFFIX, SUFFIX}
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.items() == golden.ITEMS | {b"new": b"behind old files"}
    table.kill()


def test_the_same_writes_make_the_same_bytes(tmp_path: Path) -> None:
    written = {name: data for name, data in files(golden.write(tmp_path)).items() if name.endswith(SUFFIX)}
    assert len(written) == 2
    assert written == {name.replace(OLD_SUFFIX, SUFFIX): data for name, data in files(golden.FOLDER).items()}


def restore(root: Path, *folders: Path) -> None:
    (root / "t").mkdir()
    for folder in folders:
        for name, data in files(folder).items():
            (root / "t" / name).write_bytes(data)


def test_the_golden_hints_are_taken_for_their_log(tmp_path: Path) -> None:
    restore(tmp_path, golden.FOLDER, golden.HINTS)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.log.take_unhinted() == []
    assert table.items() == golden.ITEMS
    assert table.log.last_seq == 10
    table.kill()


def test_the_same_log_makes_the_same_hints(tmp_path: Path) -> None:
    restore(tmp_path, golden.FOLDER)
    for path in segments(tmp_path / "t"):
        assert hint.write(Medium(), path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "t").glob("*.hint")} == files(golden.HINTS)


def test_the_documented_hint_is_that_of_the_documented_log(tmp_path: Path) -> None:
    (tmp_path / "0000000001-0000.seg").write_bytes(documented())
    hint.write(Medium(), tmp_path / "0000000001-0000.seg")
    assert (tmp_path / "0000000001-0000.hint").read_bytes() == documented("## Hints")


def documented(heading: str = "## A worked example") -> bytes:
    """The bytes of an example in the document."""
    example = DOCUMENT.read_text().split(heading + "\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    ([0-9a-f]{4})  ((?:[0-9a-f]{2} ?)+)", example, re.MULTILINE)
    data = b""
    for offset, line in lines:
        assert int(offset, 16) == len(data)
        data += bytes.fromhex(line)
    return data


def test_the_documented_bytes_are_what_the_document_says(tmp_path: Path) -> None:
    data = documented()
    header = SegmentHeader.decode(data[:SEGMENT_HEADER_BYTES], tmp_path)
    assert (header.segment_id, header.epoch, header.mark, header.loose) == (1, 1, 0xA1B2C3D4, False)
    assert (header.covered_from, header.base_timestamp_us) == (1, START_US)
    assert header.table_id == golden.TABLE_ID
    at = SEGMENT_HEADER_BYTES
    entry = Header._make(HEADER.unpack_from(data, at))
    assert header_is_intact(data, at, header.mark, header.crc_seed ^ at)
    assert (entry.kind, entry.seq, entry.timestamp_us, entry.synced_to) == (Kind.SET, 1, START_US + 1, at)
    assert (entry.key_bytes, entry.value_bytes) == (len(b"hello"), len(b"rust"))
    at += HEADER_BYTES
    assert data[at : at + 9] == b"hello" + b"rust"
    at += 9
    seal = Header._make(HEADER.unpack_from(data, at))
    assert header_is_intact(data, at, header.mark, header.crc_seed ^ at)
    assert (seal.kind, seal.seq, seal.synced_to) == (Kind.SEAL, 2, at)
    assert SEAL_VALUE.unpack(data[at + HEADER_BYTES :]) == (1, 1, entry.header_crc)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / header.name).write_bytes(data)
    table = Table(FaultyMedium(tmp_path), tmp_path)
    assert table.items() == {b"hello": b"rust"}
    table.kill()
