"""One message on its way in: the grammar, from the first byte to the last.

Owns: the grammar of a message, what becomes of one that breaks a limit, and what reading costs. Must not know what came
before it, nor what comes behind.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from kvsd.errors import InvalidKey, InvalidValue, ProtocolError, RequestError
from kvsd.protocol.buffer import Buffer, Reading
from kvsd.protocol.frames import (
    MAX_NUMBER_DIGITS,
    MAX_TIME_BYTES,
    Frame,
    Time,
    parse_number,
    parse_string,
)
from kvsd.protocol.limits import Limits
from kvsd.protocol.messages import (
    ADMINISTRATION_TYPES,
    ENGINE,
    KEYED_TYPES,
    Message,
    MessageType,
    Unknown,
    administration,
    from_frames,
)

T = TypeVar("T")

_KNOWN_TYPES = frozenset(map(int, MessageType)) | ENGINE.types | frozenset(ADMINISTRATION_TYPES)
_KEY_AT: dict[int, int] = {**dict.fromkeys(map(int, KEYED_TYPES), 0), **ENGINE.key_at}
"""Type → which of its frames is a key."""

# A frame that is all there, in one call: 0.5 microseconds instead of 3. What is an error, the grammar alone decides.
_FRAME = re.compile(
    rb"\+([^\r\n]*+)\r\n"  # group 1: a String
    rb"|\$([0-9]{1,10})\r\n"  # group 2: the size of Bytes
    rb"|\|"
)
_HEAD = re.compile(rb"\*([0-9]{1,10})\r\n#(.)", re.DOTALL)

_MESSAGE_COST = 4
"""The part that a message which is not a common one takes of the allowance beside its frames."""
_GRAMMAR_COST = 4
"""The same for a frame that goes through the grammar: one in pieces, a time, anything odd."""

FRAME_BYTES = 64
"""The memory that a frame takes beside its bytes: one of a few letters was measured at 64 to 72."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A well-framed message that breaks a limit. It was skipped, and the stream is in step."""

    error: RequestError


