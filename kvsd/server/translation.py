"""Between the native protocol's engine messages and a table's operations.

Owns: what each message asks of a table, and how each result is said. Must not know connections, tables beyond their
names, or the order of replies.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final, TypeAlias, assert_never

from kvsd.errors import Conflict, InvalidKey, InvalidValue, KvsdError, UnexpectedMessage
from kvsd.protocol import engine
from kvsd.protocol.administration import Report
from kvsd.protocol.limits import Limits
from kvsd.protocol.messages import Fail, encode, encode_success
from kvsd.table import request, updates
from kvsd.table.request import CompactionProgress, Found, Operation, Page, Result, Status
from kvsd.types import MAX_TTL_SECONDS

_STEP_BYTES: Final = 128
"""What a step of a batch keeps in memory beside its key and value."""

MAX_TTL_MS: Final = MAX_TTL_SECONDS * 1_000

TableRequest: TypeAlias = (
    engine.Read
    | engine.Fetch
    | engine.Store
    | engine.Remove
    | engine.Update
    | engine.Batch
    | engine.Exists
    | engine.Count
    | engine.Scan
)


def operation_of(message: TableRequest, limits: Limits, now_us: int, *, versions: bool = False) -> Operation:
    """What `message` asks of its table, with times counted from `now_us`; `versions` is the feature of that name.

    Raises InvalidKey, InvalidValue or UnexpectedMessage where it asks for what there is not.
    """
    match message:
        case engine.Read(_, _, key):
            return request.Get(key)
        case engine.Fetch(_, _, key):
            return request.Fetch(key)
        case engine.Store():
            return _set(message, now_us, versions=versions)
        case engine.Remove(_, _, key, if_version):
            return request.Delete(key, if_version)
        case engine.Update(_, _, key, function, argument):
            return request.Update(key, _function(function, argument, limits, now_us))
        case engine.Batch(_, _, steps):
            _check_keys((step.key for step in steps), limits)
            return request.Batch(tuple(_step(step, now_us) for step in steps))
        case engine.Exists(_, _, key):
            return request.Exists(key)
        case engine.Count(_, _, start, end):
            _check_bounds(start, end, limits)
            return request.Count(start, end)
        case engine.Scan(_, _, start, end, limit, values):
            _check_bounds(start, end, limits)
            return request.Scan(start, end, limit, values)
        case _:
            assert_never(message)


def value_bytes_of(message: TableRequest) -> int:
    """The bytes that the operation keeps in memory until it is decided, beside what each operation does."""
    match message:
        case engine.Store():
            return len(message.value)
        case engine.Update():
            return len(message.argument or b"")
        case engine.Batch(_, _, steps):
            return sum(
                _STEP_BYTES + len(step.key) + (len(step.value) if isinstance(step, engine.Store) else 0)
                for step in steps
            )
        case _:
            return 0


def encode_result(result: Result) -> bytes:
    """The reply that says `result`."""
    match result:
        case None | bytes():
            return encode_success(result)
        case int():
            return encode(engine.Number(result))
        case Found():
            return encode(engine.Entry(result.value, result.version, result.timestamp_us, result.expires_us))
        case Page():
            return encode(engine.Page(result.next, tuple(result.items)))
        case Status() | CompactionProgress():
            return encode(Report(json.dumps(asdict(result)).encode()))
        case Conflict() if result.version is not None:
            return encode(engine.Mismatch(result.version, str(result)))
        case KvsdError():
            return encode(Fail(result.code, str(result)))
        case _:
            assert_never(result)


def _set(message: engine.Store, now_us: int, *, versions: bool = False) -> request.Set:
    expires_us = 0 if message.ttl_ms is None else _expiry(message.ttl_ms, now_us)
    return request.Set(message.key, message.value, expires_us, message.if_version, versions)


def _step(step: engine.Step, now_us: int) -> request.Set | request.Delete | request.Check:
    match step:
        case engine.Store():
            return _set(step, now_us)
        case engine.Remove():
            return request.Delete(step.key, step.if_version)
        case engine.Check():
            return request.Check(step.key, step.if_version)
        case _:
            assert_never(step)


def _function(name: str, argument: bytes | None, limits: Limits, now_us: int) -> updates.Function:
    match name, argument:
        case "incr", bytes():
            return updates.increment(_number(argument))
        case "append", bytes():
            return updates.append(argument, max_value_bytes=limits.value_bytes)
        case "getset", bytes():
            return updates.replace(argument)
        case "expire", bytes():
            return updates.expire(_expiry(_number(argument), now_us))
        case "persist", None:
            return updates.persist
        case _:
            raise UnexpectedMessage("there is no such update, or its argument is missing or one too many")


def _number(argument: bytes) -> int:
    if not updates.is_integer(argument):
        raise InvalidValue("the argument is no integer of 64 bits in decimal digits")
    return int(argument)


def _expiry(ttl_ms: int, now_us: int) -> int:
    if not 0 < ttl_ms <= MAX_TTL_MS:
        raise InvalidValue(f"a key lives for 1 to {MAX_TTL_MS} ms; to be rid of it now, delete it")
    return now_us + ttl_ms * 1_000


def _check_bounds(start: bytes, end: bytes | None, limits: Limits) -> None:
    """Where a scan goes on is one byte longer than the key before it."""
    if max(len(start), len(end or b"")) > limits.key_bytes + 1:
        raise InvalidKey(f"a bound of a scan is longer than any key, whose limit is {limits.key_bytes} bytes")


def _check_keys(keys: Iterable[bytes], limits: Limits) -> None:
    for key in keys:
        if len(key) > limits.key_bytes:
            raise InvalidKey(f"the key has {len(key)} bytes, the limit is {limits.key_bytes}; use a shorter one")
