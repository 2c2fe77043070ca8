"""The words that every layer shares: keys, values and their limits, and when a write is synced.

Owns: what these are, and the conversion of what a caller passes. Imports nothing of kvsd.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

Key: TypeAlias = bytes
Value: TypeAlias = bytes

KeyLike: TypeAlias = str | bytes
ValueLike: TypeAlias = str | bytes | bytearray | memoryview

MAX_KEY_BYTES = 1_024
"""Default limit of a key; the empty key is allowed."""

MAX_VALUE_BYTES = 10 * 1024 * 1024
"""Default limit of a value; the empty value is allowed."""


class Fsync(StrEnum):
    """When an entry reaches the medium: before its OK, at intervals, or when the operating system likes."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


def to_bytes(data: ValueLike) -> bytes:
    """`str` as UTF-8, anything bytes-like copied; nothing else is accepted, and nothing is ever pickled.

    Characters that came from arguments that are no UTF-8 (surrogate escapes) become their original bytes.
    """
    match data:
        case bytes():
            return data
        case str():
            return data.encode("utf-8", "surrogateescape")
        case bytearray() | memoryview():
            return bytes(data)
        case _:
            raise TypeError(f"keys and values are str or bytes, not {type(data).__name__}")
