"""Where a client connects, as whom, and how long it waits.

Owns: `ConnectSettings`, its checks, and the order in which arguments, the URL and the environment are heard. Knows
nothing of config files (the command line reads those and builds a `ConnectSettings` itself), sockets or TLS.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Final, TypeVar, cast

from kvsd.config import SETTINGS, ClientSettings, services
from kvsd.errors import AuthenticationError, ConfigError
from kvsd.types import NAME, Address
from kvsd.url import Url
from kvsd.url import parse as parse_url

T = TypeVar("T")

DEFAULT_CONNECT_TIMEOUT_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 10_000_000
"""Far beyond every use, and within what locks, sockets and timers take."""
_DEFAULTS: Final = ClientSettings()

INSECURE_WARNING = "the server's certificate is not verified (insecure): whoever is on the path can read all of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectSettings:
    """Everything that opening a connection needs, resolved and checked; `repr` does not show the password.

    `timeout_seconds` bounds a whole call with its waits and retries; `connect_timeout_seconds` bounds the opening
    of a connection, up to the server's answer to the credentials; for `wait_seconds` a call tries again while nobody
    listens. `ca` is a PEM file that replaces the system's
    authorities. `insecure` keeps TLS but verifies nothing; `disable_tls` sends everything in the clear.

    Raises ConfigError where a value cannot work.
    """

    username: str
    password: str = field(repr=False)
    host: str = _DEFAULTS.host
    port: int = _DEFAULTS.port
    ca: Path | None = _DEFAULTS.ca
    insecure: bool = _DEFAULTS.insecure
    disable_tls: bool = _DEFAULTS.disable_tls
    timeout_seconds: float = _DEFAULTS.timeout
    connect_timeout_seconds: float = DEFAULT_CONNECT_TIMEOUT_SECONDS
    wait_seconds: float = 0.0
    namespace: str = _DEFAULTS.namespace
    table: str = _DEFAULTS.table

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigError("the host is empty; name the server, such as 127.0.0.1")
        if not (_is_number(self.port, int) and 1 <= self.port <= 65_535):
            raise ConfigError(f"the port is {shown(self.port)}; it takes a whole number from 1 to 65535")
        for name in ("timeout_seconds", "connect_timeout_seconds", "wait_seconds"):
            seconds: float = getattr(self, name)
            least = 0 if name == "wait_seconds" else sys.float_info.min
            if not (_is_number(seconds, int | float) and least <= seconds <= LONGEST_SECONDS):
                raise ConfigError(
                    f"{name} is {shown(seconds)}; it takes a number of seconds above 0, or 0 to wait for nothing, "
                    f"up to {LONGEST_SECONDS}"
                )
        for name in ("namespace", "table"):
            if not NAME.fullmatch(getattr(self, name)):
                raise ConfigError(
                    f"the {name} {getattr(self, name)!r} is no name: a-z, 0-9, _ and -, at most 64 of them"
                )
        for name in ("username", "password"):
            if not _fits_one_line(getattr(self, name)):
                raise ConfigError(f"the {name} cannot be sent: it takes UTF-8 text without line breaks")

    @property
    def place(self) -> tuple[str, str] | None:
        """Namespace and table that connections are to use; None: those that they begin with."""
        return None if (self.namespace, self.table) == ("default", "default") else (self.namespace, self.table)

    @property
    def address(self) -> str:
        """HOST:PORT as messages show it."""
        return str(Address(self.host, self.port))


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
    wait: float | None = None,
    namespace: str | None = None,
    table: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ConnectSettings:
    """Settings from the arguments, then the URL, then the environment, then the defaults.

    The variables are those of the config section `client`: KVSD_CLIENT_HOST or KVSD_HOST, and so on. An empty one
    counts as not set, and one that an argument or the URL overrides is not looked at. One that Kubernetes or Docker set
    for a service is passed over with a RuntimeWarning.

    Raises ConfigError for a value that cannot work, AuthenticationError where no user name or no password is given.
    """
    given = Url() if url is None else parse_url(url)
    of_services: set[str] = set()

    def choose(name: str, argument: T | None, in_url: T | None) -> T:
        if argument is not None:
            return argument
        if in_url is not None:
            return in_url
        setting = SETTINGS[f"client.{name}"]
        of_services.update(name for name in setting.environment if services.is_address(name, environ.get(name, "")))
        # Casts: a setting's parser and its default are of the type that its argument has.
        for variable, text in setting.variables(environ):
            try:
                return cast("T", setting.parse(text))
            except ValueError as error:
                raise ConfigError(f"{variable} {error}") from None
        return cast("T", setting.default)

    username = choose("username", username, given.username)
    password = choose("password", password, given.password)
    if username is None or password is None:
        raise AuthenticationError(
            f"no {'user name' if username is None else 'password'} was given; pass username= and password=, "
            "put them into the URL, or set KVSD_USERNAME and KVSD_PASSWORD"
        )
    in_use = choose("namespace", namespace, given.namespace)
    within, name = place_of(in_use, choose("table", table, given.table))
    if namespace is not None and within != namespace:
        raise ConfigError(f"namespace {namespace!r} is not that of the table {within}/{name}; give one of them")
    settings = ConnectSettings(
        username=username,
        password=password,
        host=choose("host", host, given.host),
        port=choose("port", port, given.port),
        ca=choose("ca", None if ca is None else Path(ca), given.ca),
        insecure=choose("insecure", insecure, given.insecure),
        disable_tls=choose("disable_tls", disable_tls, given.disable_tls),
        timeout_seconds=choose("timeout", timeout, given.timeout),
        connect_timeout_seconds=DEFAULT_CONNECT_TIMEOUT_SECONDS if connect_timeout is None else connect_timeout,
        wait_seconds=next((seconds for seconds in (wait, given.wait) if seconds is not None), 0.0),
        namespace=within,
        table=name,
    )
    if of_services:
        found = services.find({name: environ[name] for name in of_services})
        warnings.warn(services.warning(found), RuntimeWarning, stacklevel=3)
    return settings


def place_of(namespace: str, table: str) -> tuple[str, str]:
    """The namespace and the name of `table`, which may be NAMESPACE/TABLE and is then in that one."""
    within, slash, name = table.rpartition("/")
    return (within, name) if slash else (namespace, table)


def shown(value: object) -> str:
    """`value` as an error tells it."""
    try:
        return repr(value)
    except ValueError:  # an int of more digits than Python writes
        return f"an {type(value).__name__} of very many digits"


def _is_number(value: object, kind: type | UnionType) -> bool:
    """Tell whether it is of a `kind` that bool is not: True counts as 1 in Python, and never means it here."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _fits_one_line(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\r" not in text and "\n" not in text
