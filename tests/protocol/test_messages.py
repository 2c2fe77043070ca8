"""Each message's bytes, both ways; the decoder takes them in every possible piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import ProtocolError
from kvsd.protocol.administration import AdministrationType
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.engine import EngineType
from kvsd.protocol.frames import Frame, Time
from kvsd.protocol.messages import (
    MAX_FAIL_CODE_BYTES,
    MAX_FAIL_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    Authenticate,
    Delete,
    Fail,
    Get,
    Hello,
    Message,
    MessageType,
    Ping,
    Set,
    Success,
    Unknown,
    Welcome,
    encode,
    encode_success,
    from_frames,
)

MOMENT = Time(1_714_979_289_123_456_789)
MOMENT_TEXT = b"T2024-05-06T07:08:09.123456789+00:00\r\n"

MESSAGES: list[tuple[Message, bytes]] = [
    (Ping(None, None), b"*3\r\n#\x01||"),
    (Ping(MOMENT, None), b"*3\r\n#\x01" + MOMENT_TEXT + b"|"),
    (Ping(None, MOMENT), b"*3\r\n#\x01|" + MOMENT_TEXT),
    (Ping(MOMENT, Time(0)), b"*3\r\n#\x01" + MOMENT_TEXT + b"T1970-01-01T00:00:00+00:00\r\n"),
    (Authenticate("kvsduser", "secret"), b"*3\r\n#\x02+kvsduser\r\n+secret\r\n"),
    (Authenticate("", "pässwörd"), b"*3\r\n#\x02+\r\n+p\xc3\xa4ssw\xc3\xb6rd\r\n"),
    (Success(None), b"*2\r\n#\x03|"),
    (Success(b""), b"*2\r\n#\x03$0\r\n\r\n"),
    (Success(b"a\r\nb\x00\xff"), b"*2\r\n#\x03$6\r\na\r\nb\x00\xff\r\n"),
    (Success(b"*2\r\n#\x03|"), b"*2\r\n#\x03$7\r\n*2\r\n#\x03|\r\n"),
    (Fail("UNAUTHENTICATED", ""), b"*3\r\n#\x04+UNAUTHENTICATED\r\n+\r\n"),
    (Fail("INVALID_KEY", "too long: é"), b"*3\r\n#\x04+INVALID_KEY\r\n+too long: \xc3\xa9\r\n"),
    (Set(b"hello", b"rust"), b"*3\r\n#\x05+hello\r\n$4\r\nrust\r\n"),
    (Set(b"", b""), b"*3\r\n#\x05+\r\n$0\r\n\r\n"),
    (Set(b"k\r\n", b"v"), b"*3\r\n#\x05$3\r\nk\r\n\r\n$1\r\nv\r\n"),
    (Set("空鍵".encode(), b"\r\n"), b"*3\r\n#\x05+\xe7\xa9\xba\xe9\x8d\xb5\r\n$2\r\n\r\n\r\n"),
    (Get(b"hello"), b"*2\r\n#\x06+hello\r\n"),
    (Get(b""), b"*2\r\n#\x06+\r\n"),
    (Get(b"\xff\x00"), b"*2\r\n#\x06$2\r\n\xff\x00\r\n"),
    (Delete(b"hello"), b"*2\r\n#\x07+hello\r\n"),
    (Delete(b"a\nb"), b"*2\r\n#\x07+a\nb\r\n"),
    (Hello(1, ()), b"*2\r\n#\x20+1\r\n"),
    (Hello(PROTOCOL_VERSION, ("scan", "watch")), b"*4\r\n#\x20+1\r\n+scan\r\n+watch\r\n"),
    (Welcome(1, ()), b"*2\r\n#\x21+1\r\n"),
    (Welcome(1, ("scan",)), b"*3\r\n#\x21+1\r\n+scan\r\n"),
    (Unknown(0), b"*1\r\n#\x00"),
    (Unknown(255), b"*1\r\n#\xff"),
]

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=40)
KEYS = st.binary(max_size=40) | TEXTS.map(str.encode)
TIMES = st.none() | st.integers(-(10**18), 10**19).map(Time)
FEATURES = st.lists(TEXTS, max_size=5).map(tuple)
UNKNOWN_TYPES = st.integers(0, 255).filter(
    lambda number: number not in {*MessageType, *EngineType, *AdministrationType}
)
ANY_MESSAGE = st.one_of(
    st.builds(Ping, TIMES, TIMES),
    st.builds(Authenticate, TEXTS, TEXTS),
    st.builds(Success, st.none() | st.binary()),
    st.builds(Fail, TEXTS.filter(lambda text: len(text.encode()) <= MAX_FAIL_CODE_BYTES), TEXTS),
    st.builds(Set, KEYS, st.binary()),
    st.builds(Get, KEYS),
    st.builds(Delete, KEYS),
    st.builds(Hello, st.integers(0, 10**10 - 1), FEATURES),
    st.builds(Welcome, st.integers(0, 10**10 - 1), FEATURES),
    st.builds(Unknown, UNKNOWN_TYPES),
)


@pytest.mark.parametrize(("message", "encoded"), MESSAGES)
def test_a_message_has_exactly_these_bytes(message: Message, encoded: bytes) -> None:
    assert encode(message) == encoded


@pytest.mark.parametrize(("message", "encoded"), MESSAGES)
def test_a_whole_message_is_understood_whatever_follows(message: Message, encoded: bytes) -> None:
    for behind in (b"", b"*", b"*2\r\n#\x06+next", b"\x00garbage", encoded[:-1]):
        decoder = Decoder()
        decoder.feed(encoded + behind)
        assert decoder.next_message() == message
        assert decoder.buffered_bytes == len(behind)


@pytest.mark.parametrize(("message", "encoded"), MESSAGES)
def test_a_message_that_arrives_byte_by_byte_is_not_taken_early_or_lost(message: Message, encoded: bytes) -> None:
    decoder = Decoder()
    for position in range(len(encoded)):
        assert decoder.next_message() is None
        assert decoder.buffered_bytes == position
        decoder.feed(encoded[position : position + 1])
    assert decoder.next_message() == message
    assert decoder.next_message() is None
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize(("message", "encoded"), MESSAGES)
def test_a_message_cut_anywhere_waits_for_its_rest_and_is_no_error(message: Message, encoded: bytes) -> None:
    for cut in range(len(encoded)):
        decoder = Decoder()
        decoder.feed(encoded[:cut])
        assert decoder.next_message() is None
        decoder.feed(encoded[cut:])
        assert decoder.next_message() == message


@given(st.lists(ANY_MESSAGE, max_size=8), st.lists(st.integers(1, 60), min_size=1))
def test_any_messages_in_any_pieces_come_back(messages: list[Message], sizes: list[int]) -> None:
    stream = b"".join(map(encode, messages))
    decoder, received, position, turn = Decoder(), [], 0, 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        decoder.feed(stream[position : position + size])
        while (message := decoder.next_message()) is not None:
            received.append(message)
        position, turn = position + size, turn + 1
    assert received == messages
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("value", [None, b"", b"x" * 300])
def test_the_short_cut_for_success_writes_the_same_bytes(value: bytes | None) -> None:
    assert encode_success(value) == encode(Success(value))


def test_an_error_text_with_line_ends_cannot_forge_a_reply() -> None:
    encoded = encode(Fail("A\r\n+B", "no\r\n*2\r\n#\x03|\n"))
    assert encoded == b"*3\r\n#\x04+A  +B\r\n+no  *2  #\x03| \r\n"


def test_a_long_error_text_is_cut_between_characters() -> None:
    decoder = Decoder()
    decoder.feed(encode(Fail("Ä" * 1000, "xx" + "空" * 100_000)))
    message = decoder.next_message()
    assert isinstance(message, Fail)
    assert message.code == "Ä" * (MAX_FAIL_CODE_BYTES // 2)
    assert message.message == "xx" + "空" * ((MAX_FAIL_MESSAGE_BYTES - 2) // 3)


def test_an_error_text_that_is_no_unicode_is_still_sent() -> None:
    assert encode(Fail("INTERNAL", "file \udcff")) == b"*3\r\n#\x04+INTERNAL\r\n+file ?\r\n"


@pytest.mark.parametrize(
    "message", [Authenticate("a\r\nb", "p"), Authenticate("a", "p\n"), Hello(1, ("a\rb",)), Authenticate("\udc80", "")]
)
def test_a_text_that_would_break_the_framing_is_never_encoded(message: Message) -> None:
    with pytest.raises(ProtocolError):
        encode(message)


def test_no_repr_shows_a_password_or_a_value() -> None:
    assert repr(Authenticate("kvsduser", "secret")) == "Authenticate(username='kvsduser')"
    assert repr(Set(b"k", b"secret")) == "Set(key=b'k', value=<6 bytes>)"
    assert repr(Success(b"secret")) == "Success(value=<6 bytes>)"
    assert repr(Success(None)) == "Success(value=None)"


WRONG_FRAMES: list[tuple[MessageType, list[Frame]]] = [
    (MessageType.PING, []),
    (MessageType.PING, [None]),
    (MessageType.PING, ["now", None]),
    (MessageType.PING, [None, None, None]),
    (MessageType.AUTHENTICATE, ["user"]),
    (MessageType.AUTHENTICATE, ["user", b"password"]),
    (MessageType.AUTHENTICATE, [None, None]),
    (MessageType.SUCCESS, []),
    (MessageType.SUCCESS, ["text"]),
    (MessageType.SUCCESS, [b"", b""]),
    (MessageType.FAIL, ["code"]),
    (MessageType.FAIL, ["code", None]),
    (MessageType.SET, ["key"]),
    (MessageType.SET, ["key", "value"]),
    (MessageType.SET, ["key", None]),
    (MessageType.SET, [None, b"value"]),
    (MessageType.SET, ["key", b"value", b"more"]),
    (MessageType.GET, []),
    (MessageType.GET, [None]),
    (MessageType.GET, [Time(0)]),
    (MessageType.DELETE, ["key", "more"]),
    (MessageType.HELLO, []),
    (MessageType.HELLO, [b"1"]),
    (MessageType.HELLO, ["one"]),
    (MessageType.HELLO, ["-1"]),
    (MessageType.HELLO, ["٣"]),
    (MessageType.HELLO, ["1", None]),
    (MessageType.WELCOME, ["1", "scan", b"watch"]),
]


@pytest.mark.parametrize(("message_type", "frames"), WRONG_FRAMES)
def test_a_known_type_with_other_frames_is_an_error_and_no_crash(
    message_type: MessageType, frames: list[Frame]
) -> None:
    with pytest.raises(ProtocolError):
        from_frames(message_type, frames)
