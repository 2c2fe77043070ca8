"""Calls: each request that a client can make, and how its reply is read.

Owns: the message of each call, the meaning of its reply, and what may be done with it on the way (sent early,
repeated). Knows nothing of connections, of the order of replies, or of Fail, which any call may get.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, NamedTuple, TypeVar

from kvsd.client import numbers
from kvsd.client.numbers import ANY_VERSION, Unconditional
from kvsd.client.ranges import Range
from kvsd.errors import InvalidValue, ProtocolError
from kvsd.protocol import engine
from kvsd.protocol.frames import MAX_NUMBER_DIGITS, Time, fits_string
from kvsd.protocol.limits import BEFORE_AUTHENTICATION
from kvsd.protocol.messages import (
    PROTOCOL_VERSION,
    VERSIONS,
    Authenticate,
    Delete,
    Get,
    Hello,
    Message,
    Ping,
    Set,
    Success,
    Welcome,
)
from kvsd.types import (
    MAX_BATCH_BYTES,
    MAX_BATCH_STEPS,
    Duration,
    Entry,
    KeyLike,
    Value,
    ValueLike,
    to_bytes,
)

R = TypeVar("R")

MAX_VALUE_BYTES_ON_THE_WIRE = 10**MAX_NUMBER_DIGITS - 1
"""The highest size that can be written there; what a server accepts is far less."""


PAGE_KEYS = 500
"""Asked for at once by a scan; values make a page end earlier."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One request. `read` makes the result of the reply and of the seconds it took, or raises ProtocolError.

    `idempotent` calls may be repeated when nobody knows whether they were carried out. `early` ones may be sent
    along with the credentials, before these were answered: small, and of no interest how long they took. `engine`
    ones (also a get, set or delete whose key has no String frame) are sent only to a server that has said Welcome.
    `placed` ones are sent once the connection uses its table.
    """

    message: Message
    read: Callable[[Message, float], R]
    idempotent: bool = False
    early: bool = False
    engine: bool = False
    placed: bool = True


def authenticate(username: str, password: str) -> Call[None]:
    """Must be the first call of every connection."""
    return Call(Authenticate(username, password), read_nothing)


def hello() -> Call[None]:
    """Asks whether the server speaks more than the Rust program's messages; that one closes the connection."""
    return Call(Hello(PROTOCOL_VERSION, (VERSIONS,)), _read_welcome, idempotent=True, placed=False)


def use(namespace: str, table: str) -> Call[None]:
    """From here on this is the connection's table."""
    return Call(engine.Use(namespace, table), read_nothing, idempotent=True, engine=True, placed=False)


class Place(NamedTuple):
    """The table that a call is about; None: the connection's."""

    namespace: str | None = None
    table: str | None = None


HERE: Final = Place()


def get(key: KeyLike, place: Place = HERE) -> Call[bytes | None]:
    """Answered with the value, or None where the key is absent."""
    name = to_bytes(key)
    if place == HERE:
        plain = fits_string(name)
        return Call(Get(name), _read_value, idempotent=True, early=plain, engine=not plain)
    return Call(engine.Read(*place, name), _read_value, idempotent=True, engine=True)


def set_(
    key: KeyLike,
    value: ValueLike,
    *,
    ttl: Duration | None = None,
    if_version: int | Unconditional = ANY_VERSION,
    if_absent: bool = False,
    versioned: bool = False,
    place: Place = HERE,
) -> Call[int | None]:
    """Answered with the new version where a `ttl`, a condition or `versioned` is given, else with None.

    Raises InvalidValue where the wire has no room for the value's size.
    """
    name, stored = to_bytes(key), to_bytes(value)
    if len(stored) > MAX_VALUE_BYTES_ON_THE_WIRE:
        raise InvalidValue(f"the value has {len(stored)} bytes, more than a message can carry; store it in parts")
    ttl_ms = None if ttl is None else numbers.milliseconds(ttl)
    version = numbers.condition(if_version, if_absent=if_absent)
    versioned = versioned or ttl_ms is not None or version is not None
    if place == HERE and not versioned:
        plain = fits_string(name)
        return Call(Set(name, stored), read_nothing, early=plain and _is_small(stored), engine=not plain)
    read = _read_version if versioned else _read_done
    return Call(engine.Store(*place, name, stored, ttl_ms, version), read, engine=True)


def delete(key: KeyLike, *, if_version: int | Unconditional = ANY_VERSION, place: Place = HERE) -> Call[bytes | None]:
    """Answered with the value that was removed, or None where the key was absent."""
    name, version = to_bytes(key), numbers.condition(if_version)
    if place == HERE and version is None:
        plain = fits_string(name)
        return Call(Delete(name), _read_value, early=plain, engine=not plain)
    return Call(engine.Remove(*place, name, version), _read_value, engine=True)


def entry(key: KeyLike, place: Place = HERE) -> Call[Entry | None]:
    """Answered with the value and what is known of it, or None where the key is absent."""
    return Call(engine.Fetch(*place, to_bytes(key)), _read_entry, idempotent=True, engine=True)


def expire(key: KeyLike, ttl: Duration, place: Place = HERE) -> Call[bool]:
    """Answered with whether there is such a key."""
    argument = b"%d" % numbers.milliseconds(ttl)
    return Call(engine.Update(*place, to_bytes(key), "expire", argument), _read_truth, engine=True)


def persist(key: KeyLike, place: Place = HERE) -> Call[bool]:
    """Answered with whether the key had an expiry."""
    return Call(engine.Update(*place, to_bytes(key), "persist"), _read_truth, engine=True)


def increment(key: KeyLike, amount: int, place: Place = HERE) -> Call[int]:
    """Answered with the sum."""
    argument = b"%d" % numbers.amount(amount)
    return Call(engine.Update(*place, to_bytes(key), "incr", argument), _read_number, engine=True)


