"""The decoder: bytes in any pieces in, messages out, within limits.

Owns: the grammar of a message, and what happens to one that breaks a limit. Must not know who is at the other
end, what an answer is, sockets or clocks. A client and a server use the same one.

`next_message` raises ProtocolError and nothing else, whatever was fed.
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
    is_utf8,
    parse_number,
    parse_string,
)
from kvsd.protocol.messages import (
    ADMINISTRATION_TYPES,
    ENGINE,
    KEYED_TYPES,
    Delete,
    Get,
    Message,
    MessageType,
    Set,
    Success,
    Unknown,
    administration,
    from_frames,
)
from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS, MAX_KEY_BYTES, MAX_VALUE_BYTES

T = TypeVar("T")

_KNOWN_TYPES = frozenset(map(int, MessageType)) | ENGINE.types | frozenset(ADMINISTRATION_TYPES)
_KEY_AT: dict[int, int] = {**dict.fromkeys(map(int, KEYED_TYPES), 0), **ENGINE.key_at}
"""Type → which of its frames is a key."""

MAX_BATCH_FRAMES = 3 + 5 * MAX_BATCH_STEPS
"""A batch of sets; a page of a scan has fewer."""
MAX_BATCH_OVERHEAD_BYTES = 128 * MAX_BATCH_STEPS
"""What the frames of a batch take beside its keys and values."""

_HEADS_BYTES = 64
"""More than the count, the type, the prefixes, sizes and line ends of a Set come to."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may be, in bytes of payload unless said otherwise.

    Past `key_bytes` and `value_bytes` a request is refused and the conversation goes on, up to `string_bytes`
    for a key and twice the limit for a value. Past everything else, and these, the stream is given up.
    """

    key_bytes: int = MAX_KEY_BYTES
    value_bytes: int = MAX_VALUE_BYTES
    string_bytes: int = 8 * 1024
    """One String frame: a key, a name, a password, the text of a Fail."""
    frames: int = MAX_BATCH_FRAMES
    """Frames in a message, the type frame among them."""
    message_bytes: int = 2 * MAX_VALUE_BYTES + 72 * 1024 + MAX_BATCH_OVERHEAD_BYTES
    """A whole message as it is on the wire."""

    def __post_init__(self) -> None:
        if self.string_bytes < self.key_bytes or self.frames < 3:
            raise ValueError("string_bytes must hold a key, and frames a Set, which has 3")
        if self.message_bytes < self.key_bytes + self.value_bytes + _HEADS_BYTES:
            raise ValueError("message_bytes must hold a key and a value of full length")

    @classmethod
    def of(cls, key_bytes: int, value_bytes: int) -> Limits:
        """Limits for keys and values of these lengths, with the others to match."""
        string_bytes = max(8 * 1024, 2 * key_bytes)
        message_bytes = max(2 * value_bytes + 64 * 1024, MAX_BATCH_BYTES) + string_bytes + MAX_BATCH_OVERHEAD_BYTES
        return cls(key_bytes, value_bytes, string_bytes, message_bytes=message_bytes)


BEFORE_AUTHENTICATION = Limits(
    key_bytes=1_024, value_bytes=2 * 1024, string_bytes=4 * 1024, frames=16, message_bytes=8 * 1024
)
"""What a stranger may send: an Authenticate with long credentials, and no more."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A well-framed message that breaks a limit. It was skipped, and the stream is in step."""

    error: RequestError


# The common messages, up to where a value begins, in one call: a Get takes 0.7 microseconds and a Set 1.1,
# where the grammar below takes 4 and 6. What does not fit (a key that is no String, an incomplete message,
# one over a limit, anything odd) goes through the grammar, which alone decides what is an error.
_COMMON = re.compile(
    rb"\*(?:"
    rb"2\r\n#\x06\+([^\r\n]*+)\r\n"  # group 1: the key of a Get
    rb"|3\r\n#\x05\+([^\r\n]*+)\r\n\$([0-9]{1,10})\r\n"  # 2 and 3: the key and the size of a Set
    rb"|2\r\n#\x03(?:\$([0-9]{1,10})\r\n|(\|))"  # 4 or 5: the size or the null of a Success
    rb"|2\r\n#\x07\+([^\r\n]*+)\r\n"  # 6: the key of a Delete
    rb")"
)

# A frame that is all there, in one call: 0.5 microseconds instead of 3. Again, the grammar alone knows errors.
_FRAME = re.compile(
    rb"\+([^\r\n]*+)\r\n"  # group 1: a String
    rb"|\$([0-9]{1,10})\r\n"  # group 2: the size of Bytes
    rb"|\|"
)
_HEAD = re.compile(rb"\*([0-9]{1,10})\r\n#(.)", re.DOTALL)

MESSAGE_COST = 4
"""The part that a message which is not a common one takes of the allowance beside its frames."""
_GRAMMAR_COST = 4
"""The same for a frame that goes through the grammar: one in pieces, a time, anything odd."""

