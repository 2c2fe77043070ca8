"""Text to value: one parser for each kind of setting.

Owns: what a number, a size, a switch, a host … may look like. A parser raises ValueError with a text that
follows the setting's name ("must be …") and never quotes the value, which may be a secret. Knows nothing of
settings, files or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from kvsd.types import NAME

Choice = TypeVar("Choice", bound=StrEnum)

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
DAY_SECONDS: Final = 86_400

_UNITS: Final = {"gib": GIB, "mib": MIB, "kib": KIB}
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*([kmg]ib)?")
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
_HOST: Final = re.compile(r"[^\s\[\]/@?#,\x00-\x1f\x7f]{1,255}")


def whole(minimum: int, maximum: int) -> Callable[[str], int]:
    """A parser of whole numbers from `minimum` to `maximum`, both included; _ may part the digits."""

    def parse(text: str) -> int:
        digits = text.strip().replace("_", "")
        if _WHOLE.fullmatch(digits) and minimum <= int(digits) <= maximum:
            return int(digits)
        raise ValueError(f"must be a whole number from {minimum} to {maximum}")

    return parse


def seconds(minimum: float, maximum: float) -> Callable[[str], float]:
    """A parser of durations in seconds from `minimum` to `maximum`, both included; fractions are allowed."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if minimum <= number <= maximum:  # never true of a NaN
            return number
        raise ValueError(f"must be a number of seconds from {minimum:g} to {maximum:g}")

    return parse


def share(text: str) -> float:
    """A number from 0.05 to 1."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if 0.05 <= number <= 1:  # never true of a NaN
        return number
    raise ValueError("must be a number from 0.05 to 1")


def size(minimum: int, maximum: int) -> Callable[[str], int]:
    """A parser of byte counts from `minimum` to `maximum`, both included: 65536, 64KiB, 128 MiB, 1 GiB."""

    def parse(text: str) -> int:
        if match := _SIZE.fullmatch(text.strip().replace("_", "").lower()):
            size_bytes = int(match[1]) * _UNITS.get(match[2], 1)
            if minimum <= size_bytes <= maximum:
                return size_bytes
        raise ValueError(f"must be from {minimum} to {maximum} bytes, such as {minimum} or 1 MiB")

    return parse


def switch(text: str) -> bool:
    """1, true, yes, on or 0, false, no, off, in any case."""
    lowered = text.strip().lower()
    if lowered not in _TRUE | _FALSE:
        raise ValueError("must be true or false (or 1/0, yes/no, on/off)")
    return lowered in _TRUE


def choice(enum: type[Choice], synonyms: Mapping[str, Choice] | None = None) -> Callable[[str], Choice]:
    """A parser of the members of `enum`, in any case; `synonyms` are further words for them."""
    words = {member.value: member for member in enum} | dict(synonyms or {})
    *others, last = (member.value for member in enum)

    def parse(text: str) -> Choice:
        member = words.get(text.strip().lower())
        if member is None:
            raise ValueError(f"must be {', '.join(others)} or {last}")
        return member

    return parse


def path(text: str) -> Path:
    """A path as written, with a leading ~ expanded; the caller knows what it is relative to."""
    if not text or "\0" in text:
        raise ValueError("must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("must be a path in a home folder that exists") from None


def host(text: str) -> str:
    """A host name or an IP address, without port; the brackets of an IPv6 address are taken off."""
    stripped = text.strip()
    if stripped.startswith("[") and stripped.endswith("]") and ":" in stripped:
        stripped = stripped[1:-1]
    # A single colon is HOST:PORT: the shortest IPv6 address is "::".
    if not _HOST.fullmatch(stripped) or stripped.count(":") == 1:
        raise ValueError("must be a host name or an IP address, without a port")
    return stripped


def name(text: str) -> str:
    """A user name: on one line, since the wire carries it as a line, and not empty."""
    if not text or "\r" in text or "\n" in text:
        raise ValueError("must be a name on one line")
    return text


def secret(text: str) -> str:
    """A password or a passphrase: on one line, and possibly empty."""
    if "\r" in text or "\n" in text:
        raise ValueError("must be on one line")
    return text


def password_hash(text: str) -> str:
    """An Argon2id hash as `kvsd passwd` prints it; only its kind is checked here."""
    if not text.startswith("$argon2id$"):
        raise ValueError("must be an Argon2id hash ($argon2id$…); `kvsd passwd` makes one")
    return text


port: Final = whole(1, 65_535)
"""A port that one can connect to."""

timeout: Final = seconds(0.001, DAY_SECONDS)
"""A wait in seconds: a millisecond to a day."""


def table_name(text: str) -> str:
    """A parser of the names of namespaces and tables."""
    if not NAME.fullmatch(text):
        raise ValueError("must be 1 to 64 of a-z, 0-9, _ and -, and begin with a letter or a digit")
    return text


def table_path(text: str) -> str:
    """A parser of TABLE and NAMESPACE/TABLE."""
    namespace, slash, table = text.rpartition("/")
    if not NAME.fullmatch(table) or (slash and not NAME.fullmatch(namespace)):
        raise ValueError(
            "must be TABLE or NAMESPACE/TABLE, each 1 to 64 of a-z, 0-9, _ and -, beginning with a letter or a digit"
        )
    return text
