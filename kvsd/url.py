"""Addresses: kvsd://[user[:password]@]host[:port][/namespace/table][?ca=…&insecure=1&disable_tls=1&timeout=5&wait=30].

Owns: the grammar of an address. Must not know what a client does with it. No message quotes any part of one: a
password that is not escaped can end up in each of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from kvsd.config import DEFAULT_PORT, values
from kvsd.errors import ConfigError
from kvsd.types import NAME

T = TypeVar("T")

_DISABLE_TLS: Final = {"kvsd": False, "kvsd+plain": True}

_ADDRESS: Final = re.compile(
    r"(?P<scheme>[^:/]*)://"
    r"(?:(?P<username>[^:/?#@]*)(?::(?P<password>[^/?#@]*))?@)?"
    r"(?P<host>\[[^/?#@\[\]]*\]|[^:/?#@\[\]]*)(?::(?P<port>[^:/?#@\[\]]*))?"
    r"(?:/(?P<path>[^?#@]*))?"
    r"(?:\?(?P<query>[^#@]*))?"
)
_QUERY_KEYS: Final = ("ca", "insecure", "disable_tls", "timeout", "wait")
_TABLE_PATH: Final = re.compile(rf"({NAME.pattern})/({NAME.pattern})/?")
_LONE_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """The parts of an address, None where it does not say; `timeout` and `wait` are in seconds.

    A parsed address is complete as to the place: the port is 7379 where it gives none, and its scheme decides
    about TLS, so that no other setting sends its password in the clear.
    """

    host: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    namespace: str | None = None
    table: str | None = None
    ca: Path | None = None
    insecure: bool | None = None
    disable_tls: bool | None = None
    timeout: float | None = None
    wait: float | None = None


def parse(text: str) -> Url:
    """The parts of the address `text`, with percent escapes decoded; a relative `ca` stays relative.

    Raises ConfigError for anything that the grammar does not have: another scheme, an unknown or repeated query
    key, a value out of range.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError(
            "the address has not the form kvsd://[user[:password]@]host[:port][/namespace/table]; inside a part, "
            "write : / ? # @ % as %3A %2F %3F %23 %40 %25, and an IPv6 host in [brackets]"
        )
    disable_tls = _DISABLE_TLS.get(match["scheme"].lower())
    if disable_tls is None:
        raise ConfigError("the address must begin with kvsd:// (TLS) or kvsd+plain:// (no TLS)")
    query = _query(match["query"])
    switched = _part("disable_tls", query.get("disable_tls"), values.switch)
    if disable_tls and switched is False:
        raise ConfigError("the address contradicts itself: kvsd+plain:// means no TLS, disable_tls=0 means TLS")
    namespace, table = _table(match["path"])
    return Url(
        host=_part("host", match["host"], values.host),
        port=_part("port", match["port"], values.port) or DEFAULT_PORT,
        username=_part("user name", match["username"], values.name),
        password=_part("password", match["password"], values.secret),
        namespace=namespace,
        table=table,
        ca=_part("ca", query.get("ca"), values.path),
        insecure=_part("insecure", query.get("insecure"), values.switch),
        disable_tls=disable_tls or bool(switched),
        timeout=_part("timeout", query.get("timeout"), values.timeout),
        wait=_part("wait", query.get("wait"), values.seconds(0, values.DAY_SECONDS)),
    )


def _part(name: str, text: str | None, parser: Callable[[str], T]) -> T | None:
    if text is None:
        return None
    if _LONE_PERCENT.search(text):
        raise ConfigError(f"the {name} in the address holds a % without two hex digits; write % itself as %25")
    try:
        octets = text.encode("utf-8", "surrogateescape")
        decoded = _ESCAPE.sub(lambda escape: bytes((int(escape[1], 16),)), octets).decode("utf-8")
    except UnicodeError:
        raise ConfigError(f"the {name} in the address is not UTF-8") from None
    try:
        return parser(decoded)
    except ValueError as error:
        raise ConfigError(f"the {name} in the address {error}") from None


def _table(path: str | None) -> tuple[str, str] | tuple[None, None]:
    if not path:
        return None, None
    if match := _TABLE_PATH.fullmatch(path):
        return match[1], match[2]
    raise ConfigError(
        "the path in the address must be /namespace/table, each of a-z, 0-9, _ and -, at most 64 characters"
    )


def _query(text: str | None) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in text.split("&") if text else ():
        key, equals, value = pair.partition("=")
        if key not in _QUERY_KEYS or not equals or key in given:
            raise ConfigError(
                f"after its ? the address must have key=value pairs joined by &, each of the keys "
                f"{', '.join(_QUERY_KEYS)} at most once"
            )
        given[key] = value
    return given
