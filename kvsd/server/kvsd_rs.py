"""The data file of the Rust program kvsd 0.1.3, read and verified.

Owns: that format, in which entries stand back to back without a file header. Must not know where the values go.

    u64 key_bytes | u64 value_bytes | i64 timestamp, ms | u8 state (1 active, 2 deleted) | u32 crc | key | value

The crc is CRC-32 over the 25 bytes before it, the key and the value; 0 means none. The last entry for a key wins.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Self
from zlib import crc32

from kvsd.errors import ConfigError, CorruptLog
from kvsd.types import MAX_KEY_BYTES, MAX_VALUE_BYTES, Key, Value

_HEADER: Final = struct.Struct(">QQqBI")
_CHECKED_BYTES: Final = 25
_ACTIVE, _DELETED = 1, 2
_MAX_ENTRY_BYTES: Final = _HEADER.size + MAX_KEY_BYTES + MAX_VALUE_BYTES
_LENGTH_BITS: Final = 128
"""The bits of a header's two lengths."""
_STATE_AT: Final = 24
_NO_STATE: Final = re.compile(rb"[^\x01\x02]*")
_MAX_CHECKED_BYTES: Final = 1 << 30
"""The most that is checked of candidates behind a tail: no file that a program wrote comes near, one that is made to
cost time does."""


class RustFile:
    """One file, wholly checked when it is opened; iterating yields each live key with its value.

    Opening raises CorruptLog where an entry is damaged: nothing of such a file is used. A torn tail, which an
    interrupted append leaves, is counted and left out: no entry follows it, nor does one flipped bit make one of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = 0
        self.deletions = 0
        self.unchecked = 0
        """Entries that were written without a checksum."""
        self.torn_bytes = 0
        """Bytes of an interrupted append at the end."""
        self._live: dict[Key, tuple[int, int]] = {}
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}; name the Rust program's *.kvsd file") from error
        try:
            self._scan()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Live keys."""
        return len(self._live)

    def __iter__(self) -> Iterator[tuple[Key, Value]]:
        for key, (offset, size) in self._live.items():
            self._file.seek(offset)
            value = self._file.read(size)
            if len(value) != size:
                raise self._damaged(offset, "the file was cut while it was read; is the Rust program still running?")
            yield key, value

    def _scan(self) -> None:
        size = self.path.stat().st_size
        offset = 0
        while offset < size:
            header = self._file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                break
            key_bytes, value_bytes, _, state, crc = _HEADER.unpack(header)
            if key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES or state not in (_ACTIVE, _DELETED):
                raise self._damaged(offset, "no header of an entry stands here")
            body = self._file.read(key_bytes + value_bytes)
            if len(body) < key_bytes + value_bytes:
                break
            if crc and crc32(body, crc32(header[:_CHECKED_BYTES])) != crc:
                raise self._damaged(offset, "an entry fails its checksum")
            self._count(body[:key_bytes], state, offset + _HEADER.size + key_bytes, value_bytes, checked=crc != 0)
            offset += _HEADER.size + len(body)
        self.torn_bytes = size - offset
        if self.torn_bytes > _MAX_ENTRY_BYTES:
            raise self._damaged(offset, "an entry's length leads past the end, yet more follows than one append writes")
        if self.torn_bytes:
            self._file.seek(offset)
            self._check_torn(offset, self._file.read())

    def _check_torn(self, offset: int, tail: bytes) -> None:
        """Raises CorruptLog where `tail`, which begins with half an entry, is not what an interrupted append leaves."""
        if _is_one_flip_from_whole(tail):
            raise self._damaged(offset, "an entry's length is wrong; with one bit turned it is an intact entry")
        at = _intact_entry(tail)
        if at is not None:
            raise self._damaged(
                offset, f"an entry's length leads past the end, yet further entries follow, from {offset + at} on"
            )

    def _count(self, key: Key, state: int, offset: int, size: int, *, checked: bool) -> None:
        self.entries += 1
        self.unchecked += not checked
        if state == _DELETED:
            self.deletions += 1
            self._live.pop(key, None)
        else:
            self._live[key] = (offset, size)

    def _damaged(self, offset: int, why: str) -> CorruptLog:
        return CorruptLog(
            f"{self.path}: damaged at offset {offset}: {why}. Nothing was imported", str(self.path), offset
        )


def _is_intact(tail: bytes, at: int, end: int) -> bool:
    """Tell whether the entry of `tail` from `at` to `end` has a checksum, and it holds."""
    crc = int.from_bytes(tail[at + _CHECKED_BYTES : at + _HEADER.size], "big")
    return crc != 0 and crc32(tail[at + _HEADER.size : end], crc32(tail[at : at + _CHECKED_BYTES])) == crc


def _is_one_flip_from_whole(tail: bytes) -> bool:
    """Tell whether the entry at the start of `tail` is all there, and only a bit of its lengths is wrong."""
    if len(tail) < _HEADER.size:
        return False
    lengths = int.from_bytes(tail[:16], "big")
    for bit in range(_LENGTH_BITS):
        turned = (lengths ^ 1 << bit).to_bytes(16, "big")
        end = _HEADER.size + int.from_bytes(turned[:8], "big") + int.from_bytes(turned[8:], "big")
        if end <= len(tail) and _is_intact(turned + tail[16:end], 0, end):
            return True
    return False


def _intact_entry(tail: bytes) -> int | None:
    """The place of an intact entry with a checksum behind the start of `tail`, or of one too many that could be one;
    None where there is none."""
    checked_bytes = 0
    at = 1
    while True:
        # The next place whose state is one: a search in C, past all zeros and text.
        at = _state_from(tail, at + _STATE_AT) - _STATE_AT
        if at + _HEADER.size > len(tail):
            return None
        key_bytes, value_bytes, _, _, crc = _HEADER.unpack_from(tail, at)
        end = at + _HEADER.size + key_bytes + value_bytes
        if crc and key_bytes <= MAX_KEY_BYTES and value_bytes <= MAX_VALUE_BYTES and end <= len(tail):
            checked_bytes += end - at
            if checked_bytes > _MAX_CHECKED_BYTES or _is_intact(tail, at, end):
                return at
        at += 1


def _state_from(tail: bytes, start: int) -> int:
    """The place of the next byte that could be an entry's state; the end where there is none."""
    found = _NO_STATE.match(tail, start)
    return found.end() if found is not None else len(tail)
