"""A sealed segment's keys and locations in a file beside it: what a start reads instead of the segment.

Owns: the layout of a hint (docs/log-format.md), and whether one can be believed. Must not know what the index makes of
it, nor when hints are written. A hint is derived: losing one costs time, never data.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple, Self
from zlib import crc32

from kvsd.errors import CorruptLog
from kvsd.table import index
from kvsd.table.entry import HEADER_BYTES, TOMBSTONES, Kind, Record
from kvsd.table.index import Block, Location
from kvsd.table.medium import Medium
from kvsd.table.segment import Segment
from kvsd.table.segment_header import OLD_SUFFIX, OVERHEAD_BYTES, TEMPORARY, SegmentHeader
from kvsd.table.segment_header import SUFFIX as SEGMENT_SUFFIX
from kvsd.table.segment_reader import Seal, SegmentReader
from kvsd.table.work import ROOM_BYTES
from kvsd.types import Key

SUFFIX: Final = ".hint"
MAGIC: Final = b"kvsdhint"
VERSION: Final = 1
_LAYOUT: Final = struct.Struct(">8sHHI16sQIIQQQQQ36x")
_CHECKSUM: Final = struct.Struct(">I")
HINT_HEADER_BYTES: Final = _LAYOUT.size + _CHECKSUM.size
assert HINT_HEADER_BYTES == 128

_BLOCK: Final = struct.Struct(">IIIIIQ")
_LOCATION_BYTES: Final = 23
_LENGTH_BYTES: Final = 2
_BLOCK_ENTRIES: Final = 1_024
"""Encoding four times as many would keep the interpreter from others for 4 ms; reading is no faster with them."""
_BLOCK_KEY_BYTES: Final = 1 << 20
_SLICE_ENTRIES: Final = 128
"""A quarter of a millisecond: another thread that wants the interpreter seldom waits longer."""


def path_of(segment: Path) -> Path:
    return segment.with_suffix(SUFFIX)


def size_bytes(entries: int, key_bytes: int) -> int:
    """Of the hint of a segment with so many entries, at least one, of different keys, none of which expires."""
    in_block = min(_BLOCK_ENTRIES, -(-_BLOCK_KEY_BYTES // key_bytes)) if key_bytes else _BLOCK_ENTRIES
    blocks = -(-entries // in_block)
    return HINT_HEADER_BYTES + blocks * _BLOCK.size + entries * (_LOCATION_BYTES + _LENGTH_BYTES + key_bytes)


def discard(medium: Medium, segment: Path) -> None:
    """Remove the hint of a segment that is being removed, if it has one."""
    with contextlib.suppress(FileNotFoundError):
        medium.unlink(path_of(segment))


def leftovers(names: Iterable[str]) -> list[str]:
    """Which of a folder's files are hints that were not finished, or have no segment."""
    taken = set(names)
    hints = [name for name in taken if name.removesuffix(TEMPORARY).endswith(SUFFIX)]
    return sorted(name for name in hints if name.endswith(TEMPORARY) or not _has_segment(name, taken))


def _has_segment(name: str, names: set[str]) -> bool:
    stem = name.removesuffix(SUFFIX)
    return stem + SEGMENT_SUFFIX in names or stem + OLD_SUFFIX in names


# Reading


class HintHeader(NamedTuple):
    """The words of a hint about its segment, written after the SEAL was synced: they prove what was there."""

    identity: list[object]
    seal: Seal
    size_bytes: int
    """The checksum of the whole hint."""

    @classmethod
    def decode(cls, data: bytes) -> HintHeader:
        """Raises ValueError where the bytes are not an intact header."""
        if len(data) < HINT_HEADER_BYTES or _CHECKSUM.unpack_from(data, _LAYOUT.size)[0] != crc32(data[: _LAYOUT.size]):
            raise ValueError("no intact header")
        *identity, sealed_at, count, last_seq, digest, size_bytes = _LAYOUT.unpack_from(data)
        return cls(identity, Seal(sealed_at, count, last_seq, digest), size_bytes)

    @classmethod
    def read(cls, medium: Medium, path: Path) -> HintHeader | None:
        """The words of the hint at `path`; None where there is none that is intact, or none that can be read."""
        try:
            fd = medium.open(path)
            try:
                return cls.decode(medium.read(fd, HINT_HEADER_BYTES, 0))
            finally:
                medium.close(fd)
        except (OSError, ValueError):
            return None

    def is_of(self, header: SegmentHeader) -> bool:
        """Tell whether this is the hint of that very segment."""
        return self.identity == _identity(header)

    def is_of_table(self, header: SegmentHeader) -> bool:
        """Tell whether this is the hint of a segment of the same table, in the format of today."""
        return self.identity[:5] == _identity(header)[:5]


