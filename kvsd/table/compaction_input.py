"""What a compaction reads: the entries of a segment, checked, a slice at a time.

Owns: how much a job takes on at once. Must not know what is wanted of it, nor where that goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvsd.errors import CorruptLog
from kvsd.table.entry import HEADER, HEADER_BYTES, Header, Record, header_is_intact
from kvsd.table.limits import limit_of
from kvsd.table.segment import Segment
from kvsd.table.segment_reader import SegmentReader

SLICE_RECORDS: Final = 128
SLICE_BYTES: Final = 1 << 20
"""What a job takes on: under a millisecond of Python, in which another thread may have to wait for the interpreter."""


class Slice:
    """Some consecutive entries of a segment, as checked records and as bytes."""

    __slots__ = ("_base", "data", "position", "records", "size_bytes")

    def __init__(self, segment: Segment, records: list[Record]) -> None:
        self.records = records
        self.position = segment.header.position(0)
        self._base = records[0][3] - self.position
        _, key, _, position, value_bytes, _ = records[-1]
        self.size_bytes = position - self.position + HEADER_BYTES + len(key) + value_bytes - self._base
        self.data = segment.medium.read(segment.fd, self.size_bytes, self._base)
        for _, _, _, position, _, _ in records:
            offset = position - self.position
            # Read once more than the reader did: what is carried over must be what was checked.
            if not header_is_intact(self.data, offset - self._base, segment.header.mark, segment.crc_seed ^ offset):
                raise CorruptLog(f"{segment.path}: damaged at offset {offset}", str(segment.path), offset)

    def at(self, place: int) -> int:
        """Where in `data` the entry of `records[place]` begins."""
        return self.records[place][3] - self.position - self._base

    def header(self, place: int) -> Header:
        return Header._make(HEADER.unpack_from(self.data, self.at(place)))

    def prev_seq(self, place: int) -> int:
        return self.header(place).prev_seq


class Input:
    """A sealed segment that is read and checked slice by slice; pinned by whoever has it read."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.reader = SegmentReader(segment, whole_batches=False)
        self.slice: Slice | None = None
        """What the last `read` has found; None at the end."""
        self._records = iter(self.reader)

    def read(self) -> None:
        """Raises CorruptLog where the segment is not intact to its SEAL, or cannot be read; OSError at a limit."""
        try:
            self._read()
        except OSError as error:
            if limit_of(error) is not None:
                raise
            path, offset = self.segment.path, self.reader.accepted_to
            raise CorruptLog(f"{path}: cannot be read at offset {offset}: {error}", str(path), offset) from error

    def _read(self) -> None:
        self.slice = None
        self.segment.ensure_open()
        records = list(_some(self._records))
        if records:
            self.slice = Slice(self.segment, records)
        elif self.reader.sealed_at is None:
            path, offset = self.segment.path, self.reader.accepted_to
            raise CorruptLog(f"{path}: damaged at offset {offset}: {self.reader.ended_because}", str(path), offset)


def _some(records: Iterator[Record]) -> Iterator[Record]:
    size = 0
    for count, record in enumerate(records, 1):
        yield record
        size += HEADER_BYTES + len(record[1]) + record[4]
        if count == SLICE_RECORDS or size >= SLICE_BYTES:
            return
