"""Where a client connects, as whom, and how long it waits.

Owns: `ConnectSettings`, its checks, and the order in which arguments, the URL and the environment are heard. Knows
nothing of config files (the command line reads those and builds a `ConnectSettings` itself), sockets or TLS.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kvsd.config import DEFAULT_HOST, DEFAULT_PORT, values
from kvsd.errors import AuthenticationError, ConfigError
from kvsd.url import Url
from kvsd.url import parse as parse_url

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_CONNECT_TIMEOUT_SECONDS = 10.0

INSECURE_WARNING = "the server's certificate is not verified (insecure): whoever is on the path can read all of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """Everything that opening a connection needs, resolved and checked; `repr` does not show the password.

    `timeout_seconds` bounds a whole call with its waits and retries; `connect_timeout_seconds` bounds the opening
    of a connection, up to the server's answer to the credentials. `ca` is a PEM file that replaces the system's
    authorities. `insecure` keeps TLS but verifies nothing; `disable_tls` sends everything in the clear.

    Raises ConfigError where a value cannot work.
    """

    username: str
    password: str = field(repr=False)
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    ca: Path | None = None
    insecure: bool = False
    disable_tls: bool = False
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    connect_timeout_seconds: float = DEFAULT_CONNECT_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("the host is empty; name the server, such as 127.0.0.1")
        if not 1 <= self.port <= 65_535:
            raise ConfigError(f"the port is {self.port}; it takes a number from 1 to 65535")
        for name in ("timeout_seconds", "connect_timeout_seconds"):
            seconds: float = getattr(self, name)
            if not (seconds > 0 and math.isfinite(seconds)):
                raise ConfigError(f"{name} is {seconds}; it takes a finite number above 0")
        for name in ("username", "password"):
            if not _fits_one_line(getattr(self, name)):
                raise ConfigError(f"the {name} cannot be sent: it takes UTF-8 text without line breaks")

    @property
    def address(self) -> str:
        """HOST:PORT as messages show it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def resolve(
    url: str | None = None,
    *,
    host: str | None = None,
    port: int | None = None,
    username: str | None = None,
    password: str | None = None,
    ca: str | os.PathLike[str] | None = None,
    insecure: bool | None = None,
    disable_tls: bool | None = None,
    timeout: float | None = None,
    connect_timeout: float | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ConnectSettings:
    """Settings from the arguments, then the URL, then KVSD_HOST to KVSD_TIMEOUT, then the defaults.

    Raises ConfigError for a value that cannot work, AuthenticationError where no user name or no password is given.
    """
    given = Url() if url is None else parse_url(url)
    if (given.namespace, given.table) not in {(None, None), ("default", "default")}:
        raise ConfigError("the URL names a table; this client reaches default/default only, leave the path out")

    def choose(argument: T | None, in_url: T | None, variable: str, parse: Callable[[str], T]) -> T | None:
        if argument is not None:
            return argument
        if in_url is not None:
            return in_url
        text = environ.get(variable)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{variable} {error}") from None

    username = choose(username, given.username, "KVSD_USERNAME", values.name)
    password = choose(password, given.password, "KVSD_PASSWORD", values.secret)
    if username is None or password is None:
        raise AuthenticationError(
            f"no {'user name' if username is None else 'password'} was given; pass username= and password=, "
            "put them into the URL, or set KVSD_USERNAME and KVSD_PASSWORD"
        )
    named_ca = choose(None if ca is None else Path(ca), given.ca, "KVSD_CA", values.path)
    return ConnectSettings(
        username=username,
        password=password,
        host=_or(choose(host, given.host, "KVSD_HOST", values.host), DEFAULT_HOST),
        port=_or(choose(port, given.port, "KVSD_PORT", values.port), DEFAULT_PORT),
        ca=named_ca,
        insecure=_or(choose(insecure, given.insecure, "KVSD_INSECURE", values.switch), False),
        disable_tls=_or(choose(disable_tls, given.disable_tls, "KVSD_DISABLE_TLS", values.switch), False),
        timeout_seconds=_or(choose(timeout, given.timeout, "KVSD_TIMEOUT", values.timeout), DEFAULT_TIMEOUT_SECONDS),
        connect_timeout_seconds=_or(connect_timeout, DEFAULT_CONNECT_TIMEOUT_SECONDS),
    )


def _or(chosen: T | None, default: T) -> T:
    return default if chosen is None else chosen


def _fits_one_line(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\r" not in text and "\n" not in text
