"""The numbers that a caller passes, checked before anything is sent.

Owns: which of them make sense, and the words where they do not. Knows nothing of calls. A number of the wrong type is a
TypeError, since it is the program that is wrong; one out of range an InvalidValue. Nothing is rounded: what is nearly a
version is another version.
"""

from __future__ import annotations

from datetime import timedelta
from enum import Enum
from typing import Final

from kvsd.errors import InvalidValue
from kvsd.types import MAX_TTL_SECONDS, Duration

LARGEST: Final = 2**63 - 1


class Unconditional(Enum):
    """The `if_version` of a call without one.

    Not None: that is what a set returns which told no version, and a condition made of it must not go lost.
    """

    ANY_VERSION = "any version"

    def __repr__(self) -> str:
        return self.name


ANY_VERSION: Final = Unconditional.ANY_VERSION


def whole(name: str, number: int, *, least: int = 0) -> int:
    """`number`, at least `least`, at most what 64 bits hold."""
    _check_int(name, number)
    if not least <= number <= LARGEST:
        raise InvalidValue(f"{name} is out of range: it takes {least} to {LARGEST}")
    return number


def amount(number: int) -> int:
    """The number that is added to a counter."""
    _check_int("amount", number)
    if not -LARGEST - 1 <= number <= LARGEST:
        raise InvalidValue("amount is no integer of 64 bits")
    return number


def limit(number: int | None) -> int | None:
    """The number that there may be at most; None: all."""
    return None if number is None else whole("limit", number)


def condition(if_version: int | Unconditional, *, if_absent: bool = False) -> int | None:
    """The version that a key must have, 0 none; None: any. Raises ValueError where both are given."""
    # mypy knows that it is not None; a caller without it may not.
    if if_version is None:
        raise TypeError(
            "if_version is None, which is not a version: it takes 0 for a key that is absent, and is left out for no "
            "condition; a set tells the version that it made with versioned=True"
        )
    version = None if if_version is ANY_VERSION else whole("if_version", if_version)
    if not if_absent:
        return version
    if version is not None:
        raise ValueError("if_version and if_absent exclude each other; give one of them")
    return 0


def milliseconds(ttl: Duration) -> int:
    """`ttl`, seconds or a timedelta, for the wire."""
    if isinstance(ttl, bool) or not isinstance(ttl, int | float | timedelta):
        raise TypeError(f"ttl is a number of seconds or a timedelta, not {type(ttl).__name__}")
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not 0 < seconds <= MAX_TTL_SECONDS:
        raise InvalidValue(f"a key lives for more than 0 and at most {MAX_TTL_SECONDS} seconds; delete it instead")
    return max(1, round(seconds * 1_000))


def _check_int(name: str, number: object) -> None:
    # bool: True counts as 1 in Python, and never means it here.
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number (int), not {type(number).__name__}")
