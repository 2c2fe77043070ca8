"""How long a message and its parts may be.

Owns: the limits, and how they hang together. Must not know how a message is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS, MAX_KEY_BYTES, MAX_VALUE_BYTES

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
