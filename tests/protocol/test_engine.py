"""The engine's messages: bytes both ways, in any pieces, and what is none of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import InvalidKey, InvalidValue, ProtocolError
from kvsd.protocol import engine
from kvsd.protocol.limits import Limits
from kvsd.protocol.message_reader import Refused
from kvsd.protocol.messages import encode
from kvsd.types import MAX_BATCH_STEPS
from tests.protocol.both_ways import check, check_in_pieces, outcome

STEPS: tuple[engine.Step, ...] = (
    engine.Store(None, None, b"a", b"1", 5, None),
    engine.Remove(None, None, b"\xff", 3),
    engine.Check(b"c", 0),
)

MESSAGES: list[tuple[engine.EngineMessage, bytes]] = [
    (engine.Use("shop", "stock"), b"*3\r\n#\x22+shop\r\n+stock\r\n"),
    (engine.Fetch(None, None, b"k"), b"*4\r\n#\x23||+k\r\n"),
    (engine.Entry(b"v", 7, 1_000, 0), b"*5\r\n#\x24$1\r\nv\r\n+7\r\n+1000\r\n+0\r\n"),
    (engine.Store(None, "t", b"k", b"v", 30_000, None), b"*7\r\n#\x25|+t\r\n+k\r\n$1\r\nv\r\n+30000\r\n|"),
    (engine.Remove("n", "t", b"\r\n", 9), b"*5\r\n#\x26+n\r\n+t\r\n$2\r\n\r\n\r\n+9\r\n"),
    (engine.Update(None, None, b"n", "incr", b"-5"), b"*6\r\n#\x27||+n\r\n+incr\r\n$2\r\n-5\r\n"),
    (engine.Update(None, None, b"n", "persist"), b"*6\r\n#\x27||+n\r\n+persist\r\n|"),
    (
        engine.Batch(None, None, STEPS),
        b"*14\r\n#\x28||+set\r\n+a\r\n$1\r\n1\r\n+5\r\n|+delete\r\n$1\r\n\xff\r\n+3\r\n+check\r\n+c\r\n+0\r\n",
    ),
    (engine.Batch(None, None, ()), b"*3\r\n#\x28||"),
    (engine.Exists(None, None, b""), b"*4\r\n#\x29||+\r\n"),
    (engine.Count(None, None, b"a", None), b"*5\r\n#\x2a||+a\r\n|"),
    (engine.Number(-(2**63)), b"*2\r\n#\x2b+-9223372036854775808\r\n"),
    (engine.Mismatch(3, "no"), b"*3\r\n#\x2c+3\r\n+no\r\n"),
    (engine.Read("n", "t", b"k"), b"*4\r\n#\x2d+n\r\n+t\r\n+k\r\n"),
    (engine.Scan(None, None, b"", b"z", 10, True), b"*7\r\n#\x40||+\r\n+z\r\n+10\r\n+1\r\n"),
    (engine.Page(None, ()), b"*2\r\n#\x41|"),
    (engine.Page(b"c", ((b"a", b"1"), (b"b", None))), b"*6\r\n#\x41+c\r\n+a\r\n$1\r\n1\r\n+b\r\n|"),
]


@pytest.mark.parametrize(("message", "data"), MESSAGES)
def test_bytes_and_messages_belong_together(message: engine.EngineMessage, data: bytes) -> None:
    check(message, data)


@pytest.mark.parametrize(
    "data",
    [
        b"*1\r\n#\x22",  # too few frames
        b"*4\r\n#\x22+a\r\n+b\r\n+c\r\n",  # too many
        b"*3\r\n#\x22|+b\r\n",  # a Null where something must be said
        b"*4\r\n#\x23$1\r\na\r\n|+k\r\n",  # Bytes for a name
        b"*4\r\n#\x23||T2024-05-06T07:08:09+00:00\r\n",  # a Time for a key
        b"*4\r\n#\x23|||",
        b"*7\r\n#\x25||+k\r\n+v\r\n||",  # a String for a value
        b"*7\r\n#\x25||+k\r\n$1\r\nv\r\n+1.5\r\n|",
        b"*7\r\n#\x25||+k\r\n$1\r\nv\r\n+\xd9\xa3\r\n|",  # digits of another script
        b"*7\r\n#\x25||+k\r\n$1\r\nv\r\n+" + b"9" * 20 + b"\r\n|",
        b"*4\r\n#\x28||+jump\r\n",
        b"*5\r\n#\x28||+check\r\n+c\r\n",
        b"*6\r\n#\x28||+check\r\n+c\r\n|",
        b"*3\r\n#\x41|+a\r\n",  # a key without its value
    ],
)
def test_frames_that_make_no_message_end_the_conversation(data: bytes) -> None:
    assert isinstance(outcome(data), ProtocolError)


def test_a_key_that_is_too_long_is_refused_before_it_is_held() -> None:
    limits = Limits.of(key_bytes=10, value_bytes=20)
    too_long = engine.Store(None, None, b"k" * 11, b"v", None, None)
    refused = outcome(encode(too_long), limits)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, InvalidKey)
    for key_bytes, value_bytes, expected in ((10, 20, engine.Store), (10, 21, Refused)):
        message = engine.Store(None, None, b"k" * key_bytes, bytes(value_bytes), None, None)
        assert isinstance(outcome(encode(message), limits), expected)
    refused = outcome(encode(engine.Batch(None, None, (engine.Store(None, None, b"", bytes(21)),))), limits)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, InvalidValue)


def test_the_largest_batch_fits_and_one_step_more_does_not() -> None:
    step = engine.Store(None, None, b"k", b"v", 1, 1)
    assert outcome(encode(most := engine.Batch("n", "t", (step,) * MAX_BATCH_STEPS))) == most
    too_many = encode(engine.Batch("n", "t", (step,) * (MAX_BATCH_STEPS + 1)))
    assert "frames" in str(outcome(too_many))


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=9)
NUMBERS = st.none() | st.integers(0, 2**63 - 1)
ANY_STEP = st.one_of(
    st.builds(engine.Store, st.none(), st.none(), st.binary(), st.binary(), NUMBERS, NUMBERS),
    st.builds(engine.Remove, st.none(), st.none(), st.binary(), NUMBERS),
    st.builds(engine.Check, st.binary(), st.integers(0, 2**63 - 1)),
)


@given(
    st.one_of(
        st.builds(engine.Store, TEXTS, TEXTS, st.binary(), st.binary(), NUMBERS, NUMBERS),
        st.builds(engine.Batch, TEXTS, TEXTS, st.lists(ANY_STEP).map(tuple)),
        st.builds(engine.Scan, TEXTS, TEXTS, st.binary(), st.none() | st.binary(), st.integers(0, 999), st.booleans()),
        st.builds(
            engine.Page,
            st.none() | st.binary(),
            st.lists(st.tuples(st.binary(), st.none() | st.binary())).map(tuple),
        ),
    ),
    st.lists(st.integers(1, 9), max_size=5),
)
def test_any_message_in_any_pieces_comes_back(message: engine.EngineMessage, sizes: list[int]) -> None:
    check_in_pieces(message, sizes)