class MessageReader:
    """Reads one message out of `buffer`."""

    __slots__ = ("_buffer", "_limits", "_refusal", "frames")

    def __init__(self, buffer: Buffer, limits: Limits) -> None:
        self.frames: list[Frame] = []
        """The frames that are kept, up to now."""
        self._buffer = buffer
        self._limits = limits
        self._refusal: RequestError | None = None

    def refuse(self, error: RequestError) -> None:
        """Store nothing more of this message; the first reason stands."""
        self._refusal = self._refusal or error
        self._buffer.discard()

    def read(self) -> Reading[Message | Refused]:
        """The message, Unknown where its type is; raises ProtocolError."""
        buffer = self._buffer
        buffer.allowance -= _MESSAGE_COST
        count, number = self._whole_head() or (yield from self._head())
        known = number in _KNOWN_TYPES
        if not known:
            buffer.discard()
        key_at = _KEY_AT.get(number)
        index = 0
        while (index := self._read_whole(index, count - 1, key_at, keep=known)) < count - 1:
            if buffer.allowance <= 0:
                yield
                continue
            frame = yield from self._frame(is_key=index == key_at)
            self._check_total(buffer.taken)
            if known:
                self.frames.append(frame)
            index += 1
        if not known:
            return Unknown(number)
        message: Message
        if number in ENGINE.types:
            message = yield from self._with_pauses(ENGINE.build(number, self.frames))
        elif number in ADMINISTRATION_TYPES:
            message = yield from self._with_pauses(administration().build(number, self.frames))
        else:
            message = from_frames(MessageType(number), self.frames)
        return message if self._refusal is None else Refused(self._refusal)

    def _with_pauses(self, building: Generator[None, None, T]) -> Reading[T]:
        buffer = self._buffer
        while True:
            try:
                next(building)
            except StopIteration as finished:
                built: T = finished.value
                return built
            buffer.allowance -= 1
            while buffer.allowance <= 0:
                yield

    def _whole_head(self) -> tuple[int, int] | None:
        """The number of frames, and the type; None where the grammar must read them."""
        buffer = self._buffer
        found = _HEAD.match(buffer.data, buffer.position)
        if found is None or not 1 <= (count := int(found[1])) <= self._limits.frames:
            return None
        buffer.taken += found.end() - buffer.position
        buffer.position = found.end()
        return count, found[2][0]

    def _head(self) -> Reading[tuple[int, int]]:
        buffer = self._buffer
        if (yield from buffer.byte()) != b"*":
            raise ProtocolError(
                "a message does not begin with '*': the peer speaks another protocol, or TLS to a plain port"
            )
        count = parse_number((yield from buffer.line(MAX_NUMBER_DIGITS, "a frame count")))
        if not 1 <= count <= self._limits.frames:
            raise ProtocolError(f"a message has {count} frames; 1 to {self._limits.frames} are allowed")
        if (yield from buffer.byte()) != b"#":
            raise ProtocolError("the first frame of a message is not its type")
        return count, (yield from buffer.byte())[0]

    def _read_whole(self, index: int, count: int, key_at: int | None, *, keep: bool) -> int:
        """Read the frames from `index` on that are all there, and return where that ends.

        It ends at `count`, with the allowance, or at a frame that the grammar must read.
        """
        buffer, limits, frames = self._buffer, self._limits, self.frames
        data, position = buffer.data, buffer.position
        room = position + limits.message_bytes - buffer.taken
        keep_bodies = keep and not buffer.discarding
        skipped_bytes = 0
        first, end = index, min(count, index + buffer.allowance)
        while index < end:
            found = _FRAME.match(data, position)
            if found is None:
                break
            behind = found.end()
            group = found.lastindex
            frame: Frame = None
            if group == 1:
                line = found[1]
                if len(line) > (limits.key_bytes if index == key_at else limits.string_bytes):
                    break
                frame = parse_string(line)
            elif group == 2:
                start, behind = behind, behind + int(found[2])
                if behind - start > (limits.key_bytes if index == key_at else limits.value_bytes):
                    break
                if behind >= room or not data.startswith(b"\r\n", behind):
                    break
                if keep_bodies:
                    frame = data[start:behind]
                else:
                    frame = b""
                    skipped_bytes += behind - start
                behind += 2
            if behind > room:
                break
            if keep:
                frames.append(frame)
            position = behind
            index += 1
        read_bytes = position - buffer.position
        buffer.position = position
        buffer.taken += read_bytes
        buffer.skipped += skipped_bytes if keep else read_bytes
        buffer.allowance -= index - first
        return index

    def _frame(self, *, is_key: bool) -> Reading[Frame]:
        buffer = self._buffer
        buffer.allowance -= _GRAMMAR_COST
        match (yield from buffer.byte()):
            case b"+":
                line = yield from buffer.line(self._limits.string_bytes, "a String frame")
                if is_key:
                    self._check_key(len(line))
                return parse_string(line)
            case b"$":
                size = parse_number((yield from buffer.line(MAX_NUMBER_DIGITS, "the size of a Bytes frame")))
                if is_key:
                    self._check_key(size)
                else:
                    self._check_value(size)
                self._check_total(buffer.taken + size)
                data = yield from buffer.body(size)
                if (yield from buffer.byte()) + (yield from buffer.byte()) != b"\r\n":
                    raise ProtocolError(f"no CR LF behind the {size} bytes of a Bytes frame")
                return data
            case b"T":
                return Time.parse((yield from buffer.line(MAX_TIME_BYTES, "a Time frame")))
            case b"|":
                return None
            case b"#":
                raise ProtocolError("a message has a second message type")
            case prefix:
                raise ProtocolError(f"no frame begins with {prefix!r}")

    def _check_total(self, size: int) -> None:
        if size > self._limits.message_bytes:
            raise ProtocolError(f"a message is longer than {self._limits.message_bytes} bytes")

    def _check_key(self, size: int) -> None:
        limits = self._limits
        if size > limits.string_bytes:
            raise ProtocolError(f"a key of {size} bytes is too long to be skipped; the limit is {limits.key_bytes}")
        if size > limits.key_bytes:
            self.refuse(InvalidKey(f"the key has {size} bytes, the limit is {limits.key_bytes}; use a shorter one"))

    def _check_value(self, size: int) -> None:
        limits = self._limits
        if size > 2 * limits.value_bytes:
            raise ProtocolError(f"a value of {size} bytes is too long to be skipped; the limit is {limits.value_bytes}")
        if size > limits.value_bytes:
            self.refuse(
                InvalidValue(f"the value has {size} bytes, the limit is {limits.value_bytes}; store it in parts")
            )
