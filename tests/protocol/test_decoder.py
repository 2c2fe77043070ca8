"""The decoder against limits, hostile bytes and awkward pieces."""

from __future__ import annotations

import gc
import random
import tracemalloc
import weakref
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import Busy, InvalidKey, InvalidValue, ProtocolError
from kvsd.protocol import engine
from kvsd.protocol.buffer import Buffer
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.frames import Time
from kvsd.protocol.limits import BEFORE_AUTHENTICATION, Limits
from kvsd.protocol.message_reader import Refused
from kvsd.protocol.messages import (
    Authenticate,
    Delete,
    Fail,
    Get,
    Hello,
    Message,
    Ping,
    Set,
    Success,
    Unknown,
    encode,
)

SMALL = Limits(key_bytes=8, value_bytes=100, string_bytes=32, frames=6, message_bytes=300)

SAMPLES: list[Message] = [
    Ping(Time(1), None),
    Authenticate("user", "password"),
    Success(None),
    Success(b"value"),
    Fail("CODE", "text"),
    Set(b"key", b"value"),
    Set(b"k\r\n", b""),
    Get(b"key"),
    Delete("schlüssel".encode()),
    Hello(1, ("scan",)),
    Unknown(200),
]


def pieces(data: bytes, size: int) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + size] for start in range(0, len(data), size))


def decode(parts: Iterable[bytes | memoryview], limits: Limits = SMALL) -> list[Message | Refused | str]:
    """All that comes out; a ProtocolError as its text, which is the end."""
    decoder, out = Decoder(limits), []
    try:
        for part in parts:
            decoder.feed(part)
            while (message := decoder.next_message()) is not None:
                out.append(message)
    except ProtocolError as error:
        out.append(str(error))
    return out


def outcome(data: bytes, limits: Limits = SMALL) -> Message | Refused | str | None:
    """What one message comes to: the same however its bytes are cut."""
    whole = decode([data], limits)
    by_bytes = decode(pieces(data, 1), limits)
    assert list(map(describe, whole)) == list(map(describe, by_bytes))
    return whole[0] if whole else None


def describe(result: Message | Refused | str) -> object:
    return (type(result.error), str(result.error)) if isinstance(result, Refused) else result


# Malformed input


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not begin with"),
        (b"\x16\x03\x01\x02\x00", "TLS to a plain port"),
        (b"\r\n", "does not begin with"),
        (b"*0\r\n", "has 0 frames"),
        (b"*7\r\n#\x06", "has 7 frames; 1 to 6"),
        (b"*-1\r\n", "decimal digits"),
        (b"*+2\r\n#\x06+k\r\n", "decimal digits"),
        (b"* 2\r\n", "decimal digits"),
        (b"*\r\n", "decimal digits"),
        (b"*00000000002\r\n#\x06+k\r\n", "longer than 10 bytes"),
        (b"*18446744073709551615\r\n", "longer than 10 bytes"),
        (b"*99999999999999", "longer than 10 bytes"),
        (b"*2\r\n+k\r\n", "first frame of a message is not its type"),
        (b"*3\r\n#\x06#\x06+k\r\n", "second message type"),
        (b"*2\r\n#\x06?k\r\n", "no frame begins with b'?'"),
        (b"*2\r\n#\x06+\xff\r\n", "not UTF-8"),
        (b"*2\r\n#\x06+\xed\xa0\x80\r\n", "not UTF-8"),
        (b"*2\r\n#\x06+" + b"k" * 33 + b"\r\n", "longer than 32 bytes"),
        (b"*2\r\n#\x06+" + b"k" * 34, "longer than 32 bytes"),
        (b"*2\r\n#\x06|", "not those that it is made of"),
        (b"*3\r\n#\x06+k\r\n+l\r\n", "not those that it is made of"),
        (b"*3\r\n#\x05+k\r\n+v\r\n", "not those that it is made of"),
        (b"*3\r\n#\x05+k\r\n$1\r\nvv\r\n", "no CR LF behind the 1 bytes"),
        (b"*3\r\n#\x05+k\r\n$1\r\nv\n\r", "no CR LF behind the 1 bytes"),
        (b"*3\r\n#\x05+k\r\n$-1\r\n", "decimal digits"),
        (b"*3\r\n#\x05+k\r\n$+1\r\nv\r\n", "decimal digits"),
        (b"*3\r\n#\x05+k\r\n$\r\n", "decimal digits"),
        (b"*3\r\n#\x05+k\r\n$18446744073709551615\r\n", "longer than 10 bytes"),
        (b"*3\r\n#\x05+k\r\n$9999999999\r\n", "too long to be skipped"),
        (b"*3\r\n#\x01Tnow\r\n|", "RFC 3339"),
        (b"*3\r\n#\x01T" + b"2" * 36 + b"\r\n|", "longer than 35 bytes"),
        (b"*3\r\n#\x02+user\r\n+\xc3\r\n", "not UTF-8"),
        (b"*2\r\n#\xc8+\xff\r\n", "not UTF-8"),
        (b"*2\r\n#\xc8?", "no frame begins with"),
    ],
)
def test_malformed_bytes_are_a_protocol_error_that_says_what_is_wrong(data: bytes, reason: str) -> None:
    result = outcome(data)
    assert isinstance(result, str)
    assert reason in result


