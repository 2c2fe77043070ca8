"""The words that every layer shares: keys, values, names, their limits, addresses, and when a write is synced.

Owns: what these are, and the conversion of what a caller passes. Imports nothing of kvsd.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias, TypeVar, dataclass_transform

T = TypeVar("T")

Key: TypeAlias = bytes
Value: TypeAlias = bytes

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

KeyLike: TypeAlias = str | bytes
ValueLike: TypeAlias = str | bytes | bytearray | memoryview

MAX_KEY_BYTES = 1_024
"""Default limit of a key; the empty key is allowed."""

MAX_VALUE_BYTES = 10 * 1024 * 1024
"""Default limit of a value; the empty value is allowed."""

MAX_BATCH_STEPS: Final = 1_000
"""Sets, deletes and conditions in one atomic batch."""

MAX_BATCH_BYTES: Final = 16 * 1024 * 1024
"""Keys and values of one atomic batch."""

MAX_TTL_SECONDS: Final = 100 * 365 * 24 * 3_600
"""A hundred years, the longest that a key can be given to live."""

LARGEST_VALUE_BYTES: Final = 512 * 1024 * 1024
"""The highest limit of a value that a server can be given: none takes or holds a longer one."""

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""What namespaces and tables may be called: each is a folder's name, and a part of an address."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """A dataclass with slots that the type checker keeps frozen, for what is made with every request.

    Frozen at run time, too, one with a field takes 0.29 microseconds to make instead of 0.16, one with four 0.75
    instead of 0.19.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)


class Entry(NamedTuple):
    """A value with all that is known of it; times are UTC."""

    value: bytes
    version: int
    """Rises with every write to the table."""
    timestamp: datetime
    """When it was written."""
    expires_at: datetime | None
    """None: never."""


class Address(NamedTuple):
    """Where a peer is; `str()` is HOST:PORT, with an IPv6 address in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


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
