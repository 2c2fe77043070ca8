"""One record of the log: its 64-byte header, its kinds, and its two checksums.

Owns: the byte layout of an entry (docs/log-format.md). Must not know where entries are kept: the segment's id, mark
and the offset come from the caller.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias
from zlib import crc32

from kvsd.types import Key

HEADER: Final = struct.Struct(">IIIIQQQQIIBBHI")
HEADER_BYTES: Final = HEADER.size
assert HEADER_BYTES == 64

# What header_crc covers: everything behind itself. Packed alone first, since its checksum is a field before it.
_CHECKED: Final = struct.Struct(">IIQQQQIIBBHI")
_PREFIX: Final = struct.Struct(">II")
CHECKED_FROM: Final = 8
_U32: Final = struct.Struct(">I")
_SYNCED_TO_AT: Final = 12
assert _CHECKED.size == HEADER_BYTES - CHECKED_FROM

MAX_FORMAT_VALUE_BYTES: Final = 1 << 30
"""The format's own maximum; recovery checks this, so that a lowered configured limit never hides data."""

CODEC_RAW: Final = 0

SEAL_VALUE: Final = struct.Struct(">QQQ")
"""Count of the entries before the SEAL, the last one's seq (0 none), and the sum of their header_crcs mod 2^64."""
SEAL_BYTES: Final = HEADER_BYTES + SEAL_VALUE.size
"""A whole SEAL entry."""
DIGEST_MASK: Final = (1 << 64) - 1
SEQ_GAP: Final = 1 << 32
"""How far the number of a SEAL jumps where numbers before it may have been seen that never reached the disk."""


class Kind(IntEnum):
    """What an entry says. A kind that is not listed is UnsupportedFormat, never skipped."""

    SET = 1
    DELETE = 2
    EXPIRED = 3
    CLEAR = 4
    SEAL = 5
    CHAIN = 6


TOMBSTONES: Final = frozenset((Kind.DELETE, Kind.EXPIRED))
KINDS: Final = frozenset(int(kind) for kind in Kind)


class Header(NamedTuple):
    """The fields of an entry's header in their order on disk."""

    mark: int
    header_crc: int
    body_crc: int
    synced_to: int
    seq: int
    timestamp_us: int
    expires_us: int
    prev_seq: int
    batch_index: int
    batch_count: int
    kind: int
    flags: int
    key_bytes: int
    value_bytes: int


Record: TypeAlias = tuple[int, Key, int, int, int, int]
"""kind, key, seq, position, value_bytes, expires_us."""


def seed(segment_id: int, offset: int) -> int:
    """What header_crc starts from: an intact header that lies anywhere else fails its check.

    CRC-32 maps different starts to different results for the same bytes, so within a segment no move goes unseen.
    """
    return crc32(segment_id.to_bytes(8, "big")) ^ offset


def encode_header(
    mark: int,
    crc_seed: int,
    body_crc: int,
    synced_to: int,
    seq: int,
    timestamp_us: int,
    expires_us: int,
    prev_seq: int,
    kind: int,
    key_bytes: int,
    value_bytes: int,
    batch_index: int = 0,
    batch_count: int = 1,
) -> tuple[bytes, int]:
    """The 64 header bytes and their header_crc. By position: keywords cost a third more, for every write."""
    checked = _CHECKED.pack(
        body_crc, synced_to, seq, timestamp_us, expires_us, prev_seq,
        batch_index, batch_count, kind, CODEC_RAW, key_bytes, value_bytes,
    )  # fmt: skip
    header_crc = crc32(checked, crc_seed)
    return _PREFIX.pack(mark, header_crc) + checked, header_crc


def synced_to_of(header: bytes) -> int:
    """The place up to which, as the header says, the segment was synced."""
    return int.from_bytes(header[_SYNCED_TO_AT : _SYNCED_TO_AT + _U32.size])


def with_synced_to(header: bytes, crc_seed: int, synced_to: int) -> tuple[bytes, int]:
    """The same header bytes saying `synced_to`, and by how much their header_crc changes."""
    checked = header[CHECKED_FROM:_SYNCED_TO_AT] + _U32.pack(synced_to) + header[_SYNCED_TO_AT + _U32.size :]
    mark, old_crc = _PREFIX.unpack_from(header)
    header_crc = crc32(checked, crc_seed)
    return _PREFIX.pack(mark, header_crc) + checked, header_crc - old_crc


def encode_seal(
    *,
    mark: int,
    crc_seed: int,
    offset: int,
    count: int,
    last_seq: int,
    digest: int,
    seq: int,
    timestamp_us: int,
) -> bytes:
    """A whole SEAL entry for `offset`. It says that all before it is synced: so sync before writing it."""
    value = SEAL_VALUE.pack(count, last_seq, digest)
    header, _ = encode_header(
        mark, crc_seed ^ offset, crc32(value), offset, seq, timestamp_us, 0, 0, Kind.SEAL, 0, len(value)
    )
    return header + value


def header_is_intact(data: bytes | bytearray | memoryview, at: int, mark: int, crc_seed: int) -> bool:
    """Whether a whole header of this segment stands at `at`; what it says of lengths can then be believed."""
    if len(data) - at < HEADER_BYTES:
        return False
    found_mark, header_crc = _PREFIX.unpack_from(data, at)
    checked = data[at + CHECKED_FROM : at + HEADER_BYTES]
    return bool(found_mark == mark and crc32(checked, crc_seed) == header_crc)