def test_an_error_text_never_quotes_the_peer_at_length() -> None:
    for data in (b"X" * 5000, b"*" + b"X" * 5000, b"*2\r\n#\x06+" + b"X" * 5000, b"*2\r\n#\x02X" + b"X" * 5000):
        result = outcome(data)
        assert isinstance(result, str)
        assert "XX" not in result


def test_a_lone_cr_or_lf_in_a_string_is_part_of_it() -> None:
    assert outcome(b"*2\r\n#\x06+a\rb\n\r\n") == Get(b"a\rb\n")
    assert outcome(b"*2\r\n#\x06+a\r\r\n") == Get(b"a\r")


def test_a_broken_stream_stays_broken_and_holds_nothing() -> None:
    decoder = Decoder()
    decoder.feed(encode(Get(b"good")) + b"nonsense")
    assert decoder.next_message() == Get(b"good")
    for _ in range(3):
        with pytest.raises(ProtocolError, match="does not begin with"):
            decoder.next_message()
        assert decoder.buffered_bytes == 0
        decoder.feed(encode(Get(b"good")))


def test_frames_of_an_unknown_type_are_checked_skipped_and_followed_by_the_next_message() -> None:
    frames = b"+text\r\n$3\r\nabc\r\n|T2024-05-06T07:08:09Z\r\n"
    assert decode([b"*5\r\n#\xc8" + frames + encode(Get(b"k"))]) == [Unknown(200), Get(b"k")]
    assert outcome(b"*5\r\n#\xc8" + frames) == Unknown(200)


def test_a_long_value_of_an_unknown_type_is_skipped_without_another_complaint() -> None:
    assert outcome(b"*2\r\n#\xc8$150\r\n" + b"x" * 150 + b"\r\n") == Unknown(200)


# Limits


@pytest.mark.parametrize("make", [Get, Delete, lambda key: Set(key, b"v")])
@pytest.mark.parametrize("letter", [b"k", b"\xff"])
def test_a_key_is_refused_past_its_limit_and_the_stream_given_up_past_twice(make, letter: bytes) -> None:
    assert outcome(encode(make(letter * 8))) == make(letter * 8)
    for size in (9, 32):
        refused = outcome(encode(make(letter * size)))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, InvalidKey)
        assert f"{size} bytes" in str(refused.error)
        assert "limit is 8" in str(refused.error)
    assert isinstance(outcome(encode(make(letter * 33))), str)


@pytest.mark.parametrize("make", [Success, lambda value: Set(b"k", value)])
def test_a_value_is_refused_past_its_limit_and_the_stream_given_up_past_twice(make) -> None:
    assert outcome(encode(make(b"v" * 100))) == make(b"v" * 100)
    for size in (101, 200):
        refused = outcome(encode(make(b"v" * size)))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error, InvalidValue)
        assert f"{size} bytes" in str(refused.error)
        assert "limit is 100" in str(refused.error)
    assert "too long to be skipped" in str(outcome(encode(make(b"v" * 201))))


def test_an_absurd_value_is_given_up_from_its_declared_size_alone() -> None:
    assert "too long to be skipped" in str(outcome(b"*3\r\n#\x05+k\r\n$201\r\n"))