def decrement(key: KeyLike, amount: int, place: Place = HERE) -> Call[int]:
    """Answered with the difference."""
    return increment(key, -numbers.amount(amount), place)


def append(key: KeyLike, suffix: ValueLike, place: Place = HERE) -> Call[int]:
    """Answered with the new length in bytes."""
    return Call(engine.Update(*place, to_bytes(key), "append", to_bytes(suffix)), _read_number, engine=True)


def getset(key: KeyLike, value: ValueLike, place: Place = HERE) -> Call[bytes | None]:
    """Answered with the old value, or None where there was none."""
    return Call(engine.Update(*place, to_bytes(key), "getset", to_bytes(value)), _read_value, engine=True)


def exists(key: KeyLike, place: Place = HERE) -> Call[bool]:
    """Answered with whether the key has a value."""
    return Call(engine.Exists(*place, to_bytes(key)), _read_truth, idempotent=True, engine=True)


def count(keys: Range, place: Place = HERE) -> Call[int]:
    """Answered with how many keys there are in the range."""
    return Call(engine.Count(*place, *keys), _read_number, idempotent=True, engine=True)


def page(keys: Range, limit: int, *, values: bool, place: Place = HERE) -> Call[engine.Page]:
    """Answered with the next keys of the range."""

    def read(reply: Message, _seconds: float) -> engine.Page:
        match reply:
            case engine.Page(rest) if rest is None or rest > keys.start:
                return reply
            case engine.Page():
                raise ProtocolError("the server's page of a scan leads back, so the scan would never end")
            case _:
                raise misfit(reply)

    return Call(engine.Scan(*place, *keys, limit, values), read, idempotent=True, engine=True)


def batch(steps: Sequence[engine.Step], place: Place = HERE) -> Call[None]:
    """All of the steps or none. Raises InvalidValue where they are too many or too large."""
    size = sum(len(step.key) + (len(step.value) if isinstance(step, engine.Store) else 0) for step in steps)
    if len(steps) > MAX_BATCH_STEPS or size > MAX_BATCH_BYTES:
        raise InvalidValue(
            f"a batch has at most {MAX_BATCH_STEPS} steps and {MAX_BATCH_BYTES} bytes of keys and values; divide it"
        )
    return Call(engine.Batch(*place, tuple(steps)), read_nothing, engine=True)


def value_bytes(call: Call[R]) -> int:
    """How long the value is that `call` stores."""
    match call.message:
        case Set(_, value) | engine.Store(_, _, _, value):
            return len(value)
        case _:
            return 0


def most_demanding(batch: Sequence[Call[R]]) -> Call[R]:
    """One of `batch` for which all is prepared where it is for this one; they are for the same table."""
    return next((call for call in batch if call.engine), batch[0])


def clock() -> Call[datetime]:
    """Answered with the server's time: what a key has left must not depend on the clock of this machine."""
    return Call(Ping(None, None), _read_clock, idempotent=True, placed=False)


def left_seconds(expires_at: datetime, now: datetime) -> float:
    """What a key has left; 0.0 where its time has come."""
    return max(0.0, (expires_at - now).total_seconds())


def ping() -> Call[float]:
    """Answered with the seconds from sending it to its reply."""
    return Call(Ping(Time(time.time_ns()), None), _read_round_trip, idempotent=True, placed=False)


def _is_small(value: Value) -> bool:
    """Whether even a server that does not know its peer yet has room for it."""
    return len(value) <= BEFORE_AUTHENTICATION.value_bytes


def _read_value(reply: Message, _seconds: float) -> bytes | None:
    match reply:
        case Success(value):
            return value
        case _:
            raise misfit(reply)


def _read_welcome(reply: Message, _seconds: float) -> None:
    match reply:
        case Welcome():
            return
        case _:
            raise misfit(reply)


def _read_entry(reply: Message, _seconds: float) -> Entry | None:
    match reply:
        case engine.Entry(value, version, timestamp_us, expires_us):
            return Entry(value, version, _moment(timestamp_us), _moment(expires_us) if expires_us else None)
        case Success(None):
            return None
        case _:
            raise misfit(reply)


def _moment(us: int) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=us)
    except OverflowError:
        raise ProtocolError("the server's reply has a time outside the years 1 to 9999") from None


def _read_number(reply: Message, _seconds: float) -> int:
    match reply:
        case engine.Number(value):
            return value
        case _:
            raise misfit(reply)


def _read_version(reply: Message, seconds: float) -> int | None:
    """None: the server is too old to tell."""
    match reply:
        case Success(None):
            return None
        case _:
            return _read_number(reply, seconds)


def _read_done(reply: Message, seconds: float) -> None:
    _read_version(reply, seconds)


def _read_truth(reply: Message, seconds: float) -> bool:
    return _read_number(reply, seconds) != 0


def read_nothing(reply: Message, _seconds: float) -> None:
    """Where there is nothing to say but that it was done."""
    match reply:
        case Success(None):
            return
        case _:
            raise misfit(reply)


def _read_round_trip(reply: Message, seconds: float) -> float:
    match reply:
        case Ping():
            return seconds
        case _:
            raise misfit(reply)


def _read_clock(reply: Message, _seconds: float) -> datetime:
    match reply:
        case Ping(_, Time() as server_time):
            return _moment(server_time.nanoseconds // 1_000)
        case _:
            raise misfit(reply)


def misfit(reply: Message) -> ProtocolError:
    """The error for a reply of another kind than the call asks for."""
    return ProtocolError(
        f"the server's {type(reply).__name__} message is no reply to the request; is it a kvsd server?"
    )
