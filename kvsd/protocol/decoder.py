"""The decoder: bytes in any pieces in, messages out, within limits.

Owns: where one message ends and the next begins, and the short way of the common ones. Must not know who is at the
other end, what an answer is, sockets or clocks. A client and a server use the same one.

`next_message` raises ProtocolError and nothing else, whatever was fed.
"""

from __future__ import annotations

import re

from kvsd.errors import ProtocolError, RequestError
from kvsd.protocol.buffer import Buffer, Reading
from kvsd.protocol.frames import is_utf8
from kvsd.protocol.limits import Limits
from kvsd.protocol.message_reader import FRAME_BYTES, MessageReader, Refused
from kvsd.protocol.messages import Delete, Get, Message, Set, Success

_LIMITS = Limits()

# The common messages, up to where a value begins, in one call: a Get takes 0.7 microseconds and a Set 1.1,
# where the grammar takes 4 and 6. What does not fit (a key that is no String, an incomplete message,
# one over a limit, anything odd) goes through the grammar, which alone decides what is an error.
_COMMON = re.compile(
    rb"\*(?:"
    rb"2\r\n#\x06\+([^\r\n]*+)\r\n"  # group 1: the key of a Get
    rb"|3\r\n#\x05\+([^\r\n]*+)\r\n\$([0-9]{1,10})\r\n"  # 2 and 3: the key and the size of a Set
    rb"|2\r\n#\x03(?:\$([0-9]{1,10})\r\n|(\|))"  # 4 or 5: the size or the null of a Success
    rb"|2\r\n#\x07\+([^\r\n]*+)\r\n"  # 6: the key of a Delete
    rb")"
)


class Decoder:
    """Turns what a peer sends into messages. Feed it, then take messages until it has none.

    It holds what was fed and not taken, so a caller that takes all messages after each read holds at most one
    incomplete message, whose size `limits` bounds.

    One message may have thousands of frames, and one read may bring thousands of messages. Who has others to serve sets
    an `allowance`: once so many frames are read, a message is left where it is, and `next_message` returns None.
    """

    __slots__ = ("_begun", "_buffer", "_fault", "_reader", "_reading", "limits")

    def __init__(self, limits: Limits = _LIMITS) -> None:
        self.limits = limits
        """May be replaced between messages; the message that is arriving keeps those it began with."""
        self._buffer = Buffer()
        # Only while a message is incomplete. Neither knows the decoder: a cycle would keep the bytes
        # of a lost connection until the garbage collector comes by.
        self._reader: MessageReader | None = None
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
            self._reader = MessageReader(self._buffer, self.limits)
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