def test_the_key_is_the_reason_where_key_and_value_are_both_too_long() -> None:
    refused = outcome(encode(Set(b"k" * 9, b"v" * 150)))
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, InvalidKey)


def test_the_message_behind_a_refused_one_is_served() -> None:
    stream = encode(Set(b"k", b"*" * 150)) + encode(Get(b"k" * 9)) + encode(Set(b"k", b"v"))
    for size in (1, 7, 64, len(stream)):
        first, second, third = decode(pieces(stream, size))
        assert isinstance(first, Refused)
        assert isinstance(second, Refused)
        assert third == Set(b"k", b"v")


def test_a_refused_message_must_be_well_framed_all_the_same() -> None:
    assert "no CR LF" in str(outcome(b"*3\r\n#\x05+k\r\n$150\r\n" + b"v" * 150 + b"vv"))
    assert "not those" in str(outcome(b"*4\r\n#\x05+k\r\n$150\r\n" + b"v" * 150 + b"\r\n|"))


def test_the_frame_count_is_limited() -> None:
    assert outcome(encode(Hello(1, ("a",) * 4))) == Hello(1, ("a",) * 4)
    assert "has 7 frames" in str(outcome(encode(Hello(1, ("a",) * 5))))


def test_a_message_is_limited_as_a_whole_and_not_only_frame_by_frame() -> None:
    limits = Limits(key_bytes=8, value_bytes=100, string_bytes=100, frames=99, message_bytes=300)
    filling = encode(Hello(1, ("x" * 90, "x" * 92, "x" * 99)))
    assert len(filling) == 300
    assert isinstance(outcome(filling, limits), Hello)
    assert "longer than 300" in str(outcome(encode(Hello(1, ("x" * 90, "x" * 92, "x" * 100))), limits))
    values = b"*4\r\n#\xc8" + 2 * (b"$100\r\n" + b"v" * 100 + b"\r\n")
    assert "longer than 300" in str(outcome(values + b"$100\r\n", limits))


def test_a_stranger_can_say_who_he_is_and_little_else() -> None:
    login = Authenticate("u" * 2000, "p" * 4000)
    assert outcome(encode(login), BEFORE_AUTHENTICATION) == login
    for data in (
        encode(Authenticate("u", "p" * 4097)),
        encode(Authenticate("u" * 4096, "p" * 4096)),
        encode(Set(b"k", b"v" * 4097)),
        b"*17\r\n",
    ):
        assert isinstance(outcome(data, BEFORE_AUTHENTICATION), str)


def test_limits_can_be_raised_between_two_messages_of_one_read() -> None:
    decoder = Decoder(BEFORE_AUTHENTICATION)
    decoder.feed(encode(Authenticate("u", "p")) + encode(Set(b"k", b"v" * 50_000)))
    assert decoder.next_message() == Authenticate("u", "p")
    decoder.limits = Limits()
    assert decoder.next_message() == Set(b"k", b"v" * 50_000)


def test_limits_made_for_a_key_and_a_value_let_their_doubles_be_skipped() -> None:
    limits = Limits.of(20_000, 50_000)
    message = Set(b"k" * 20_000, b"v" * 50_000)
    assert decode([encode(message)], limits) == [message]
    doubles = encode(Set(b"k" * 40_000, b"v")) + encode(Set(b"k" * 40_000, b"v" * 100_000))
    assert [type(result) for result in decode([doubles], limits)] == [Refused, Refused]


