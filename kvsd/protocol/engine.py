"""Messages 34 to 127: what a table can do beyond a plain set, get and delete, and the administration of tables.

Owns: these messages, the frames that each is made of, and their limits as frames. Must not know how bytes arrive, nor
what a table makes of them.

Every message that touches a table names its namespace and table; None means the session's. Numbers travel as String
frames of decimal digits, a key as everywhere, and what is not given as Null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any, Final, Generic, TypeAlias, TypeVar, assert_never

from kvsd.errors import ProtocolError
from kvsd.protocol.frames import NULL, Frame, encode_frame, key_frame

T = TypeVar("T")

_NUMBER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)


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
    ADMINISTER = 96
    REPORT = 97


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


@dataclass(frozen=True, slots=True)
class Store:
    """A set with its conditions; answered by Success(None), or Mismatch.

    `ttl_ms` counts from the server's clock when it arrives. `if_version` 0: the key must be absent.
    """

    namespace: str | None
    table: str | None
    key: bytes
    value: bytes = field(repr=False)
    ttl_ms: int | None = None
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Administer:
    """A command about tables with its words; answered by Report."""

    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a command came to, as a JSON document."""

    document: bytes


EngineRequest: TypeAlias = Use | Read | Fetch | Store | Remove | Update | Batch | Exists | Count | Scan | Administer
EngineReply: TypeAlias = Entry | Number | Mismatch | Page | Report
EngineMessage: TypeAlias = EngineRequest | EngineReply


