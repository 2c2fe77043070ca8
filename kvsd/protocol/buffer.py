"""The bytes that have arrived and were not understood yet, read piece by piece.

Owns: holding them, resuming a read where it stopped, and dropping the body of a frame that nobody wants. Must
not know frames, messages or limits beyond the size it is asked for, nor where bytes come from.

The reads are generators. They yield whenever more bytes are needed and go on where they were when `feed` has
brought some, so the grammar in message_reader.py reads from top to bottom and nothing is scanned twice.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from io import BytesIO
from typing import Final, TypeAlias, TypeVar

from kvsd.errors import ProtocolError

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""Yields until there are enough bytes, or while the allowance is used up, then returns a T."""

UNLIMITED: Final = sys.maxsize


class Buffer:
    """What was fed and not read yet.

    `data` is immutable and made anew by every feed: its slices are then the values themselves. What is carried
    over from feed to feed is at most an unfinished line, so that costs less than the call; a body that is not
    all there grows in a BytesIO of its own, which hands its bytes over without a copy: that of 10 MiB takes 1 to 8 ms.
    """

    __slots__ = ("_body", "_missing", "allowance", "data", "discarding", "position", "skipped", "taken")

    def __init__(self) -> None:
        self.data = b""
        self.position = 0
        """Where in `data` the next read begins."""
        self.taken = 0
        """Bytes of the current message that were read, with those that were skipped."""
        self.skipped = 0
        """Bytes among `taken` that were not stored."""
        self.discarding = False
        self.allowance = UNLIMITED
        """Frames that may be read before others have their turn."""
        self._body: BytesIO | None = None
        self._missing = 0

    @property
    def held_bytes(self) -> int:
        """Bytes in memory: those not read yet, the body that is arriving, and the current message so far."""
        body = self._body.tell() if self._body is not None else 0
        return len(self.data) - self.position + body + self.taken - self.skipped

    @property
    def holds_body(self) -> bool:
        """Whether a body is being stored and not yet complete."""
        return self._body is not None

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append `data`. Whole `bytes` are not copied when nothing is held."""
        if self._missing:
            mine = min(self._missing, len(data))
            view = memoryview(data)
            if self._body is not None:
                self._body.write(view[:mine])
            self._missing -= mine
            data = view[mine:]
        self.data = self.data[self.position :] + data
        self.position = 0

    def compact(self) -> None:
        """Let go of what has been read: an idle connection must not hold on to its last big read."""
        self.data = self.data[self.position :]
        self.position = 0

    def finish(self) -> None:
        """A message is complete: count anew, store bodies again, let go of `data` once all is read."""
        self.taken = self.skipped = 0
        self.discarding = False
        if self.position == len(self.data):
            self.compact()

    def discard(self) -> None:
        """Store no body until `finish`: the one that is arriving is dropped, the rest skipped as it comes."""
        self.discarding = True
        self._body = None

    def byte(self) -> Reading[bytes]:
        """The next byte."""
        while self.position == len(self.data):
            yield
        return self._take(1)

    def line(self, limit: int, name: str) -> Reading[bytes]:
        """All up to the next CR LF, which is read too; ProtocolError, about `name`, past `limit` bytes."""
        searched = 0
        while True:
            longest = self.position + limit + 2
            end = self.data.find(b"\r\n", self.position + searched, longest)
            if end >= 0:
                break
            held = len(self.data) - self.position
            if held >= limit + 2:
                raise ProtocolError(f"{name} is longer than {limit} bytes")
            # The last byte may be the CR of an end whose LF is still to come.
            searched = max(held - 1, 0)
            yield
        line = self._take(end - self.position)
        self.position += 2
        self.taken += 2
        return line

    def body(self, size: int) -> Reading[bytes]:
        """The next `size` bytes; b"" where they are discarded."""
        here = min(size, len(self.data) - self.position)
        body = b"" if self.discarding else self.data[self.position : self.position + here]
        self.position += here
        if here < size:
            self._missing = size - here
            if not self.discarding:
                self._body = BytesIO()
                self._body.write(body)
            while self._missing:
                yield
            body = b"" if self._body is None else self._body.getvalue()
            self._body = None
        self.taken += size
        self.skipped += size - len(body)
        return body

    def _take(self, size: int) -> bytes:
        start = self.position
        self.position += size
        self.taken += size
        return self.data[start : self.position]
