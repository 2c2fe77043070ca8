"""Frames: the smallest typed units on the wire, as plain Python values, and the bytes of each.

Owns: which bytes a text, a blob, a time or a null is written as, and what the payload of one means. Must not
know what a frame is for (messages.py) or how bytes arrive (buffer.py, decoder.py). Pure: no clock, no I/O.

    String  '+' text CR LF             str          UTF-8 without CR and LF
    Bytes   '$' size CR LF data CR LF  bytes        anything
    Time    'T' RFC 3339 CR LF         Time         written in UTC
    Null    '|'                        None         one byte, nothing behind it

The message type, `#` and one raw byte, is a frame too. It comes first in every message and nowhere else, so
it never stands among the values of this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, assert_never

from kvsd.errors import ProtocolError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_NANOSECONDS = 1_000_000_000
_EARLIEST = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // _SECOND * _NANOSECONDS
_LATEST = ((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH) // _SECOND + 1) * _NANOSECONDS - 1

_RFC3339 = re.compile(
    rb"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))"
)


@dataclass(frozen=True, slots=True, order=True)
class Time:
    """A point in time: integer nanoseconds since the Unix epoch, UTC, within the years 1 to 9999.

    Raises ProtocolError outside these years, since RFC 3339 has no way to write them.
    """

    nanoseconds: int

    def __post_init__(self) -> None:
        if not _EARLIEST <= self.nanoseconds <= _LATEST:
            raise ProtocolError("a time lies outside the years 1 to 9999")

    @classmethod
    def parse(cls, text: bytes) -> Time:
        """Read RFC 3339 with any offset or Z and up to 9 fraction digits; raises ProtocolError.

        A leap second (:60) is the first instant of the next minute, as Unix time has no other name for it.
        """
        found = _RFC3339.fullmatch(text)
        if found is None:
            raise ProtocolError("a Time frame is no RFC 3339 time with a date, an offset and 0 to 9 fraction digits")
        *clock, fraction, sign, offset_hours, offset_minutes = found.groups()
        year, month, day, hour, minute, second = map(int, clock)
        leap = second == 60
        try:
            moment = datetime(year, month, day, hour, minute, second - leap, tzinfo=UTC)
        except ValueError:
            raise ProtocolError("a Time frame names a date or an hour that does not exist") from None
        seconds = (moment - _EPOCH) // _SECOND + leap
        if sign is not None:
            offset = int(offset_hours) * 3600 + int(offset_minutes) * 60
            seconds += offset if sign == b"-" else -offset
        return cls(seconds * _NANOSECONDS + int((fraction or b"").ljust(9, b"0")))

    def __str__(self) -> str:
        """RFC 3339 in UTC with +00:00 and the fewest of 0, 3, 6 or 9 fraction digits that lose nothing."""
        seconds, fraction = divmod(self.nanoseconds, _NANOSECONDS)
        text = (_EPOCH + seconds * _SECOND).replace(tzinfo=None).isoformat()
        if fraction == 0:
            return f"{text}+00:00"
        if fraction % 1_000_000 == 0:
            return f"{text}.{fraction // 1_000_000:03}+00:00"
        if fraction % 1_000 == 0:
            return f"{text}.{fraction // 1_000:06}+00:00"
        return f"{text}.{fraction:09}+00:00"


Frame: TypeAlias = str | bytes | Time | None

NULL = b"|"

MAX_NUMBER_DIGITS = 10
"""Digits of a count, a size or a version: enough for every limit, and few enough to convert at no cost."""

MAX_TIME_BYTES = len("2024-05-06T07:08:09.123456789+00:00")


def encode_frame(frame: Frame) -> bytes:
    """The bytes of one frame; raises ProtocolError for a text that a String frame cannot carry."""
    match frame:
        case str():
            return string_frame(frame)
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(frame), frame)
        case Time():
            return b"T%b\r\n" % str(frame).encode()
        case None:
            return NULL
        case _:
            assert_never(frame)


def string_frame(text: str) -> bytes:
    """A String frame; raises ProtocolError where `text` holds CR or LF or has no UTF-8 form.

    A String frame has no length: a CR LF within it would end it, and what follows would pass as frames.
    """
    if "\r" in text or "\n" in text:
        raise ProtocolError("the text holds CR or LF, which a String frame cannot carry; remove them")
    try:
        return b"+%b\r\n" % text.encode()
    except UnicodeEncodeError:
        raise ProtocolError("the text is no valid Unicode, so a String frame cannot carry it") from None


def key_frame(key: bytes) -> bytes:
    """The frame of a key: String where it can be one, else Bytes."""
    if not fits_string(key):
        return b"$%d\r\n%b\r\n" % (len(key), key)
    return b"+%b\r\n" % key


def fits_string(key: bytes) -> bool:
    """Tell whether a String frame can carry `key`: UTF-8 without the pair CR LF. A CR or LF alone ends nothing."""
    return b"\r\n" not in key and is_utf8(key)


def is_utf8(data: bytes) -> bool:
    """Whether `data` is UTF-8, and so may stand in a String frame as far as that goes."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def parse_string(line: bytes) -> str:
    """The text of a String frame, without its prefix and end; raises ProtocolError where it is no UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise ProtocolError("a String frame is not UTF-8") from None


def parse_number(line: bytes) -> int:
    """A frame count, a size or a version: 1 to 10 ASCII digits, no sign, no space; raises ProtocolError."""
    if not line.isdigit() or len(line) > MAX_NUMBER_DIGITS:
        raise ProtocolError(f"a count, size or version is not 1 to {MAX_NUMBER_DIGITS} decimal digits")
    return int(line)