class _Frames:
    """The frames of a message, taken one after the other; each method raises ProtocolError where another one comes."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._at = 0

    def __bool__(self) -> bool:
        """Whether there are more."""
        return self._at < len(self._frames)

    def take(self) -> Frame:
        if not self:
            raise ProtocolError("a message ends before its last frame")
        self._at += 1
        return self._frames[self._at - 1]

    def optional_text(self) -> str | None:
        match self.take():
            case (str() | None) as text:
                return text
            case _:
                raise ProtocolError("a message has another frame where a String or a Null belongs")

    def optional_blob(self) -> bytes | None:
        match self.take():
            case (bytes() | None) as blob:
                return blob
            case _:
                raise ProtocolError("a message has another frame where Bytes or a Null belong")

    def optional_key(self) -> bytes | None:
        match self.take():
            case str() as text:
                return text.encode()
            case (bytes() | None) as key:
                return key
            case _:
                raise ProtocolError("a message has another frame where a key or a Null belongs")

    def optional_number(self) -> int | None:
        text = self.optional_text()
        if text is not None and not _NUMBER.fullmatch(text):
            raise ProtocolError("a message has a number that is not 1 to 19 decimal digits")
        return None if text is None else int(text)


def _required(value: T | None) -> T:
    if value is None:
        raise ProtocolError("a message has a Null where something must be said")
    return value


class _Part(Generic[T]):
    """One field of a message: the frames that it is made of, there and back."""

    def __init__(self, encode: Callable[[T], list[bytes]], decode: Callable[[_Frames], T]) -> None:
        self.encode = encode
        self.decode = decode

    @classmethod
    def frame(cls, encode: Callable[[T], bytes], decode: Callable[[_Frames], T]) -> _Part[T]:
        """A field of one frame."""
        return cls(lambda value: [encode(value)], decode)


def _encode_key(key: bytes | None) -> bytes:
    return NULL if key is None else key_frame(key)


def _encode_number(number: int | None) -> bytes:
    return NULL if number is None else b"+%d\r\n" % number


def _encode_steps(steps: tuple[Step, ...]) -> list[bytes]:
    encoded: list[bytes] = []
    for step in steps:
        match step:
            case Store(_, _, key, value, ttl_ms, if_version):
                encoded += [b"+set\r\n", key_frame(key), encode_frame(value)]
                encoded += map(_encode_number, (ttl_ms, if_version))
            case Remove(_, _, key, if_version):
                encoded += [b"+delete\r\n", key_frame(key), _encode_number(if_version)]
            case Check(key, if_version):
                encoded += [b"+check\r\n", key_frame(key), _encode_number(if_version)]
            case _:
                assert_never(step)
    return encoded


def _decode_steps(frames: _Frames) -> tuple[Step, ...]:
    steps: list[Step] = []
    while frames:
        match frames.take():
            case "set":
                key, value = _required(frames.optional_key()), _required(frames.optional_blob())
                steps.append(Store(None, None, key, value, frames.optional_number(), frames.optional_number()))
            case "delete":
                steps.append(Remove(None, None, _required(frames.optional_key()), frames.optional_number()))
            case "check":
                steps.append(Check(_required(frames.optional_key()), _required(frames.optional_number())))
            case _:
                raise ProtocolError("a step of a batch is none of set, delete and check")
    return tuple(steps)


def _encode_items(items: tuple[tuple[bytes, bytes | None], ...]) -> list[bytes]:
    return [frame for key, value in items for frame in (key_frame(key), encode_frame(value))]


def _decode_items(frames: _Frames) -> tuple[tuple[bytes, bytes | None], ...]:
    items: list[tuple[bytes, bytes | None]] = []
    while frames:
        items.append((_required(frames.optional_key()), frames.optional_blob()))
    return tuple(items)


def _encode_words(words: tuple[str, ...]) -> list[bytes]:
    return [encode_frame(word) for word in words]


def _decode_words(frames: _Frames) -> tuple[str, ...]:
    words: list[str] = []
    while frames:
        words.append(_required(frames.optional_text()))
    return tuple(words)


_TEXT: Final = _Part[str].frame(encode_frame, lambda frames: _required(frames.optional_text()))
_NAME: Final = _Part[str | None].frame(encode_frame, _Frames.optional_text)
_BLOB: Final = _Part[bytes].frame(encode_frame, lambda frames: _required(frames.optional_blob()))
_ARGUMENT: Final = _Part[bytes | None].frame(encode_frame, _Frames.optional_blob)
_KEY: Final = _Part[bytes].frame(key_frame, lambda frames: _required(frames.optional_key()))
_START: Final = _Part[bytes].frame(key_frame, _KEY.decode)
"""No key but a bound: where a scan goes on is one byte longer than the key before it."""
_BOUND: Final = _Part[bytes | None].frame(_encode_key, _Frames.optional_key)
_INT: Final = _Part[int].frame(_encode_number, lambda frames: _required(frames.optional_number()))
_OPTIONAL_INT: Final = _Part[int | None].frame(_encode_number, _Frames.optional_number)
_FLAG: Final = _Part[bool].frame(
    lambda flag: _encode_number(int(flag)), lambda frames: bool(_required(frames.optional_number()))
)
_STEPS: Final = _Part[tuple[Step, ...]](_encode_steps, _decode_steps)
_ITEMS: Final = _Part[tuple[tuple[bytes, bytes | None], ...]](_encode_items, _decode_items)
_WORDS: Final = _Part[tuple[str, ...]](_encode_words, _decode_words)

# Any: each part encodes the field that stands in its place, which the round trips in the tests hold together.
_GRAMMAR: Final[dict[EngineType, tuple[type[EngineMessage], tuple[_Part[Any], ...]]]] = {
    EngineType.USE: (Use, (_TEXT, _TEXT)),
    EngineType.FETCH: (Fetch, (_NAME, _NAME, _KEY)),
    EngineType.ENTRY: (Entry, (_BLOB, _INT, _INT, _INT)),
    EngineType.STORE: (Store, (_NAME, _NAME, _KEY, _BLOB, _OPTIONAL_INT, _OPTIONAL_INT)),
    EngineType.REMOVE: (Remove, (_NAME, _NAME, _KEY, _OPTIONAL_INT)),
    EngineType.UPDATE: (Update, (_NAME, _NAME, _KEY, _TEXT, _ARGUMENT)),
    EngineType.BATCH: (Batch, (_NAME, _NAME, _STEPS)),
    EngineType.EXISTS: (Exists, (_NAME, _NAME, _KEY)),
    EngineType.COUNT: (Count, (_NAME, _NAME, _START, _BOUND)),
    EngineType.NUMBER: (Number, (_INT,)),
    EngineType.MISMATCH: (Mismatch, (_INT, _TEXT)),
    EngineType.READ: (Read, (_NAME, _NAME, _KEY)),
    EngineType.SCAN: (Scan, (_NAME, _NAME, _START, _BOUND, _INT, _FLAG)),
    EngineType.PAGE: (Page, (_BOUND, _ITEMS)),
    EngineType.ADMINISTER: (Administer, (_WORDS,)),
    EngineType.REPORT: (Report, (_BLOB,)),
}
_TYPE_OF: Final = {message: engine_type for engine_type, (message, _) in _GRAMMAR.items()}

KEY_AT: Final = {
    engine_type: parts.index(_KEY) for engine_type, (_, parts) in _GRAMMAR.items() if parts[2:3] == (_KEY,)
}
"""Which frame behind the type is a key: its length is judged before it is read."""


def encode_engine(message: EngineMessage) -> bytes:
    """The bytes of one message; raises ProtocolError where a text cannot travel as a String frame."""
    engine_type = _TYPE_OF[type(message)]
    _, parts = _GRAMMAR[engine_type]
    values = (getattr(message, field.name) for field in fields(message))
    encoded = [part.encode(value) for part, value in zip(parts, values, strict=True)]
    frames = [frame for part in encoded for frame in part]
    return b"".join((b"*%d\r\n#%c" % (len(frames) + 1, engine_type), *frames))


def engine_from_frames(engine_type: EngineType, frames: Sequence[Frame]) -> EngineMessage:
    """The message that these frames, behind the type frame, make; raises ProtocolError where they do not."""
    message, parts = _GRAMMAR[engine_type]
    left = _Frames(frames)
    values = [part.decode(left) for part in parts]
    if left:
        raise ProtocolError(f"a message of type {engine_type.value} ({engine_type.name}) has frames too many")
    return message(*values)