class Hint:
    """An open hint whose header fits its segment; iterating yields its Blocks, each once its checksum holds.

    The segment must have `seal` at its end, which the caller checks. Iterating ends early at a damaged block;
    `is_whole` then stays False, and the Blocks up to there are good all the same.
    """

    def __init__(self, medium: Medium, fd: int, segment: Segment, size_bytes: int) -> None:
        """Raises ValueError where the file is no hint of `segment`, or one of another format."""
        self.is_whole = False
        self._medium = medium
        self._fd = fd
        header = HintHeader.decode(medium.read(fd, HINT_HEADER_BYTES, 0))
        if not header.is_of(segment.header) or header.size_bytes != size_bytes:
            raise ValueError("another format, the hint of another segment, or not all of it")
        self.seal = header.seal
        self._size_bytes = size_bytes
        self._crc = segment.header.mark

    @classmethod
    def open(cls, segment: Segment) -> Self | None:
        """The hint beside `segment`; None where there is none that fits, or none that can be read."""
        medium = segment.medium
        try:
            fd = medium.open(path_of(segment.path))
        except OSError:
            return None
        try:
            return cls(medium, fd, segment, medium.size(fd))
        except (OSError, ValueError):
            medium.close(fd)
            return None
        except BaseException:
            medium.close(fd)
            raise

    def __iter__(self) -> Iterator[Block]:
        at = HINT_HEADER_BYTES
        while at < self._size_bytes:
            try:
                head = self._medium.read(self._fd, _BLOCK.size, at)
                if len(head) < _BLOCK.size:
                    return
                crc, entries, expiring, tombstones, size_bytes, dead_bytes = _BLOCK.unpack(head)
                body = self._medium.read(self._fd, min(size_bytes, self._size_bytes - at), at + _BLOCK.size)
            except OSError:
                return
            self._crc = crc32(body, crc32(head[_CHECKSUM.size :], self._crc))
            if self._crc != crc:
                return
            yield _decode(body, entries, expiring, tombstones, dead_bytes)
            at += _BLOCK.size + size_bytes
        self.is_whole = True

    def close(self) -> None:
        self._medium.close(self._fd)


def _identity(header: SegmentHeader) -> list[object]:
    return [
        MAGIC,
        VERSION,
        HINT_HEADER_BYTES,
        0,
        header.table_id,
        header.segment_id,
        header.generation,
        header.mark,
    ]


def _decode(body: bytes, entries: int, expiring: int, tombstones: int, dead_bytes: int) -> Block:
    """Cutting and converting by a whole block at a time takes 0.1 µs a key, against 0.4 one by one."""
    locations = list(map(int.from_bytes, _equal(_LOCATION_BYTES, entries).unpack_from(body)))
    at = entries * _LOCATION_BYTES
    expires_us = struct.unpack_from(f">{expiring}Q", body, at)
    at += expiring * 8
    lengths = struct.unpack_from(f">{entries}H", body, at)
    at += entries * _LENGTH_BYTES
    keys: Sequence[Key]
    if lengths.count(lengths[0]) == entries:
        keys = _equal(lengths[0], entries).unpack_from(body, at)
    else:
        keys = [body[start:end] for start, end in pairwise(accumulate(lengths, initial=at))]
    return Block(keys, locations, expires_us, tombstones, dead_bytes)


@lru_cache(maxsize=8)
def _equal(size_bytes: int, count: int) -> struct.Struct:
    """Cuts `count` pieces of one size."""
    return struct.Struct(f"{size_bytes}s" * count)


# Writing


