"""Messages 34 to 95: what a table can do beyond a plain set, get and delete.

Owns: these messages, and the frames that each is made of. Must not know how bytes arrive, nor what a table makes of
them.

Every message that touches a table names its namespace and table; None means the session's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, TypeAlias, assert_never

from kvsd.errors import ProtocolError
from kvsd.protocol.frames import encode_frame, key_frame
from kvsd.protocol.grammar import (
    BLOB,
    FLAG,
    KEY,
    NAME,
    NUMBER,
    OPTIONAL_BLOB,
    OPTIONAL_KEY,
    OPTIONAL_NUMBER,
    START,
    TEXT,
    Form,
    Frames,
    Many,
    encode_number,
    required,
)
from kvsd.types import frozen


class EngineType(IntEnum):
    """The byte behind `#`."""

    USE = 34
    FETCH = 35
    ENTRY = 36
    STORE = 37
    REMOVE = 38
    UPDATE = 39
    BATCH = 40
    EXISTS = 41
    COUNT = 42
    NUMBER = 43
    MISMATCH = 44
    READ = 45
    SCAN = 64
    PAGE = 65


@dataclass(frozen=True, slots=True)
class Use:
    """From here on this is the session's table; answered by Success(None)."""

    namespace: str
    table: str


@dataclass(frozen=True, slots=True)
class Read:
    """A Get that names its table; answered by Success."""

    namespace: str | None
    table: str | None
    key: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read `key` with all that is known of it; answered by Entry, or Success(None) where it is absent."""

    namespace: str | None
    table: str | None
    key: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A value, its version, when it was written, and when it expires (0 never), in microseconds since 1970."""

    value: bytes = field(repr=False)
    version: int
    timestamp_us: int
    expires_us: int


@frozen
class Store:
    """A set with its conditions; answered by Success(None), or Mismatch.

    Where the session has the feature `versions`, a Number comes in place of the Success: the version that was made.

    `ttl_ms` counts from the server's clock when it arrives. `if_version` 0: the key must be absent.
    """

    namespace: str | None
    table: str | None
    key: bytes
    value: bytes = field(repr=False)
    ttl_ms: int | None = None
    if_version: int | None = None


@frozen
class Remove:
    """A delete with a condition; answered by Success(old value), or Mismatch."""

    namespace: str | None
    table: str | None
    key: bytes
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Replace the value by what the named function makes of it; answered by Number, or Success(value) for getset.

    `function` is incr (argument: decimal amount), append or getset (argument: bytes), expire (argument: milliseconds
    from now) or persist (no argument).
    """

    namespace: str | None
    table: str | None
    key: bytes
    function: str
    argument: bytes | None = field(default=None, repr=False)


@frozen
class Check:
    """A condition within a Batch."""

    key: bytes
    if_version: int


Step: TypeAlias = Store | Remove | Check
"""Within a Batch these name no table of their own."""


@dataclass(frozen=True, slots=True)
class Batch:
    """All of the steps or none; answered by Success(None), or Mismatch."""

    namespace: str | None
    table: str | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether there is a value; answered by Number 1 or 0."""

    namespace: str | None
    table: str | None
    key: bytes


@dataclass(frozen=True, slots=True)
class Count:
    """How many keys there are from `start` to `end` (excluded; None: to the last); answered by Number."""

    namespace: str | None
    table: str | None
    start: bytes
    end: bytes | None


@dataclass(frozen=True, slots=True)
class Number:
    """A reply of 64 bits with its sign."""

    value: int


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A condition did not hold, and nothing was changed; the key has this version, 0 none."""

    version: int
    message: str


@dataclass(frozen=True, slots=True)
class Scan:
    """A page of keys in order, from `start` to `end` (excluded; None: to the last); answered by Page."""

    namespace: str | None
    table: str | None
    start: bytes
    end: bytes | None
    limit: int
    values: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Keys, and their values where they were asked for; `next` starts the following page, None: there is none."""

    next: bytes | None
    items: tuple[tuple[bytes, bytes | None], ...] = field(repr=False)


EngineRequest: TypeAlias = Use | Read | Fetch | Store | Remove | Update | Batch | Exists | Count | Scan
EngineReply: TypeAlias = Entry | Number | Mismatch | Page
EngineMessage: TypeAlias = EngineRequest | EngineReply


def _encode_steps(steps: tuple[Step, ...]) -> list[bytes]:
    encoded: list[bytes] = []
    for step in steps:
        match step:
            case Store(_, _, key, value, ttl_ms, if_version):
                encoded += [b"+set\r\n", key_frame(key), encode_frame(value)]
                encoded += map(encode_number, (ttl_ms, if_version))
            case Remove(_, _, key, if_version):
                encoded += [b"+delete\r\n", key_frame(key), encode_number(if_version)]
            case Check(key, if_version):
                encoded += [b"+check\r\n", key_frame(key), encode_number(if_version)]
            case _:
                assert_never(step)
    return encoded


def _take_step(frames: Frames) -> Step:
    match frames.take():
        case "set":
            key, value = required(frames.optional_key()), required(frames.optional_blob())
            return Store(None, None, key, value, frames.optional_number(), frames.optional_number())
        case "delete":
            return Remove(None, None, required(frames.optional_key()), frames.optional_number())
        case "check":
            return Check(required(frames.optional_key()), required(frames.optional_number()))
        case _:
            raise ProtocolError("a step of a batch is none of set, delete and check")


def _encode_items(items: tuple[tuple[bytes, bytes | None], ...]) -> list[bytes]:
    return [frame for key, value in items for frame in (key_frame(key), encode_frame(value))]


def _take_item(frames: Frames) -> tuple[bytes, bytes | None]:
    return required(frames.optional_key()), frames.optional_blob()


_STEPS: Final = Many[Step](_encode_steps, _take_step)
_ITEMS: Final = Many[tuple[bytes, bytes | None]](_encode_items, _take_item)

FORMS: Final[Mapping[IntEnum, Form[EngineMessage]]] = {
    EngineType.USE: (Use, (TEXT, TEXT)),
    EngineType.FETCH: (Fetch, (NAME, NAME, KEY)),
    EngineType.ENTRY: (Entry, (BLOB, NUMBER, NUMBER, NUMBER)),
    EngineType.STORE: (Store, (NAME, NAME, KEY, BLOB, OPTIONAL_NUMBER, OPTIONAL_NUMBER)),
    EngineType.REMOVE: (Remove, (NAME, NAME, KEY, OPTIONAL_NUMBER)),
    EngineType.UPDATE: (Update, (NAME, NAME, KEY, TEXT, OPTIONAL_BLOB)),
    EngineType.BATCH: (Batch, (NAME, NAME, _STEPS)),
    EngineType.EXISTS: (Exists, (NAME, NAME, KEY)),
    EngineType.COUNT: (Count, (NAME, NAME, START, OPTIONAL_KEY)),
    EngineType.NUMBER: (Number, (NUMBER,)),
    EngineType.MISMATCH: (Mismatch, (NUMBER, TEXT)),
    EngineType.READ: (Read, (NAME, NAME, KEY)),
    EngineType.SCAN: (Scan, (NAME, NAME, START, OPTIONAL_KEY, NUMBER, FLAG)),
    EngineType.PAGE: (Page, (OPTIONAL_KEY, _ITEMS)),
}