def test_the_default_limits_are_those_made_for_the_default_key_and_value() -> None:
    assert Limits.of(1_024, 10 * 1024 * 1024) == Limits()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_bytes": 9_000},
        {"frames": 2},
        {"message_bytes": 10 * 1024 * 1024},
    ],
)
def test_limits_that_refuse_what_they_allow_cannot_be_made(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must hold"):
        Limits(**wrong)


# Memory


def test_a_value_that_is_too_long_is_never_stored() -> None:
    limits = Limits.of(1_024, 1024 * 1024)
    decoder = Decoder(limits)
    piece = memoryview(bytes(64 * 1024))
    decoder.feed(b"*3\r\n#\x05+k\r\n$2097152\r\n")
    tracemalloc.start()
    try:
        for _ in range(32):
            assert decoder.next_message() is None
            decoder.feed(piece)
            assert decoder.buffered_bytes <= 64
        assert tracemalloc.get_traced_memory()[1] < 256 * 1024
    finally:
        tracemalloc.stop()
    assert decoder.next_message() is None
    assert decoder.buffered_bytes <= 64
    decoder.feed(b"\r\n")
    assert isinstance(decoder.next_message(), Refused)
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("message", [Get(b"k"), Ping(None, None)])
def test_an_idle_decoder_lets_go_of_its_last_big_read(message: Message) -> None:
    decoder = Decoder()
    decoder.feed(encode(Set(b"k", b"v" * 100_000)) + encode(message))
    assert isinstance(decoder.next_message(), Set)
    assert decoder.next_message() == message
    assert decoder._buffer.data == b""


def test_a_message_that_waits_for_its_rest_does_not_keep_what_came_before_it() -> None:
    decoder = Decoder()
    decoder.feed(encode(Set(b"k", b"v" * 100_000)) + b"*2\r\n#\x06+ke")
    assert isinstance(decoder.next_message(), Set)
    assert decoder.next_message() is None
    assert decoder.buffered_bytes == 9
    assert len(decoder._buffer.data) < 9


def test_a_lost_connection_frees_its_bytes_without_the_garbage_collector() -> None:
    class Watched(Decoder):
        __slots__ = ("__weakref__",)

    decoder = Watched()
    decoder.feed(encode(Set(b"k", b"v" * 1000))[:-500])
    assert decoder.next_message() is None
    gone = weakref.ref(decoder)
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def test_an_arriving_value_can_be_given_up_and_the_stream_stays_in_step() -> None:
    stream = encode(Set(b"k", b"*" * 90))
    for cut in range(len(stream) - 92, len(stream) - 2):
        decoder = Decoder(SMALL)
        decoder.feed(stream[:cut])
        assert decoder.next_message() is None
        busy = Busy("no memory")
        assert decoder.refuse_incomplete(busy)
        assert decoder.buffered_bytes < 30
        assert not decoder.refuse_incomplete(Busy("asked twice"))
        decoder.feed(stream[cut:] + encode(Set(b"k", b"v")))
        assert decoder.next_message() == Refused(busy)
        assert decoder.next_message() == Set(b"k", b"v")
        assert decoder.buffered_bytes == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"*3\r\n#\x05+k\r\n$9",
        encode(Set(b"k", b"v" * 90))[:-1],
        encode(Set(b"k", b"v" * 150))[:-9],
        b"*2\r\n#\xc8$90\r\nabc",
        encode(Get(b"k")),
    ],
    ids=["nothing", "a head", "a whole value", "a value that is skipped", "an unknown type", "a whole message"],
)
def test_where_no_value_is_half_stored_there_is_nothing_to_give_up(data: bytes) -> None:
    decoder = Decoder(SMALL)
    decoder.feed(data)
    decoder.next_message()
    assert not decoder.refuse_incomplete(Busy("no memory"))


# Cost


class CountingBuffer(Buffer):
    """Counts the bytes that are copied or searched because a piece has arrived."""

    __slots__ = ("_current", "work")

    def __init__(self) -> None:
        self.work = 0
        super().__init__()

    @property
    def data(self) -> bytes:
        return self._current

    @data.setter
    def data(self, data: bytes) -> None:
        self.work += len(data)
        self._current = CountingBytes(data)
        self._current.owner = self


class CountingBytes(bytes):
    owner: CountingBuffer

    def find(self, wanted: bytes, start: int, end: int) -> int:
        self.owner.work += max(min(end, len(self)) - start, 0)
        return super().find(wanted, start, end)


@pytest.mark.parametrize(
    ("value_bytes", "piece_bytes"),
    [(2 * 1024 * 1024, 1024), (10 * 1024 * 1024, 100), (20_000, 1), (15 * 1024 * 1024, 8192)],
)
def test_the_work_is_linear_however_a_large_value_is_cut(value_bytes: int, piece_bytes: int) -> None:
    decoder = Decoder()
    decoder._buffer = buffer = CountingBuffer()
    stream = encode(Set(b"key", bytes(value_bytes)))
    taken = None
    for piece in pieces(stream, piece_bytes):
        assert taken is None
        decoder.feed(piece)
        taken = decoder.next_message()
    assert isinstance(taken, Refused if value_bytes > decoder.limits.value_bytes else Set)
    assert buffer.work < 2 * len(stream)