FRAME_BYTES = 64
"""The bytes that a frame keeps in memory beside its bytes: one of a few letters was measured at 64 to 72."""


class Decoder:
    """Turns what a peer sends into messages. Feed it, then take messages until it has none.

    It holds what was fed and not taken, so a caller that takes all messages after each read holds at most one
    incomplete message, whose size `limits` bounds.

    One message may have thousands of frames, and one read may bring thousands of messages. Who has others to serve sets
    an `allowance`: once so many frames are read, a message is left where it is, and `next_message` returns None.
    """

    __slots__ = ("_begun", "_buffer", "_fault", "_reader", "_reading", "limits")

    def __init__(self, limits: Limits = Limits()) -> None:
        self.limits = limits
        """May be replaced between messages; the message that is arriving keeps those it began with."""
        self._buffer = Buffer()
        # Only while a message is incomplete. Neither knows the decoder: a cycle would keep the bytes
        # of a lost connection until the garbage collector comes by.
        self._reader: _MessageReader | None = None
        self._reading: Reading[Message | Refused] | None = None
        self._fault: str | None = None
        self._begun = 0

    @property
    def unfinished(self) -> int:
        """The number of the message that is arriving, which no other one of this decoder has; 0 none."""
        return 0 if self._reader is None else self._begun

    @property
    def buffered_bytes(self) -> int:
        """Bytes received and held that have not been returned as messages."""
        buffer = self._buffer
        return len(buffer.data) - buffer.position if self._reader is None else buffer.held_bytes

    @property
    def held_bytes(self) -> int:
        """The memory that these take: a frame is an object of its own."""
        buffer = self._buffer
        # Between messages all is in `data`; this is asked for after every read.
        if self._reader is None:
            return len(buffer.data) - buffer.position
        return buffer.held_bytes + FRAME_BYTES * len(self._reader.frames)

    @property
    def is_tired(self) -> bool:
        """True once the allowance is used up; where `next_message` has returned None, that may be why."""
        return self._buffer.allowance <= 0

    def allow(self, frames: int) -> None:
        """Read so many frames before the next pause; common messages do not count. Until this is called, any number."""
        self._buffer.allowance = frames

    def charge(self, frames: int) -> None:
        """Count work that a message has caused as if it were so many frames."""
        self._buffer.allowance -= frames

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what has arrived, as a copy unless it is `bytes`; after a ProtocolError it is ignored."""
        if self._fault is None:
            self._buffer.feed(data)

    def next_message(self) -> Message | Refused | None:
        """The next message, or None where more bytes are needed, or the allowance is used up.

        Raises ProtocolError where the bytes are no message or go beyond what is skipped. Nothing behind that
        can be understood: the decoder lets go of all bytes, and raises the same from then on.
        """
        if self._reading is None:
            if not self._buffer.data:
                if self._fault is not None:
                    raise ProtocolError(self._fault)
                return None
            if (message := self._next_common()) is not None:
                return message
            if self._buffer.allowance <= 0:
                return None
            self._begun += 1
            self._reader = _MessageReader(self._buffer, self.limits)
            self._reading = self._reader.read()
        try:
            next(self._reading)
        except StopIteration as finished:
            self._reader = self._reading = None
            self._buffer.finish()
            result: Message | Refused = finished.value
            return result
        except ProtocolError as error:
            self._reader = self._reading = None
            self._buffer = Buffer()
            self._fault = str(error)
            raise
        if self._buffer.allowance > 0:
            self._buffer.compact()
        return None

    def refuse_incomplete(self, error: RequestError) -> bool:
        """Give up the Bytes frame that is arriving, to free its memory; False where none is being stored.

        What is still to come of it is skipped, and the message comes out as Refused(error).
        """
        if self._reader is None or not self._buffer.holds_body:
            return False
        self._reader.refuse(error)
        return True

    def _next_common(self) -> Message | None:
        buffer = self._buffer
        data = buffer.data
        found = _COMMON.match(data, buffer.position)
        if found is None:
            return None
        limits = self.limits
        key, value, end = b"", b"", found.end()
        group = found.lastindex
        if group == 3 or group == 4:  # noqa: PLR1714 - a set or a tuple costs more than the comparison
            start, end = end, end + int(found[group])
            if end - start > limits.value_bytes or not data.startswith(b"\r\n", end):
                return None
            value = data[start:end]
            end += 2
        message: Message
        match group:
            case 1:
                message = Get(key := found[1])
            case 3:
                message = Set(key := found[2], value)
            case 4:
                message = Success(value)
            case 5:
                message = Success(None)
            case _:
                message = Delete(key := found[6])
        if len(key) > limits.key_bytes or not (key.isascii() or is_utf8(key)):
            return None
        buffer.position = end
        if end == len(data):
            buffer.data, buffer.position = b"", 0  # a compact, without the 0.1 microseconds of the call
        return message


class _MessageReader:
    """One message on its way in: the grammar, from the first byte to the last."""

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
        buffer.allowance -= MESSAGE_COST
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
