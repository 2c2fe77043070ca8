"""Reading a segment from its start and checking everything on the way.

Owns: what counts as an intact entry, and where the intact ones end. Must not change a file, nor judge whether damage
is a torn tail; that is recovery's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

from kvsd.errors import UnsupportedFormat
from kvsd.table import entry
from kvsd.table.entry import (
    DIGEST_MASK,
    HEADER,
    HEADER_BYTES,
    SEAL_BYTES,
    SEAL_VALUE,
    SEQ_GAP,
    Header,
    Kind,
    Record,
    header_is_intact,
)
from kvsd.table.segment import Segment
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES

_WINDOW_BYTES: Final = 256 << 10
"""4 MiB are no faster, and come on top of the index at its worst: 10 bytes for each of a million keys."""


class Seal(NamedTuple):
    """Where a segment's SEAL stands, and what it says of the entries before it."""

    offset: int
    entries: int
    last_seq: int
    digest: int


class SegmentReader:
    """One pass over a segment; iterating yields its Records, and the attributes then say how it ended.

    With `whole_batches` the entries of a batch come only once all of them are there. `reached` is told the offset
    now and then.
    Iterating raises UnsupportedFormat for an intact entry of a kind or codec that is not known.
    """

    def __init__(
        self, segment: Segment, *, whole_batches: bool, reached: Callable[[int], None] = lambda _: None
    ) -> None:
        self.segment = segment
        self.whole_batches = whole_batches
        self._reached = reached
        self.size_bytes = segment.size_bytes
        self.accepted_to = SEGMENT_HEADER_BYTES
        """Where the intact entries end."""
        self.count = 0
        self.last_seq = 0
        self.digest = 0
        self.last_timestamp_us = segment.header.base_timestamp_us
        self.seal: Seal | None = None
        """An intact SEAL whose count, seq and digest fit; the reader ends with it."""
        self.lost_numbers = False
        """The SEAL says so: recovery put it there, after a run whose unsynced entries may have been seen."""
        self.ended_because = ""

    @property
    def sealed_at(self) -> int | None:
        return None if self.seal is None else self.seal.offset

    @property
    def end_seq(self) -> int:
        """The last number that this segment has used, or inherited."""
        return max(self.last_seq, self.segment.header.base_seq)

    @property
    def covered_through(self) -> int:
        """The last number that the segment answers for; an empty one answers for none, unless its header says so."""
        header = self.segment.header
        return header.covered_to or (self.end_seq if self.count else header.covered_from - 1)

    @property
    def is_empty(self) -> bool:
        """Without entries, and without numbers that it answers for."""
        return not self.count and not self.segment.header.covered_to

    def accept(self, seal: Seal) -> bool:
        """Instead of iterating: whether the segment has this very SEAL, which vouches for what is before it."""
        segment = self.segment
        data = segment.medium.read(segment.fd, SEAL_BYTES, seal.offset)
        if not header_is_intact(data, 0, segment.header.mark, segment.crc_seed ^ seal.offset):
            return False
        header, value = Header._make(HEADER.unpack_from(data)), data[HEADER_BYTES:]
        if header.kind != Kind.SEAL or crc32(value) != header.body_crc or value != SEAL_VALUE.pack(*seal[1:]):
            return False
        self.seal = seal
        self.lost_numbers = header.seq - seal.last_seq > SEQ_GAP
        self.accepted_to = seal.offset + len(data)
        self.count, self.digest = seal.entries, seal.digest
        self.last_seq, self.last_timestamp_us = header.seq, header.timestamp_us
        return True

    def __iter__(self) -> Iterator[Record]:
        segment = self.segment
        medium, fd, mark = segment.medium, segment.fd, segment.header.mark
        crc_seed = segment.crc_seed
        unpack = HEADER.unpack_from
        seal_kind = Kind.SEAL  # looking it up costs more than unpacking a header
        last_seq, last_timestamp = segment.header.base_seq, self.last_timestamp_us
        batch: list[Record] = []
        wanted = 0
        digest = count = 0
        segment_position = segment.header.position(0)
        base = SEGMENT_HEADER_BYTES
        data = medium.read(fd, _WINDOW_BYTES, base)
        at = 0
        while True:
            if len(data) - at < HEADER_BYTES:
                base += at
                at = 0
                self._reached(base)
                data = medium.read(fd, _WINDOW_BYTES, base)
                if len(data) < HEADER_BYTES:
                    self.ended_because = "the file ends inside an entry's header" if data else "the file ends"
                    break
            (
                found_mark, header_crc, body_crc, _, seq, timestamp, expires_us, _,
                batch_index, batch_count, kind, flags, key_bytes, value_bytes,
            ) = unpack(data, at)  # fmt: skip
            offset = base + at
            if found_mark != mark or crc32(data[at + 8 : at + HEADER_BYTES], crc_seed ^ offset) != header_crc:
                self.ended_because = "no intact entry header follows"
                break
            end = at + HEADER_BYTES + key_bytes + value_bytes
            if value_bytes > entry.MAX_FORMAT_VALUE_BYTES:
                self.ended_because = "an entry's value is longer than the format allows"
                break
            if end > len(data):
                self._reached(offset)
                data = medium.read(fd, max(_WINDOW_BYTES, end - at), offset)
                end -= at
                base, at = offset, 0
                if end > len(data):
                    self.ended_because = "the file ends inside an entry"
                    break
            if crc32(data[at + HEADER_BYTES : end]) != body_crc:
                self.ended_because = "an entry's key or value fails its checksum"
                break
            if kind not in entry.KINDS or flags:
                raise UnsupportedFormat(
                    f"{segment.path}: entry of kind {kind}, flags {flags:#x} at offset {offset} is not known "
                    "to this kvsd; use a newer one"
                )
            if seq <= last_seq or timestamp <= last_timestamp:
                self.ended_because = "an entry's number or time does not rise"
                break
            if kind == seal_kind:
                if batch or data[at + HEADER_BYTES : end] != SEAL_VALUE.pack(count, self.last_seq, digest):
                    self.ended_because = "the SEAL does not fit the entries before it"
                    break
                self.seal = Seal(offset, count, self.last_seq, digest)
                self.lost_numbers = seq - last_seq > SEQ_GAP
                self.accepted_to = base + end
                self.last_seq, self.last_timestamp_us = seq, timestamp
                break
            last_seq, last_timestamp = seq, timestamp
            key = data[at + HEADER_BYTES : at + HEADER_BYTES + key_bytes]
            digest = digest + header_crc & DIGEST_MASK
            count += 1
            at = end
            if batch_count > 1 and self.whole_batches:
                if not batch:
                    wanted = batch_count
                if batch_index != len(batch) or batch_count != wanted:
                    self.ended_because = "a batch is incomplete"
                    break
                batch.append((kind, key, seq, segment_position | offset, value_bytes, expires_us))
                if len(batch) < wanted:
                    continue
                yield from batch
                batch = []
            else:
                if batch:
                    self.ended_because = "a batch is incomplete"
                    break
                yield kind, key, seq, segment_position | offset, value_bytes, expires_us
            # Only what was yielded is accepted: an unfinished batch must leave no trace in these.
            self.accepted_to = base + at
            self.count, self.digest = count, digest
            self.last_seq, self.last_timestamp_us = seq, timestamp
