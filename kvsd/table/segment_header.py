"""The header of a segment, in which it says what it is, and the name of its file.

Owns: the header's layout (docs/log-format.md), and which names are those of segments. Must not know descriptors, nor
what is behind the header.
"""

from __future__ import annotations

import re
import secrets
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from zlib import crc32

from kvsd.errors import CorruptLog, StorageError, UnsupportedFormat
from kvsd.table.entry import SEAL_BYTES, seed
from kvsd.table.medium import Medium

MAGIC: Final = b"kvsdseg\n"
VERSION: Final = 1
_LAYOUT: Final = struct.Struct(">8sHHI16sQQIIQQQQQ32xQ?51x")
_START: Final = struct.Struct(">8sHHI")
"""The beginning of every version's header, whose last four bytes are the checksum of all before them."""
_CHECKSUM: Final = struct.Struct(">I")
SEGMENT_HEADER_BYTES: Final = _LAYOUT.size + _CHECKSUM.size
assert SEGMENT_HEADER_BYTES == 192

OVERHEAD_BYTES: Final = SEGMENT_HEADER_BYTES + SEAL_BYTES
"""Bytes of each sealed segment beside its entries: its header and its SEAL."""

TEMPORARY: Final = ".tmp"
GENERATION_BITS: Final = 14
MAX_GENERATION: Final = 9_999
"""A name has room for four digits."""

SUFFIX: Final = ".seg"
"""Not `.log`: tools that rotate or remove logs look for that."""

OLD_SUFFIX: Final = ".log"
"""The suffix of segments that earlier versions wrote. They keep their names."""

_NAME: Final = re.compile(rf"(\d{{10}})-(\d{{4}})(?:{SUFFIX}|{OLD_SUFFIX})")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """What a segment says of itself; written once, before the segment has its name."""

    table_id: bytes
    epoch: int
    """Raised whenever numbers may have been seen that are not on disk."""
    segment_id: int
    generation: int
    """0 as written; higher where compaction put this file in place of others."""
    mark: int
    covered_from: int
    """The first seq that this file answers for: one behind the previous segment's last."""
    covered_to: int
    """The last seq that it answers for; 0: as its SEAL says."""
    base_seq: int
    """Every seq in this file is above it."""
    base_timestamp_us: int
    dropped_through: int
    """The highest seq that compaction has removed so far; 0 none."""
    created_us: int
    loose: bool
    """Written under `fsync: interval` or `never`: after a crash, numbers beyond the file's may have been seen."""

    @property
    def name(self) -> str:
        return f"{self.segment_id:010d}-{self.generation:04d}{SUFFIX}"

    def encode(self) -> bytes:
        fields = _LAYOUT.pack(
            MAGIC,
            VERSION,
            SEGMENT_HEADER_BYTES,
            0,
            self.table_id,
            self.epoch,
            self.segment_id,
            self.generation,
            self.mark,
            self.covered_from,
            self.covered_to,
            self.base_seq,
            self.base_timestamp_us,
            self.dropped_through,
            self.created_us,
            self.loose,
        )
        return fields + _CHECKSUM.pack(crc32(fields))

    @classmethod
    def decode(cls, data: bytes, path: Path) -> SegmentHeader:
        """Raises CorruptLog where the bytes are not an intact header, UnsupportedFormat where they are a newer one.

        The checksum comes first: a flipped bit in the version is damage, and no newer kvsd would help.
        """
        if len(data) < SEGMENT_HEADER_BYTES or not data.startswith(MAGIC):
            raise CorruptLog(f"{path}: no segment header at offset 0", str(path), 0)
        _, version, size, flags = _START.unpack_from(data)
        if not any(_checksum_holds(data, end) for end in (_LAYOUT.size, size - _CHECKSUM.size)):
            raise CorruptLog(
                f"{path}: the segment header's checksum is wrong; restore the file from a backup", str(path), 0
            )
        if version != VERSION or size != SEGMENT_HEADER_BYTES or flags:
            raise UnsupportedFormat(
                f"{path}: segment format {version} (flags {flags:#x}) is not known to this kvsd; use a newer one"
            )
        return cls(*_LAYOUT.unpack_from(data)[4:])

    @classmethod
    def read(cls, medium: Medium, fd: int, path: Path) -> SegmentHeader:
        """The header of an open file; raises what `decode` raises, and OSError."""
        data = medium.read(fd, SEGMENT_HEADER_BYTES, 0)
        if len(data) == SEGMENT_HEADER_BYTES and (size := _START.unpack_from(data)[2]) > len(data):
            data = medium.read(fd, size, 0)
        return cls.decode(data, path)

    @property
    def number(self) -> int:
        """Segment id and generation as one number of 46 bits: two files of a table never share it."""
        return self.segment_id << GENERATION_BITS | self.generation

    def position(self, offset: int) -> int:
        """A place in the log as one number of 78 bits, which rises with the segments."""
        return self.number << 32 | offset

    @property
    def crc_seed(self) -> int:
        """What an entry's header_crc starts from at offset 0."""
        return seed(self.segment_id, 0)

    @classmethod
    def first(cls, now_us: int, *, loose: bool) -> SegmentHeader:
        """The header of a new table's first segment."""
        return cls(
            table_id=secrets.token_bytes(16),
            epoch=1,
            segment_id=1,
            generation=0,
            mark=new_mark(),
            covered_from=1,
            covered_to=0,
            base_seq=0,
            base_timestamp_us=now_us,
            dropped_through=0,
            created_us=now_us,
            loose=loose,
        )

    def successor(self, covered_through: int, base_seq: int, timestamp_us: int, *, loose: bool) -> SegmentHeader:
        """The header of the segment behind this one, whose entries end at `covered_through`."""
        return replace(
            self,
            segment_id=self.segment_id + 1,
            generation=0,
            mark=new_mark(),
            covered_from=covered_through + 1,
            covered_to=0,
            base_seq=base_seq,
            base_timestamp_us=timestamp_us,
            created_us=timestamp_us,
            loose=loose,
        )


def _checksum_holds(data: bytes, end: int) -> bool:
    """Tell whether the bytes before `end` are those that the checksum there was made of."""
    return _START.size <= end <= len(data) - _CHECKSUM.size and _CHECKSUM.unpack_from(data, end)[0] == crc32(data[:end])


def new_mark() -> int:
    """Random and never zero: zero filling must not look like marks."""
    return secrets.randbelow(0xFFFFFFFF) + 1


def parse_name(name: str) -> tuple[int, int] | None:
    """Segment id and generation of a segment's file name; None where it is none."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def table_id_in(medium: Medium, folder: Path) -> bytes | None:
    """The id of the table whose segments are in `folder`; None where there are none, or none that can be read."""
    try:
        for name in filter(parse_name, medium.names(folder)):
            fd = medium.open(folder / name)
            try:
                return SegmentHeader.read(medium, fd, folder / name).table_id
            except StorageError:
                continue
            finally:
                medium.close(fd)
    except OSError:
        pass
    return None