def test_an_unfinished_line_is_searched_once_and_not_from_its_start_each_time() -> None:
    decoder = Decoder()
    decoder._buffer = buffer = CountingBuffer()
    stream = encode(Fail("CODE", "x" * 1000))
    searched = []
    for piece in pieces(stream, 1):
        before = buffer.work
        decoder.feed(piece)
        copied = 2 * len(buffer.data)
        decoder.next_message()
        searched.append(buffer.work - before - copied)
    assert max(searched) < 64


# Pauses


LONG = [
    engine.Batch(None, None, tuple(engine.Store(None, None, b"%d" % n, b"v", n, None) for n in range(300))),
    Hello(1, ("f",) * 500),
    engine.Page(b"next", tuple((b"%d" % n, None) for n in range(300))),
    Set(b"k", b"v" * 200),
    Unknown(200),
    Ping(Time(1), Time(2)),
]


@pytest.mark.parametrize("allowance", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("piece_bytes", [1, 50, 100_000])
def test_a_message_that_is_left_in_the_middle_goes_on_there(allowance: int, piece_bytes: int) -> None:
    decoder, out = Decoder(), []
    for piece in pieces(b"".join(map(encode, LONG)), piece_bytes):
        decoder.feed(piece)
        while True:
            decoder.allow(allowance)
            if (message := decoder.next_message()) is not None:
                out.append(message)
            elif not decoder.is_tired:
                break
    assert out == LONG
    assert decoder.buffered_bytes == 0


def test_a_pause_comes_after_so_many_frames_and_costs_no_copy() -> None:
    decoder = Decoder()
    decoder._buffer = buffer = CountingBuffer()
    decoder.feed(encode(LONG[0]) + bytes(100_000))
    first, rounds = buffer.work, 0
    decoder.allow(100)
    while decoder.next_message() is None:
        assert decoder.is_tired
        decoder.allow(100)
        rounds += 1
    assert rounds > len(LONG[0].steps) * 5 / 100
    assert buffer.work == first


def test_the_frames_of_an_unfinished_message_count_as_the_objects_that_they_are() -> None:
    decoder = Decoder()
    stream = b"*5003\r\n#\x20" + b"+ab\r\n" * 5_000
    tracemalloc.start()
    try:
        for piece in pieces(stream, 1_000):
            decoder.feed(piece)
            assert decoder.next_message() is None
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert decoder.buffered_bytes < len(stream) + 100
    assert used * 0.8 < decoder.held_bytes < used * 1.25


# Fuzz: a message, more bytes needed, or ProtocolError


@given(st.binary(max_size=300), st.integers(1, 300))
def test_no_bytes_lead_to_anything_but_messages_or_a_protocol_error(data: bytes, size: int) -> None:
    decode(pieces(data, size))


def test_no_mutation_of_valid_messages_leads_to_anything_else() -> None:
    rng = random.Random(7379)
    stream = b"".join(map(encode, SAMPLES))
    tokens = [b"*", b"#", b"+", b"$", b"T", b"|", b"\r", b"\n", b"\r\n", b"0", b"9" * 10, b"\xff", b"*3\r\n#\x05"]
    for _ in range(3000):
        mutant = bytearray(stream)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(mutant))
            mutant[at : at + rng.randint(0, 3)] = rng.choice([*tokens, rng.randbytes(1)])
        whole = decode([mutant])
        in_pieces = decode(pieces(mutant, rng.randint(1, 20)))
        assert list(map(describe, whole)) == list(map(describe, in_pieces))


PARTS = st.sampled_from(
    [
        *(b"*1\r\n", b"*2\r\n", b"*3\r\n", b"#\x03", b"#\x05", b"#\x06", b"#\x07", b"#\x63"),
        *(b"+", b"$", b"|", b"+k\r\n", b"$1\r\nv\r\n", b"\r\n", b"\r", b"\n", b"0", b"1", b"150"),
        *(b"k", b"kkkkkkkkkk", b"x" * 100, b"\xff", b"\xc3\xa4"),
    ]
)


@given(st.lists(PARTS | st.sampled_from([encode(message) for message in SAMPLES]), max_size=12).map(b"".join))
def test_the_short_cut_for_common_messages_decides_as_the_grammar_does(stream: bytes) -> None:
    outcome(stream)