def write(medium: Medium, path: Path, pause: Callable[[], bool] = lambda: False) -> bool:
    """Put a hint beside the sealed segment at `path`; False where it can have none, or `pause` says True: stop.

    `pause` is called after every quarter of a millisecond of work. False, too, where the segment was removed meanwhile.
    Raises CorruptLog where the segment is not intact up to a SEAL, UnsupportedFormat, or OSError: also where there is
    little room, which values need more. No hint appears then.
    """
    segment = Segment.open(medium, path)
    try:
        if medium.size(segment.fd) <= OVERHEAD_BYTES:
            return False  # it has no entries
        if medium.free_bytes(path.parent) < medium.size(segment.fd) + ROOM_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path_of(path)))
        return _write(segment, pause)
    finally:
        segment.close()


def _write(segment: Segment, pause: Callable[[], bool]) -> bool:
    medium, path = segment.medium, path_of(segment.path)
    temporary = path.with_name(path.name + TEMPORARY)
    fd = medium.open(temporary, create=True)
    is_named = False
    try:
        try:
            is_whole = _write_blocks(segment, fd, pause)
            if is_whole:
                medium.sync(fd)
        finally:
            medium.close(fd)
        if is_whole:
            medium.rename(temporary, path)
            is_named = True
            if not medium.exists(segment.path):
                # A compaction was faster. It looks for the hint once its segment is gone, so one of the two sees it.
                discard(medium, segment.path)
                return False
            medium.sync_directory(path.parent)
    finally:
        if not is_named:
            medium.unlink(temporary)
    return is_named


def _write_blocks(segment: Segment, fd: int, pause: Callable[[], bool]) -> bool:
    reader = SegmentReader(segment, whole_batches=False)
    at, crc = HINT_HEADER_BYTES, segment.header.mark
    block = _Builder()
    number = 0
    for number, record in enumerate(reader, 1):
        if record[0] != Kind.SET and record[0] not in TOMBSTONES:
            return False
        block.add(record)
        if block.is_full:
            data, crc = block.encode(crc)
            segment.medium.write(fd, [data], at)
            at += len(data)
            block = _Builder()
        if number % _SLICE_ENTRIES == 0 and pause():
            return False
    if reader.seal is None:
        raise CorruptLog(
            f"{segment.path}: damaged at offset {reader.accepted_to}: {reader.ended_because}. What is behind it can "
            "still be read, until the next start; restore the file from a backup",
            str(segment.path),
            reader.accepted_to,
        )
    if not number:
        return False
    if block.entries:
        data, crc = block.encode(crc)
        segment.medium.write(fd, [data], at)
        at += len(data)
    header = _LAYOUT.pack(*_identity(segment.header), *reader.seal, at)
    segment.medium.write(fd, [header + _CHECKSUM.pack(crc32(header))], 0)
    return True


class _Builder:
    """A Block under construction."""

    def __init__(self) -> None:
        self.entries: dict[Key, tuple[Location, int]] = {}
        self._key_bytes = self._dead_bytes = 0

    @property
    def is_full(self) -> bool:
        return len(self.entries) == _BLOCK_ENTRIES or self._key_bytes >= _BLOCK_KEY_BYTES

    def add(self, record: Record) -> None:
        kind, key, seq, position, value_bytes, expires_us = record
        old = self.entries.pop(key, None)  # the newest is at the end: entries stay in the log's order
        if old is None:
            self._key_bytes += len(key)
        else:
            self._dead_bytes += HEADER_BYTES + len(key) + index.value_bytes_of(old[0])
        if kind == Kind.SET:
            flags = index.EXPIRES if expires_us else 0
            self.entries[key] = index.pack(seq, position, value_bytes, flags), expires_us
        else:
            self.entries[key] = index.pack(seq, position, 0, index.TOMBSTONE), 0

    def encode(self, crc: int) -> tuple[bytes, int]:
        """The block's bytes, and its checksum, which goes on from that of the block before."""
        keys, values = self.entries.keys(), self.entries.values()
        expires_us = [time for _, time in values if time]
        body = b"".join(
            [
                *(location.to_bytes(_LOCATION_BYTES) for location, _ in values),
                struct.pack(f">{len(expires_us)}Q", *expires_us),
                struct.pack(f">{len(keys)}H", *map(len, keys)),
                *keys,
            ]
        )
        tombstones = sum(location & index.TOMBSTONE for location, _ in values)
        head = _BLOCK.pack(0, len(keys), len(expires_us), tombstones, len(body), self._dead_bytes)[_CHECKSUM.size :]
        crc = crc32(body, crc32(head, crc))
        return _CHECKSUM.pack(crc) + head + body, crc
