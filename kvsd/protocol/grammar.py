"""The frames that a message from 34 up is made of: parts, each with its way there and back.

Owns: what fields there can be, and how a message is put together and taken apart. Must not know which messages there
are.

Numbers travel as String frames of decimal digits, a key as everywhere, and what is not given as Null.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import fields
from enum import IntEnum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from kvsd.errors import ProtocolError
from kvsd.protocol.frames import NULL, Frame, encode_frame, key_frame

T = TypeVar("T")
M = TypeVar("M")

_NUMBER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)


class Frames:
    """The frames of a message, taken one after the other; each method raises ProtocolError where another one comes."""

    __slots__ = ("_left",)

    def __init__(self, frames: Sequence[Frame]) -> None:
        self._left = list(reversed(frames))

    def __bool__(self) -> bool:
        """Whether there are more."""
        return bool(self._left)

    def take(self) -> Frame:
        if not self._left:
            raise ProtocolError("a message ends before its last frame")
        return self._left.pop()

    def optional_text(self) -> str | None:
        frame = self.take()
        if frame is None or isinstance(frame, str):
            return frame
        raise ProtocolError("a message has another frame where a String or a Null belongs")

    def optional_blob(self) -> bytes | None:
        frame = self.take()
        if frame is None or isinstance(frame, bytes):
            return frame
        raise ProtocolError("a message has another frame where Bytes or a Null belong")

    def optional_key(self) -> bytes | None:
        frame = self.take()
        if isinstance(frame, str):
            return frame.encode()
        if frame is None or isinstance(frame, bytes):
            return frame
        raise ProtocolError("a message has another frame where a key or a Null belongs")

    def optional_number(self) -> int | None:
        text = self.optional_text()
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            raise ProtocolError("a message has a number that is not 1 to 19 decimal digits")
        return int(text)


def required(value: T | None) -> T:
    if value is None:
        raise ProtocolError("a message has a Null where something must be said")
    return value


class Part(Generic[T]):
    """One field of a message: the frames that it is made of, there and back."""

    def __init__(self, encode: Callable[[T], list[bytes]], decode: Callable[[Frames], T]) -> None:
        self.encode = encode
        self.decode = decode

    @classmethod
    def frame(cls, encode: Callable[[T], bytes], decode: Callable[[Frames], T]) -> Part[T]:
        """A field of one frame."""
        return cls(lambda value: [encode(value)], decode)


class Many(Generic[T]):
    """The last field of a message where it may have any number of items, of one or more frames each."""

    def __init__(self, encode: Callable[[tuple[T, ...]], list[bytes]], take: Callable[[Frames], T]) -> None:
        self.encode = encode
        self.take = take


def _encode_key(key: bytes | None) -> bytes:
    return NULL if key is None else key_frame(key)


def encode_number(number: int | None) -> bytes:
    return NULL if number is None else b"+%d\r\n" % number


TEXT: Final = Part[str].frame(encode_frame, lambda frames: required(frames.optional_text()))
NAME: Final = Part[str | None].frame(encode_frame, Frames.optional_text)
BLOB: Final = Part[bytes].frame(encode_frame, lambda frames: required(frames.optional_blob()))
OPTIONAL_BLOB: Final = Part[bytes | None].frame(encode_frame, Frames.optional_blob)
KEY: Final = Part[bytes].frame(key_frame, lambda frames: required(frames.optional_key()))
START: Final = Part[bytes].frame(key_frame, KEY.decode)
"""No key but a bound: where a scan goes on is one byte longer than the key before it."""
OPTIONAL_KEY: Final = Part[bytes | None].frame(_encode_key, Frames.optional_key)
NUMBER: Final = Part[int].frame(encode_number, lambda frames: required(frames.optional_number()))
OPTIONAL_NUMBER: Final = Part[int | None].frame(encode_number, Frames.optional_number)
FLAG: Final = Part[bool].frame(
    lambda flag: encode_number(int(flag)), lambda frames: bool(required(frames.optional_number()))
)

# Any: each part encodes the field that stands in its place, which the round trips in the tests hold together.
Form: TypeAlias = tuple[type[M], tuple[Part[Any] | Many[Any], ...]]
"""A message's class, and its parts in the order of the fields."""


class Grammar(Generic[M]):
    """Messages by their type, the byte behind `#`."""

    def __init__(self, forms: Mapping[IntEnum, Form[M]]) -> None:
        self._forms = {int(message_type): form for message_type, form in forms.items()}
        self._type_of: dict[type, int] = {message: message_type for message_type, (message, _) in self._forms.items()}
        self.types = frozenset(self._forms)
        self.classes = frozenset(self._type_of)
        self.key_at = {
            message_type: parts.index(KEY) for message_type, (_, parts) in self._forms.items() if parts[2:3] == (KEY,)
        }
        """Which frame behind the type is a key: its length is judged before it is read."""

    def encode(self, message: object) -> bytes:
        """The bytes of one message; raises ProtocolError where a text cannot travel as a String frame."""
        message_type = self._type_of[type(message)]
        _, parts = self._forms[message_type]
        values = (getattr(message, field.name) for field in fields(message))  # type: ignore[arg-type] # a dataclass
        encoded = [part.encode(value) for part, value in zip(parts, values, strict=True)]
        frames = [frame for part in encoded for frame in part]
        return b"".join((b"*%d\r\n#%c" % (len(frames) + 1, message_type), *frames))

    def build(self, message_type: int, frames: Sequence[Frame]) -> Generator[None, None, M]:
        """The message that these frames, behind the type frame, make; raises ProtocolError where they do not.

        Yields behind every item of a field that may have many: there it can be left, and gone on with later.
        """
        message, parts = self._forms[message_type]
        left = Frames(frames)
        values: list[object] = []
        for part in parts:
            if not isinstance(part, Many):
                values.append(part.decode(left))
                continue
            items: list[object] = []
            while left:
                items.append(part.take(left))
                yield
            values.append(tuple(items))
        if left:
            raise ProtocolError(f"a message of type {message_type} ({message.__name__}) has frames too many")
        return message(*values)
