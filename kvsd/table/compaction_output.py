"""What a compaction writes: one segment, which gets its name when all of it is durable.

Owns: the bytes of the output, its syncs, its SEAL, and what is left of it after a failure. Must not know what is
wanted, nor the index or the log.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kvsd.table import hint
from kvsd.table.compaction_input import Slice
from kvsd.table.entry import DIGEST_MASK, HEADER_BYTES, encode_header, encode_seal
from kvsd.table.medium import Medium
from kvsd.table.segment import Segment, seal
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, TEMPORARY, SegmentHeader
from kvsd.table.segment_reader import SegmentReader

_SYNC_BYTES: Final = 8 << 20
"""Synced on the way, so that no sync of a commit has to wait for a whole segment."""
MARGIN_BYTES: Final = 16 << 20
"""What the disk must have beside the output, for the writes that go on meanwhile; but no more than the output again: on
a full disk, what is all but dead must still be able to go."""
_MAX_OFFSET: Final = 0xFFFFFFFF


class Output:
    """The file that is written; it gets its header last, and its name once all of it is synced."""

    def __init__(self, medium: Medium, directory: Path, header: SegmentHeader) -> None:
        self.medium = medium
        self.path = directory / header.name
        self.header = header
        self.count = 0
        self.segment: Segment | None = None
        """Once `publish` has run."""
        self.is_published = False
        """Whether the file may have its name, on the medium or in memory."""
        self._temporary = directory / (header.name + TEMPORARY)
        self._fd: int | None = None
        self._end = self._synced_to = SEGMENT_HEADER_BYTES
        self._last_seq = 0
        self._digest = 0

    def create(self, expected_bytes: int) -> None:
        """Raises OSError, ENOSPC also where the disk would be left with next to nothing."""
        if self.medium.free_bytes(self.path.parent) < expected_bytes + min(expected_bytes, MARGIN_BYTES):
            raise OSError(errno.ENOSPC, "not enough room to compact", str(self.path.parent))
        self._fd = self.medium.open(self._temporary, create=True)

    def write(self, found: Slice, wanted: Sequence[bool]) -> None:
        """Append the wanted entries of `found`, with headers for their new place."""
        assert self._fd is not None
        data, end = found.data, self._end
        buffers: list[bytes] = []
        mark, crc_seed = self.header.mark, self.header.crc_seed
        for place, is_wanted in enumerate(wanted):
            if not is_wanted:
                continue
            at, old = found.at(place), found.header(place)
            header, header_crc = encode_header(
                mark,
                crc_seed ^ end,
                old.body_crc,
                SEGMENT_HEADER_BYTES,
                old.seq,
                old.timestamp_us,
                old.expires_us,
                old.prev_seq,
                old.kind,
                old.key_bytes,
                old.value_bytes,
                old.batch_index,
                old.batch_count,
            )
            size = HEADER_BYTES + old.key_bytes + old.value_bytes
            buffers += header, data[at + HEADER_BYTES : at + size]
            end += size
            self.count += 1
            self._last_seq = old.seq
            self._digest = self._digest + header_crc & DIGEST_MASK
        if end > _MAX_OFFSET:
            raise OSError(errno.EFBIG, "a segment holds less than 4 GiB", str(self.path))
        if buffers:
            self.medium.write(self._fd, [b"".join(buffers)], self._end)
            self._end = end
        if end - self._synced_to >= _SYNC_BYTES:
            self.medium.sync(self._fd)
            self._synced_to = end

    def publish(self, last: SegmentReader, dropped_through: int) -> None:
        """Seal the file as `last`, the reader of the last input at its end, was sealed; all of it is durable then, and
        so is its name."""
        assert self._fd is not None
        medium, directory = self.medium, self.path.parent
        header = replace(self.header, covered_to=last.covered_through, dropped_through=dropped_through)
        medium.write(self._fd, [header.encode()], 0)
        seal_entry = encode_seal(
            mark=header.mark,
            crc_seed=header.crc_seed,
            offset=self._end,
            count=self.count,
            last_seq=self._last_seq,
            digest=self._digest,
            seq=last.last_seq,
            timestamp_us=last.last_timestamp_us,
        )
        seal(medium, self._fd, self._end, seal_entry)
        medium.rename_to_new(self._temporary, self.path)
        self.is_published = True
        medium.sync_directory(directory)
        size_bytes = self._end + len(seal_entry)
        self.segment, self._fd = Segment(medium, self.path, header, self._fd, size_bytes), None

    def discard(self) -> None:
        """What was begun is gone; a file that may have its name already stays, and is as good as its inputs."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self.medium.close(fd)
            if not self.is_published:
                self.medium.unlink(self._temporary)
        elif self.segment is not None:
            self.segment.close()

    def withdraw(self) -> None:
        """Take away a file that does not give back what was written: its inputs are all there still."""
        assert self.segment is not None
        self.segment.is_withdrawn = True
        self.medium.unlink(self.path)
        hint.discard(self.medium, self.path)
        self.medium.sync_directory(self.path.parent)
