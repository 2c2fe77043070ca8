"""Matching replies to calls, without any I/O."""

from __future__ import annotations

import pytest

from kvsd.client import calls, conversation
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.calls import Call
from kvsd.client.conversation import Conversation, Outcome
from kvsd.client.settings import ConnectSettings
from kvsd.errors import AuthenticationError, Busy, ConnectionLost, InvalidValue, KvsdError, ProtocolError
from kvsd.protocol.limits import Limits
from kvsd.protocol.messages import Fail, Success, encode

from .fake import LOGIN, VECTORS, WELCOME

SETTINGS = ConnectSettings(username="kvsduser", password="secret")


def opened() -> Conversation:
    talk = Conversation(SETTINGS, Acquaintance(SETTINGS))
    assert talk.send(calls.authenticate("kvsduser", "secret"), Outcome()) == LOGIN
    talk.receive(WELCOME)
    return talk


def asked(talk: Conversation, call: Call[object]) -> Outcome[object]:
    outcome: Outcome[object] = Outcome()
    talk.send(call, outcome)
    return outcome


def test_replies_go_to_calls_in_the_order_of_sending_however_they_are_cut() -> None:
    data = VECTORS["pipelined set,get,delete"]
    for size in range(1, len(data)):
        talk = opened()
        outcomes = [asked(talk, call) for call in (calls.set_("a", "1"), calls.get("a"), calls.delete("a"))]
        for start in range(0, len(data), size):
            talk.receive(data[start : start + size])
        assert [outcome.result() for outcome in outcomes] == [None, b"1", b"1"]
        assert len(talk) == 0


def test_the_reply_of_a_call_that_nobody_waits_for_is_dropped_in_its_turn() -> None:
    talk = opened()
    left, stayed = asked(talk, calls.get("a")), asked(talk, calls.get("b"))
    left.set_result(b"whatever")
    assert len(talk) == 2
    talk.receive(encode(Success(b"a")) + encode(Success(b"b")))
    assert (left.result(), stayed.result()) == (b"whatever", b"b")


def test_any_refusal_of_the_login_is_the_end_even_one_that_a_request_would_survive() -> None:
    talk = Conversation(SETTINGS, Acquaintance(SETTINGS))
    welcome = asked(talk, calls.authenticate("kvsduser", "secret"))
    with pytest.raises(Busy):
        talk.receive(encode(Fail("BUSY", "")))
    with pytest.raises(Busy):
        welcome.result()


def test_a_reason_that_the_server_gives_for_refusing_a_login_is_passed_on() -> None:
    talk = Conversation(SETTINGS, Acquaintance(SETTINGS))
    asked(talk, calls.authenticate("kvsduser", "secret"))
    with pytest.raises(AuthenticationError, match="too late"):
        talk.receive(encode(Fail("UNAUTHENTICATED", "too late")))


@pytest.mark.parametrize("reply", [b"?", encode(Success(b"not null")), VECTORS["ping reply"]])
def test_a_reply_that_makes_no_sense_is_an_error_of_the_call_whose_turn_it_is(reply: bytes) -> None:
    talk = opened()
    first, second = asked(talk, calls.set_("a", "1")), asked(talk, calls.set_("b", "2"))
    with pytest.raises(ProtocolError) as caught:
        talk.receive(reply)
    talk.end(caught.value)
    with pytest.raises(ProtocolError):
        first.result()
    with pytest.raises(ConnectionLost, match="was given up") as lost:
        second.result()
    assert lost.value.may_be_applied


def test_only_calls_that_left_may_have_been_applied() -> None:
    talk = opened()
    outcomes = [asked(talk, calls.set_("a", "1")) for _ in range(4)]
    talk.end(None, unsent=2)
    fates = []
    for outcome in outcomes:
        with pytest.raises(ConnectionLost) as lost:
            outcome.result()
        fates.append(lost.value.may_be_applied)
    assert fates == [True, True, False, False]


def test_nothing_was_applied_where_the_login_was_not_answered() -> None:
    talk = Conversation(SETTINGS, Acquaintance(SETTINGS))
    welcome = asked(talk, calls.authenticate("kvsduser", "secret"))
    talk.end(ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(ConnectionLost, match="Connection reset by peer") as lost:
        welcome.result()
    assert not lost.value.may_be_applied


def test_a_call_that_cannot_be_expressed_takes_no_place_in_the_queue() -> None:
    talk = opened()
    with pytest.raises(KvsdError):
        talk.send(calls.authenticate("line\nbreak", ""), Outcome())
    assert len(talk) == 0


def test_a_reply_over_the_limit_is_refused_and_the_next_one_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "REPLY_LIMITS", Limits.of(key_bytes=1024, value_bytes=100))
    talk = opened()
    first, second = asked(talk, calls.get("a")), asked(talk, calls.get("b"))
    talk.receive(encode(Success(bytes(101))) + encode(Success(b"b")))
    with pytest.raises(InvalidValue):
        first.result()
    assert second.result() == b"b"


def test_a_value_whose_size_has_no_room_on_the_wire_is_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "MAX_VALUE_BYTES_ON_THE_WIRE", 10)
    calls.set_("a", bytes(10))
    with pytest.raises(InvalidValue, match="11 bytes"):
        calls.set_("a", bytes(11))
