"""What an Update can make of a value: counting, appending, taking, and when it expires.

Owns: these pure functions, which the doors name. Must not know the clock, the log, or who asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from kvsd.errors import InvalidValue
from kvsd.table.request import Change, Found
from kvsd.types import Value

Function: TypeAlias = Callable[[Found | None], Change]

MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1
_INTEGER: Final = re.compile(rb"-?(?:0|[1-9][0-9]{0,18})")


def increment(amount: int) -> Function:
    """Add `amount` to a decimal integer of 64 bits with its sign, 0 where there is none; the result is the sum.

    Raises InvalidValue where the value is no such integer, or the sum would be none. The expiry stays.
    """

    def change(found: Found | None) -> Change:
        old = 0
        if found is not None:
            if not _INTEGER.fullmatch(found.value):
                raise InvalidValue("the value is no integer of 64 bits in decimal digits, so it cannot be counted on")
            old = int(found.value)
        total = old + amount
        if not (MIN_INTEGER <= old <= MAX_INTEGER and MIN_INTEGER <= total <= MAX_INTEGER):
            raise InvalidValue("the sum is no integer of 64 bits; nothing was changed")
        return Change(total, b"%d" % total, _expiry(found))

    return change


def append(suffix: Value, *, max_value_bytes: int) -> Function:
    """Put `suffix` behind the value, or store it where there is none; the result is the new length. The expiry stays.

    Raises InvalidValue past `max_value_bytes`.
    """

    def change(found: Found | None) -> Change:
        value = suffix if found is None else found.value + suffix
        if len(value) > max_value_bytes:
            raise InvalidValue(f"the value would have {len(value)} bytes, the limit is {max_value_bytes}")
        return Change(len(value), value, _expiry(found))

    return change


def replace(value: Value) -> Function:
    """Store `value`, without an expiry; the result is the old value, or None."""

    def change(found: Found | None) -> Change:
        return Change(_value(found), value)

    return change


def expire(expires_us: int) -> Function:
    """Have the key expire then, microseconds since 1970, 0 never; the result is 1, or 0 where it does not exist."""

    def change(found: Found | None) -> Change:
        if found is None:
            return Change(0, None, is_kept=True)
        return Change(1, found.value, expires_us, is_kept=found.expires_us == expires_us)

    return change


def _value(found: Found | None) -> Value | None:
    return None if found is None else found.value


def _expiry(found: Found | None) -> int:
    return 0 if found is None else found.expires_us
