"""The administration's messages: bytes both ways, in any pieces, and what is none of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsd.errors import ProtocolError
from kvsd.protocol import administration as a
from kvsd.protocol.limits import BEFORE_AUTHENTICATION, Limits
from kvsd.protocol.messages import ADMINISTRATION_TYPES, Unknown, encode
from tests.protocol.both_ways import check, check_in_pieces, outcome

MESSAGES: list[tuple[a.AdministrationMessage, bytes]] = [
    (a.TableCreate("shop", "stock"), b"*3\r\n#\x60+shop\r\n+stock\r\n"),
    (a.TableCreate(None, "t", (("fsync", "never"),)), b"*5\r\n#\x60|+t\r\n+fsync\r\n+never\r\n"),
    (a.TableList(None), b"*2\r\n#\x61|"),
    (a.TableList("shop"), b"*2\r\n#\x61+shop\r\n"),
    (a.TableInfo(None, None), b"*3\r\n#\x62||"),
    (a.TableSettings("n", "t"), b"*3\r\n#\x63+n\r\n+t\r\n"),
    (
        a.TableSettings(None, None, (("fsync", "default"), ("cache_bytes", "0"))),
        b"*7\r\n#\x63||+fsync\r\n+default\r\n+cache_bytes\r\n+0\r\n",
    ),
    (a.TableDrop(None, "t"), b"*3\r\n#\x64|+t\r\n"),
    (a.TableReopen("n", "t"), b"*3\r\n#\x65+n\r\n+t\r\n"),
    (a.NamespaceCreate("shop"), b"*2\r\n#\x66+shop\r\n"),
    (a.NamespaceList(), b"*1\r\n#\x67"),
    (a.NamespaceDrop("shop"), b"*2\r\n#\x68+shop\r\n"),
    (a.Compact(None, None, "start"), b"*4\r\n#\x69||+start\r\n"),
    (a.Report(b"{}"), b"*2\r\n#\x6a$2\r\n{}\r\n"),
]


@pytest.mark.parametrize(("message", "data"), MESSAGES)
def test_bytes_and_messages_belong_together(message: a.AdministrationMessage, data: bytes) -> None:
    check(message, data)


def test_every_type_has_a_message_and_a_test() -> None:
    assert {data[data.index(b"#") + 1] for _, data in MESSAGES} == set(a.AdministrationType)
    assert set(a.FORMS) == set(a.AdministrationType) == set(ADMINISTRATION_TYPES)


@pytest.mark.parametrize(
    "data",
    [
        b"*2\r\n#\x60+shop\r\n",  # no table
        b"*3\r\n#\x60+shop\r\n|",  # a Null for the table that is to be made
        b"*4\r\n#\x60|+t\r\n+fsync\r\n",  # a setting without its value
        b"*5\r\n#\x60|+t\r\n+fsync\r\n|",
        b"*5\r\n#\x63||$5\r\nfsync\r\n+never\r\n",  # Bytes for a name
        b"*1\r\n#\x61",
        b"*3\r\n#\x61||",  # too many
        b"*3\r\n#\x64||",  # whoever drops a table names it
        b"*2\r\n#\x66|",
        b"*2\r\n#\x67|",
        b"*3\r\n#\x69||",
        b"*2\r\n#\x6a+{}\r\n",  # a String for the document
        b"*2\r\n#\x6a|",
    ],
)
def test_frames_that_make_no_message_end_the_conversation(data: bytes) -> None:
    assert isinstance(outcome(data), ProtocolError)


def test_more_settings_than_a_message_has_room_for_are_refused_before_they_are_held() -> None:
    limits = Limits.of(key_bytes=10, value_bytes=20)
    many = a.TableCreate(None, "t", (("a", "b"),) * limits.frames)
    assert "frames" in str(outcome(encode(many), limits))
    assert isinstance(outcome(encode(a.NamespaceCreate("n" * 20_000)), limits), ProtocolError)
    stranger = a.TableCreate(None, "t", (("a", "b" * 4_000),) * 3)
    assert isinstance(outcome(encode(stranger), BEFORE_AUTHENTICATION), ProtocolError)


def test_the_rest_of_the_range_stays_unknown_and_in_step() -> None:
    for number in range(max(a.AdministrationType) + 1, 128):
        assert outcome(b"*2\r\n#%c|" % number) == Unknown(number)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=9)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=4).map(tuple)


@given(
    st.one_of(
        st.builds(a.TableCreate, st.none() | TEXTS, TEXTS, PAIRS),
        st.builds(a.TableSettings, st.none() | TEXTS, st.none() | TEXTS, PAIRS),
        st.builds(a.Compact, st.none() | TEXTS, st.none() | TEXTS, TEXTS),
        st.builds(a.Report, st.binary()),
    ),
    st.lists(st.integers(1, 9), max_size=5),
)
def test_any_message_in_any_pieces_comes_back(message: a.AdministrationMessage, sizes: list[int]) -> None:
    check_in_pieces(message, sizes)
