"""What an Update can make of a value: counting, appending, taking, and when it expires.

Owns: these pure functions, which the doors name. Must not know the clock, the log, or who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from kvsd.errors import InvalidValue
from kvsd.table.request import Change
from kvsd.types import Value

Function: TypeAlias = Callable[[Value | None, int], Change]

MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]{0,18})")


def is_integer(value: Value) -> bool:
    """Whether these are the decimal digits of an integer of 64 bits with its sign."""
    return _INTEGER.fullmatch(value) is not None and MIN_INTEGER <= int(value) <= MAX_INTEGER


def increment(amount: int) -> Function:
    """Add `amount` to a decimal integer of 64 bits with its sign, 0 where there is none; the result is the sum.

    Raises InvalidValue where the value is no such integer, or the sum would be none. The expiry stays.
    """

    def change(value: Value | None, expires_us: int) -> Change:
        if value is not None and not is_integer(value):
            raise InvalidValue("the value is no integer of 64 bits in decimal digits, so nothing can be added to it")
        total = amount + (0 if value is None else int(value))
        if not MIN_INTEGER <= total <= MAX_INTEGER:
            raise InvalidValue("the sum is no integer of 64 bits; nothing was changed")
        return Change(total, b"%d" % total, expires_us)

    return change


def append(suffix: Value, *, max_value_bytes: int) -> Function:
    """Put `suffix` behind the value, or store it where there is none; the result is the new length. The expiry stays.

    Raises InvalidValue past `max_value_bytes`.
    """

    def change(value: Value | None, expires_us: int) -> Change:
        longer = suffix if value is None else value + suffix
        if len(longer) > max_value_bytes:
            raise InvalidValue(f"the value would have {len(longer)} bytes, the limit is {max_value_bytes}")
        return Change(len(longer), longer, expires_us)

    return change


def replace(new: Value) -> Function:
    """Store `new`, without an expiry; the result is the old value, or None."""
    return lambda value, _: Change(value, new)


def expire(at_us: int) -> Function:
    """Have the key expire then, microseconds since 1970, 0 never; the result is 1, or 0 where it does not exist."""

    def change(value: Value | None, expires_us: int) -> Change:
        return Change(int(value is not None), value, at_us, is_kept=value is None or expires_us == at_us)

    return change


def persist(value: Value | None, expires_us: int) -> Change:
    """Have the key not expire; the result is 1, or 0 where it has no expiry or does not exist."""
    return Change(int(expires_us != 0), value, is_kept=not expires_us)
