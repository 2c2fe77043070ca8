"""Each frame's bytes and what they mean."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import ProtocolError
from kvsd.protocol.frames import (
    MAX_TIME_BYTES,
    Frame,
    Time,
    encode_frame,
    is_utf8,
    key_frame,
    parse_number,
    parse_string,
    string_frame,
)

EARLIEST = -62_135_596_800 * 10**9
LATEST = 253_402_300_800 * 10**9 - 1

FRAMES: list[tuple[Frame, bytes]] = [
    ("", b"+\r\n"),
    ("hello", b"+hello\r\n"),
    ("空鍵", b"+\xe7\xa9\xba\xe9\x8d\xb5\r\n"),
    ("+$|#*", b"++$|#*\r\n"),
    (b"", b"$0\r\n\r\n"),
    (b"rust", b"$4\r\nrust\r\n"),
    (b"a\r\nb\x00\xff", b"$6\r\na\r\nb\x00\xff\r\n"),
    (None, b"|"),
    (Time(0), b"T1970-01-01T00:00:00+00:00\r\n"),
    (Time(-1), b"T1969-12-31T23:59:59.999999999+00:00\r\n"),
    (Time(EARLIEST), b"T0001-01-01T00:00:00+00:00\r\n"),
    (Time(LATEST), b"T9999-12-31T23:59:59.999999999+00:00\r\n"),
]


@pytest.mark.parametrize(("frame", "encoded"), FRAMES)
def test_a_frame_has_exactly_these_bytes(frame: Frame, encoded: bytes) -> None:
    assert encode_frame(frame) == encoded


@pytest.mark.parametrize("text", ["a\r\nb", "\r", "\n", "a\n", "*3\r\n#\x07+k\r\n"])
def test_a_text_with_a_line_end_cannot_smuggle_frames_into_the_stream(text: str) -> None:
    with pytest.raises(ProtocolError, match="CR or LF"):
        string_frame(text)


def test_a_text_that_is_no_unicode_is_a_typed_error() -> None:
    with pytest.raises(ProtocolError, match="no valid Unicode"):
        string_frame("\udcff")


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        (b"", b"+\r\n"),
        (b"hello", b"+hello\r\n"),
        ("空鍵".encode(), b"+\xe7\xa9\xba\xe9\x8d\xb5\r\n"),
        (b"a\rb", b"+a\rb\r\n"),
        (b"a\nb", b"+a\nb\r\n"),
        (b"\na\r", b"+\na\r\r\n"),
        (b"a\r\nb", b"$4\r\na\r\nb\r\n"),
        (b"\xff", b"$1\r\n\xff\r\n"),
        (b"\xed\xa0\x80", b"$3\r\n\xed\xa0\x80\r\n"),
    ],
)
def test_a_key_is_a_string_only_where_a_string_can_carry_it(key: bytes, encoded: bytes) -> None:
    assert key_frame(key) == encoded


@pytest.mark.parametrize(
    ("data", "verdict"), [(b"", True), (b"ab", True), (b"\xc3\xa4", True), (b"\xc3", False), (b"\xff", False)]
)
def test_utf8_is_told_from_other_bytes(data: bytes, verdict: bool) -> None:
    assert is_utf8(data) is verdict


def test_a_string_frame_that_is_no_utf8_is_a_typed_error() -> None:
    with pytest.raises(ProtocolError, match="not UTF-8"):
        parse_string(b"\xff")


@pytest.mark.parametrize(("line", "number"), [(b"0", 0), (b"10485760", 10485760), (b"0000000005", 5)])
def test_a_number_is_up_to_ten_digits(line: bytes, number: int) -> None:
    assert parse_number(line) == number


@pytest.mark.parametrize(
    "line",
    [b"", b"-1", b"+5", b" 5", b"5 ", b"5_0", b"0x5", b"1e3", b"18446744073709551615", b"00000000005", "٣".encode()],
)
def test_a_number_in_any_other_form_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="decimal digits"):
        parse_number(line)


@pytest.mark.parametrize(
    "text",
    [
        "2024-05-06T07:08:09+00:00",
        "2024-05-06T07:08:09.100+00:00",
        "2024-05-06T07:08:09.000001+00:00",
        "2024-05-06T07:08:09.123456789+00:00",
        "2024-02-29T00:00:00.000000001+00:00",
        "2026-11-20T10:26:18.988599238+00:00",
        "0001-01-01T00:00:00+00:00",
        "9999-12-31T23:59:59.999999999+00:00",
    ],
)
def test_a_time_that_the_rust_program_would_write_comes_back_byte_for_byte(text: str) -> None:
    assert str(Time.parse(text.encode())) == text
    assert len(text) <= MAX_TIME_BYTES


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09+00:00"),
        ("2024-05-06t07:08:09z", "2024-05-06T07:08:09+00:00"),
        ("2024-05-06T07:08:09-00:00", "2024-05-06T07:08:09+00:00"),
        ("2024-05-06T00:30:00+01:00", "2024-05-05T23:30:00+00:00"),
        ("2024-05-06T23:30:00-05:45", "2024-05-07T05:15:00+00:00"),
        ("2024-05-06T07:08:09.1Z", "2024-05-06T07:08:09.100+00:00"),
        ("2024-05-06T07:08:09.1200Z", "2024-05-06T07:08:09.120+00:00"),
        ("2024-05-06T07:08:09.000000000Z", "2024-05-06T07:08:09+00:00"),
        ("1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500+00:00"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00+00:00"),
        ("2017-01-01T00:59:60.5+01:00", "2017-01-01T00:00:00.500+00:00"),
    ],
)
def test_any_offset_and_fraction_means_the_same_moment(text: str, same: str) -> None:
    assert str(Time.parse(text.encode())) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2024-05-06",
        "2024-05-06 07:08:09Z",
        "2024-05-06T07:08:09",
        "2024-05-06T07:08:09.Z",
        "2024-05-06T07:08:09.1234567890Z",
        "2024-05-06T07:08:09+0000",
        "2024-05-06T07:08:09+24:00",
        "2024-05-06T07:08:09+00:60",
        "2024-5-6T07:08:09Z",
        "2024-13-01T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "2024-05-06T24:00:00Z",
        "2024-05-06T07:60:00Z",
        "2024-05-06T07:08:61Z",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:60Z",
        "9999-12-31T23:59:59-00:01",
        " 2024-05-06T07:08:09Z",
        "2024-05-06T07:08:09Z\n",
        "٢٠٢٤-05-06T07:08:09Z",
    ],
)
def test_a_time_that_is_none_is_a_typed_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        Time.parse(text.encode())


@pytest.mark.parametrize("nanoseconds", [EARLIEST - 1, LATEST + 1, 2**80, -(2**80)])
def test_a_time_that_cannot_be_written_cannot_be_made(nanoseconds: int) -> None:
    with pytest.raises(ProtocolError, match="years 1 to 9999"):
        Time(nanoseconds)


@given(st.integers(EARLIEST, LATEST))
def test_every_moment_survives_being_written(nanoseconds: int) -> None:
    text = str(Time(nanoseconds)).encode()
    assert Time.parse(text) == Time(nanoseconds)
    assert len(text) <= MAX_TIME_BYTES


@given(st.binary(max_size=40))
def test_no_bytes_make_the_time_parser_fail_in_another_way(text: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        Time.parse(text)
