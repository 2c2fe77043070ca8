"""Entries and segments written by hand, with any field as a test wants it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from kvsd.table.entry import DIGEST_MASK, Kind, encode_header, encode_seal
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from tests.table.driver import START_US

HEADER = SegmentHeader(
    table_id=bytes(range(16)),
    epoch=1,
    segment_id=1,
    generation=0,
    mark=0xA1B2C3D4,
    covered_from=1,
    covered_to=0,
    base_seq=0,
    base_timestamp_us=START_US,
    dropped_through=0,
    created_us=START_US,
    loose=False,
)


@dataclass
class Written:
    """A segment under construction; every `add` returns the offset of its entry."""

    header: SegmentHeader = HEADER
    data: bytearray = field(default_factory=bytearray)
    synced_to: int = SEGMENT_HEADER_BYTES
    count: int = 0
    last_seq: int = 0
    digest: int = 0

    def __post_init__(self) -> None:
        self.data += self.header.encode()
        self._numbers = itertools.count(self.header.base_seq + 1)

    def add(
        self,
        key: bytes = b"k",
        value: bytes = b"v",
        *,
        kind: int = Kind.SET,
        seq: int | None = None,
        timestamp_us: int | None = None,
        value_bytes: int | None = None,
        batch: tuple[int, int] = (0, 1),
    ) -> int:
        offset = len(self.data)
        number = next(self._numbers)
        self.last_seq = number if seq is None else seq
        header, header_crc = encode_header(
            self.header.mark,
            self.header.crc_seed ^ offset,
            crc32(key + value),
            self.synced_to,
            self.last_seq,
            self.header.base_timestamp_us + number if timestamp_us is None else timestamp_us,
            0,
            0,
            kind,
            len(key),
            len(value) if value_bytes is None else value_bytes,
            *batch,
        )
        self.data += header + key + value
        self.count += 1
        self.digest = self.digest + header_crc & DIGEST_MASK
        return offset

    def sync(self) -> None:
        """What follows says that all up to here is on the medium."""
        self.synced_to = len(self.data)

    def seal(self, **wrong: int) -> None:
        number = next(self._numbers)
        fields = {
            "count": self.count,
            "last_seq": self.last_seq,
            "digest": self.digest,
            "seq": number,
            "timestamp_us": self.header.base_timestamp_us + number,
        }
        offset = len(self.data)
        self.data += encode_seal(
            mark=self.header.mark, crc_seed=self.header.crc_seed, offset=offset, **(fields | wrong)
        )
        self.last_seq = number

    def successor(self) -> Written:
        """The next segment, once this one is sealed."""
        through = self.last_seq if self.count else self.header.covered_from - 1
        timestamp_us = self.header.base_timestamp_us + self.last_seq
        return Written(self.header.successor(through, self.last_seq, timestamp_us, loose=False))

    def save(self, root: Path) -> Path:
        folder = root / "t"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.header.name
        path.write_bytes(self.data)
        return path


def save_all(root: Path, segments: Iterable[Written]) -> None:
    for segment in segments:
        segment.save(root)
