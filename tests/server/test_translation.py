"""From messages to operations, and from results to replies."""

from __future__ import annotations

import pytest

from kvsd.errors import Busy, Conflict, InvalidKey, InvalidValue, KvsdError, UnexpectedMessage
from kvsd.protocol import engine
from kvsd.protocol.administration import Report
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.limits import Limits
from kvsd.protocol.messages import Fail, Success
from kvsd.server.translation import MAX_TTL_MS, TableRequest, encode_result, operation_of, value_bytes_of
from kvsd.table import request
from kvsd.table.request import Found, Page, Result, Status

LIMITS = Limits.of(key_bytes=10, value_bytes=20)
NOW = 1_000_000


def of(message: TableRequest) -> request.Operation:
    return operation_of(message, LIMITS, NOW)


@pytest.mark.parametrize(
    ("message", "operation"),
    [
        (engine.Read("n", "t", b"k"), request.Get(b"k")),
        (engine.Fetch(None, None, b"k"), request.Fetch(b"k")),
        (engine.Store(None, None, b"k", b"v", 5, 7), request.Set(b"k", b"v", NOW + 5_000, 7)),
        (engine.Store(None, None, b"k", b"v"), request.Set(b"k", b"v")),
        (engine.Remove(None, None, b"k", 3), request.Delete(b"k", 3)),
        (engine.Exists(None, None, b"k"), request.Exists(b"k")),
        (engine.Count(None, None, b"a", None), request.Count(b"a", None)),
        (engine.Scan(None, None, b"a", b"z", 5, False), request.Scan(b"a", b"z", 5, False)),
        (
            engine.Batch(
                None,
                None,
                (engine.Store(None, None, b"k", b"v"), engine.Remove(None, None, b"l"), engine.Check(b"m", 0)),
            ),
            request.Batch((request.Set(b"k", b"v"), request.Delete(b"l"), request.Check(b"m", 0))),
        ),
    ],
)
def test_each_message_asks_for_its_operation(message: TableRequest, operation: request.Operation) -> None:
    assert of(message) == operation


@pytest.mark.parametrize(
    ("name", "argument", "old", "new"),
    [
        ("incr", b"2", b"40", b"42"),
        ("append", b"b", b"a", b"ab"),
        ("getset", b"b", b"a", b"b"),
        ("persist", None, b"a", b"a"),
    ],
)
def test_each_update_has_its_function(name: str, argument: bytes | None, old: bytes, new: bytes) -> None:
    operation = of(engine.Update(None, None, b"k", name, argument))
    assert isinstance(operation, request.Update)
    assert operation.change(old, 5).value == new


def test_a_time_to_live_counts_from_the_servers_clock() -> None:
    operation = of(engine.Update(None, None, b"k", "expire", b"10"))
    assert isinstance(operation, request.Update)
    assert operation.change(b"v", 0).expires_us == NOW + 10_000


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (engine.Store(None, None, b"k", b"v", 0), InvalidValue),
        (engine.Store(None, None, b"k", b"v", MAX_TTL_MS + 1), InvalidValue),
        (engine.Update(None, None, b"k", "expire", b"-1"), InvalidValue),
        (engine.Update(None, None, b"k", "incr", b"x"), InvalidValue),
        (engine.Update(None, None, b"k", "incr", b"%d" % 2**63), InvalidValue),
        (engine.Update(None, None, b"k", "incr", None), UnexpectedMessage),
        (engine.Update(None, None, b"k", "persist", b""), UnexpectedMessage),
        (engine.Update(None, None, b"k", "eval", b"1"), UnexpectedMessage),
        (engine.Batch(None, None, (engine.Check(b"k" * 11, 1),)), InvalidKey),
    ],
)
def test_what_there_is_not_is_refused(message: TableRequest, error: type[KvsdError]) -> None:
    with pytest.raises(error):
        of(message)


def test_values_are_counted_for_the_budget() -> None:
    store = engine.Store(None, None, b"k", b"123")
    assert value_bytes_of(store) == 3
    assert value_bytes_of(engine.Update(None, None, b"k", "append", b"12345")) == 5
    assert value_bytes_of(engine.Batch(None, None, (store, engine.Remove(None, None, b"ll")))) == 6 + 2 * 128
    assert value_bytes_of(engine.Read(None, None, b"k")) == 0


def test_a_scan_can_go_on_behind_the_longest_key_and_no_bound_is_longer() -> None:
    assert of(engine.Scan(None, None, b"k" * 11, None, 5, False)) == request.Scan(b"k" * 11, None, 5, False)
    for message in (engine.Scan(None, None, b"k" * 12, None, 5, False), engine.Count(None, None, b"", b"k" * 12)):
        with pytest.raises(InvalidKey, match="longer than any key"):
            of(message)


@pytest.mark.parametrize(
    ("result", "reply"),
    [
        (None, Success(None)),
        (b"v", Success(b"v")),
        (-5, engine.Number(-5)),
        (Found(b"v", 1, 2, 3), engine.Entry(b"v", 1, 2, 3)),
        (Page([(b"k", None)], b"l"), engine.Page(b"l", ((b"k", None),))),
        (Conflict("no", 7), engine.Mismatch(7, "no")),
        (Conflict("no"), Fail("CONFLICT", "no")),
        (Busy("later"), Fail("BUSY", "later")),
    ],
)
def test_each_result_has_its_reply(result: Result, reply: object) -> None:
    decoder = Decoder()
    decoder.feed(encode_result(result))
    assert decoder.next_message() == reply


def test_a_status_is_reported_as_json() -> None:
    decoder = Decoder()
    decoder.feed(encode_result(Status("writable", 1, 0, 2, 3, 4, 5, 6)))
    report = decoder.next_message()
    assert isinstance(report, Report)
    assert b'"keys": 1' in report.document
