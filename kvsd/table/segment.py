"""One file of the log, and its descriptor.

Owns: how the file comes to be, and the descriptor's lifetime. Must not know which segment is active, nor what the
entries mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from zlib import crc32

from kvsd.errors import Busy, CorruptLog
from kvsd.table.entry import HEADER, HEADER_BYTES, header_is_intact
from kvsd.table.limits import limit_of
from kvsd.table.medium import LostFile, Medium, check_length
from kvsd.table.open_segments import OpenSegments
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, TEMPORARY, SegmentHeader, parse_name
from kvsd.types import Key, Value

FIRST_FILL_BYTES: Final = 64 << 10
_BODY_CRC, _SEQ, _TIMESTAMP = 2, 4, 5  # fields of an entry's header


class Stored(NamedTuple):
    """What an entry holds beside what the index knows."""

    value: Value
    timestamp_us: int


class Segment:
    """A segment, open or parked: without a descriptor until somebody reads it. Only one that is shared is ever parked.

    The descriptor closes with the last pin: a worker never reads from a reused number. Pins belong to the thread of
    the log.
    """

    __slots__ = (
        "_can_read_cached",
        "_closing",
        "_identity",
        "_pins",
        "_reads_cached",
        "_shared",
        "crc_seed",
        "fd",
        "header",
        "is_withdrawn",
        "medium",
        "path",
        "size_bytes",
        "was_read",
    )

    def __init__(self, medium: Medium, path: Path, header: SegmentHeader, fd: int, size_bytes: int) -> None:
        self.medium = medium
        self.path = path
        self.header = header
        self.fd = fd
        self.size_bytes = size_bytes
        """The size as far as is known, zeros ahead of the appends included; the disk need not be asked."""
        self.is_withdrawn = False
        """True once its name was taken away by us; what was opened before is still read."""
        self.crc_seed = header.crc_seed
        self._reads_cached = self._can_read_cached = medium.can_read_cached(fd)
        self._identity = medium.identity(fd)
        self._pins = 0
        self._closing = False
        self._shared: OpenSegments | None = None
        self.was_read = False

    @classmethod
    def open(cls, medium: Medium, path: Path) -> Segment:
        fd = medium.open(path)
        try:
            header = SegmentHeader.read(medium, fd, path)
            if parse_name(path.name) != (header.segment_id, header.generation):
                raise CorruptLog(f"{path}: the header belongs to {header.name}; was the file renamed?", str(path), 0)
            return cls(medium, path, header, fd, medium.size(fd))
        except BaseException:
            medium.close(fd)
            raise

    @classmethod
    def create(
        cls, medium: Medium, directory: Path, header: SegmentHeader, *, fill_bytes: int = FIRST_FILL_BYTES
    ) -> Segment:
        """A segment appears under its name only with a synced header, and zeros for the first appends behind it.

        Never over another file, unless that is what an earlier try with the same header has left.
        """
        path = directory / header.name
        temporary = directory / (header.name + TEMPORARY)
        fd = medium.open(temporary, create=True)
        try:
            medium.write(fd, [header.encode(), bytes(fill_bytes)], 0)
            medium.sync(fd)
            if medium.exists(path) and _has_header(medium, path, header):
                medium.rename(temporary, path)
            else:
                medium.rename_to_new(temporary, path)
            medium.sync_directory(directory)
            return cls(medium, path, header, fd, SEGMENT_HEADER_BYTES + fill_bytes)
        except BaseException:
            medium.close(fd)
            raise

    def check(self, least_bytes: int) -> None:
        """Raises LostFile where the file is not where it was, or shorter than that."""
        if self.fd < 0:
            self.medium.check_identity(self.path, self._identity, least_bytes)
        else:
            self.medium.check_file(self.path, self.fd, least_bytes)

    def check_size(self, least_bytes: int) -> None:
        """Raises LostFile where the file is shorter: appending would hide that something was cut off."""
        check_length(self.path, self.medium.size(self.fd), least_bytes)

    def open_again(self, least_bytes: int) -> int:
        """Another descriptor of the same file, which has at least so many bytes. Raises LostFile where it is not."""
        fd = self.medium.open(self.path)
        try:
            self.check(least_bytes)
            self.medium.check_file(self.path, fd, least_bytes)
        except BaseException:
            self.medium.close(fd)
            raise
        return fd

    def read_cached(self, offset: int, key: Key, seq: int, value_bytes: int) -> Stored | None:
        """The entry at `offset`, if the page cache holds it all; never waits for the disk.

        Raises CorruptLog unless the entry's checksums hold and it is the one of `key` and `seq`.
        """
        if not self._reads_cached:
            return None
        self.was_read = True
        try:
            data = self.medium.read_cached(self.fd, HEADER_BYTES + len(key) + value_bytes, offset)
        except OSError as error:
            raise self._damaged(offset, f"cannot be read: {error}") from error
        return None if data is None else self._stored(data, offset, key, seq)

    def read(self, offset: int, key: Key, seq: int, value_bytes: int) -> Stored:
        """The same, waiting for the disk where needed. Raises Busy where there is no descriptor to be had."""
        size_bytes = HEADER_BYTES + len(key) + value_bytes
        try:
            if self.fd < 0:
                data = self._read_parked(size_bytes, offset)
            else:
                self.was_read = True
                data = self.medium.read(self.fd, size_bytes, offset)
        except OSError as error:
            limit = limit_of(error)
            if limit is not None:
                raise Busy(f"{self.path} cannot be opened: no further {limit.title}; {limit.remedy}") from error
            raise self._damaged(offset, f"cannot be read: {error}") from error
        return self._stored(data, offset, key, seq)

    def _read_parked(self, size_bytes: int, offset: int) -> bytes:
        assert self._shared is not None
        try:
            fd = self._open_same()
        except FileNotFoundError:
            if self.fd < 0:
                raise
            return self.medium.read(self.fd, size_bytes, offset)  # opened by a compaction, which has removed it since
        is_kept = False
        try:
            data = self.medium.read(fd, size_bytes, offset)
            is_kept = self._shared.reopen(self, fd)
        finally:
            if not is_kept:
                self.medium.close(fd)
        return data

    def _open_same(self) -> int:
        fd = self.medium.open(self.path)
        try:
            header = SegmentHeader.decode(self.medium.read(fd, SEGMENT_HEADER_BYTES, 0), self.path)
            if self.medium.identity(fd) != self._identity or header != self.header:
                raise LostFile(self.path, "was replaced by another")
        except BaseException:
            self.medium.close(fd)
            raise
        return fd

    def _stored(self, data: bytes | bytearray, offset: int, key: Key, seq: int) -> Stored:
        if header_is_intact(data, 0, self.header.mark, self.crc_seed ^ offset):
            header = HEADER.unpack_from(data)
            body = memoryview(data)[HEADER_BYTES:]
            if header[_SEQ] == seq and crc32(body) == header[_BODY_CRC] and body[: len(key)] == key:
                return Stored(bytes(body[len(key) :]), header[_TIMESTAMP])
        raise self._damaged(offset, "is damaged")

    def _damaged(self, offset: int, how: str) -> CorruptLog:
        return CorruptLog(
            f"{self.path}: the entry at offset {offset} {how}; its value is not served. "
            "Restore it from a backup, or set the key anew",
            str(self.path),
            offset,
        )

    # Descriptors

    def share(self, shared: OpenSegments) -> None:
        """Nobody writes it any more: from now on `shared` says how long it has a descriptor while it is not pinned."""
        if self._shared is None and not self._closing:
            self._shared = shared
            if self.fd >= 0:
                shared.admit(self)

    def open_ahead(self) -> None:
        """Open, on a worker, a shared one that is parked, if there is a place; else its first reader does."""
        shared = self._shared
        if shared is not None and shared.has_place and self.fd < 0:
            with contextlib.suppress(OSError, CorruptLog):
                fd = self._open_same()
                if not shared.reopen(self, fd):
                    self.medium.close(fd)

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    @property
    def is_pinned(self) -> bool:
        return self._pins > 0

    @property
    def is_awaited(self) -> bool:
        """True while somebody is about to open it by its name."""
        return self._pins > 0 and self.fd < 0

    def take(self, fd: int) -> None:
        self.fd = fd
        self._reads_cached = self._can_read_cached

    def park(self) -> None:
        """Close its descriptor until somebody reads it."""
        self._reads_cached = False
        fd, self.fd = self.fd, -1
        self.medium.close(fd)

    def ensure_open(self) -> None:
        """Give a segment that is pinned a descriptor until the last pin goes; on a worker."""
        if self.fd < 0:
            assert self._shared is not None
            fd = self._open_same()
            if not self._shared.reopen(self, fd, insist=True):
                self.medium.close(fd)

    def reopen(self) -> None:
        """Have a descriptor from now on; for whoever alone knows the segment yet."""
        if self.fd < 0:
            self.take(self._open_same())

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Have a descriptor within the block; for whoever alone knows the segment yet."""
        self.reopen()
        try:
            yield
        finally:
            if self.fd >= 0:
                self.park()

    def pin(self) -> None:
        self._pins += 1

    def unpin(self) -> None:
        self._pins -= 1
        if not self._pins:
            if self._closing:
                self._close()
            elif self._shared is not None:
                self._shared.trim()

    def close(self) -> None:
        """The descriptor closes now, or with the last pin."""
        if not self._closing:
            self._closing = True
            if not self._pins:
                self._close()

    def _close(self) -> None:
        if self._shared is not None:
            self._shared.forget(self)
        if self.fd >= 0:
            self.park()


def _has_header(medium: Medium, path: Path, header: SegmentHeader) -> bool:
    fd = medium.open(path)
    try:
        return medium.read(fd, SEGMENT_HEADER_BYTES, 0) == header.encode()
    finally:
        medium.close(fd)


def seal(medium: Medium, fd: int, end: int, entry: bytes) -> None:
    """Write the SEAL `entry` at `end` and cut the file behind it. What it vouches for must have been synced."""
    medium.write(fd, [entry], end)
    medium.truncate(fd, end + len(entry))
    medium.sync(fd)
