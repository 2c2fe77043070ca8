"""Calls: each request that a client can make, and how its reply is read.

Owns: the message of each call, the meaning of its reply, and what may be done with it on the way (sent early,
repeated). Knows nothing of connections, of the order of replies, or of Fail, which any call may get.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvsd.errors import InvalidValue, ProtocolError
from kvsd.protocol.decoder import BEFORE_AUTHENTICATION
from kvsd.protocol.frames import MAX_NUMBER_DIGITS, Time
from kvsd.protocol.messages import Authenticate, Delete, Get, Message, Ping, Set, Success
from kvsd.types import KeyLike, Value, ValueLike, to_bytes

R = TypeVar("R")

MAX_VALUE_BYTES_ON_THE_WIRE = 10**MAX_NUMBER_DIGITS - 1
"""The highest size that can be written there; what a server accepts is far less."""


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One request. `read` makes the result of the reply and of the seconds it took, or raises ProtocolError.

    `idempotent` calls may be repeated when nobody knows whether they were carried out. `early` ones may be sent
    along with the credentials, before these were answered: small, and of no interest how long they took.
    """

    message: Message
    read: Callable[[Message, float], R]
    idempotent: bool = False
    early: bool = False


def authenticate(username: str, password: str) -> Call[None]:
    """Must be the first call of every connection."""
    return Call(Authenticate(username, password), _read_nothing)


def get(key: KeyLike) -> Call[bytes | None]:
    """Answered with the value, or None where the key is absent."""
    return Call(Get(to_bytes(key)), _read_value, idempotent=True, early=True)


def set_(key: KeyLike, value: ValueLike) -> Call[None]:
    """Raises InvalidValue where the wire has no room for the value's size."""
    stored = to_bytes(value)
    if len(stored) > MAX_VALUE_BYTES_ON_THE_WIRE:
        raise InvalidValue(f"the value has {len(stored)} bytes, more than a message can carry; store it in parts")
    return Call(Set(to_bytes(key), stored), _read_nothing, early=_is_small(stored))


def delete(key: KeyLike) -> Call[bytes | None]:
    """Answered with the value that was removed, or None where the key was absent."""
    return Call(Delete(to_bytes(key)), _read_value, early=True)


def ping() -> Call[float]:
    """Answered with the seconds from sending it to its reply."""
    return Call(Ping(Time(time.time_ns()), None), _read_round_trip, idempotent=True)


def _is_small(value: Value) -> bool:
    """Whether even a server that does not know its peer yet has room for it."""
    return len(value) <= BEFORE_AUTHENTICATION.value_bytes


def _read_value(reply: Message, _seconds: float) -> bytes | None:
    match reply:
        case Success(value):
            return value
        case _:
            raise _misfit(reply)


def _read_nothing(reply: Message, _seconds: float) -> None:
    match reply:
        case Success(None):
            return
        case _:
            raise _misfit(reply)


def _read_round_trip(reply: Message, seconds: float) -> float:
    match reply:
        case Ping():
            return seconds
        case _:
            raise _misfit(reply)


def _misfit(reply: Message) -> ProtocolError:
    return ProtocolError(
        f"the server's {type(reply).__name__} message is no reply to the request; is it a kvsd server?"
    )
