"""What can be set: each setting's type, default, meaning, limits and names.

Owns: the settings of the server, of the storage and of the clients, and SETTINGS, the list of them. Must not
know where values come from, and must not import anything that costs time: every client command loads this
file.
"""

# ruff: noqa: RUF009 - _setting wraps dataclasses.field
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from kvsd.config import password_file, services, values
from kvsd.config.values import DAY_SECONDS, GIB, KIB, MIB
from kvsd.errors import ConfigError
from kvsd.types import LARGEST_VALUE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, Fsync

T = TypeVar("T")

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 7379


class LogLevel(StrEnum):
    """The least severity that the server logs."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    """How the server logs; `auto` is console on a terminal and JSON elsewhere."""

    AUTO = "auto"
    CONSOLE = "console"
    JSON = "json"


def _setting(
    default: T,
    parse: Callable[[str], T],
    doc: str,
    *,
    environment: tuple[str, ...] = (),
    secret: bool = False,
    in_file: bool = True,
) -> T:
    """A dataclass field that knows how it is read; `environment` are names beside the canonical one."""
    return field(
        default=default,
        repr=not secret,
        metadata={
            "parse": parse,
            "doc": doc,
            "environment": environment,
            "secret": secret,
            "in_file": in_file,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The YAML section `server`: listening, limits, TLS, logs."""

    listen_host: str = _setting(
        DEFAULT_HOST,
        values.host,
        "Host name or address that the server listens on.",
        environment=("KVSD_SERVER_HOST",),
    )
    listen_port: int = _setting(
        DEFAULT_PORT,
        values.whole(0, 65_535),
        "TCP port that the server listens on; 0 picks a free one.",
        environment=("KVSD_SERVER_PORT",),
    )
    backlog: int = _setting(
        1_024, values.whole(1, 65_535), "Connections that the operating system keeps waiting for an accept."
    )
    max_tcp_connections: int = _setting(
        10_240,
        values.whole(1, 1_000_000),
        "Connections at a time; further ones wait in the backlog.",
        environment=("KVSD_SERVER_MAX_CONNECTIONS",),
    )
    max_unauthenticated_per_address: int = _setting(
        1_024,
        values.whole(1, 1_000_000),
        "Connections of one address that have not logged in; beyond that its oldest one is closed.",
    )
    authenticate_timeout_milliseconds: int = _setting(
        3_000,
        values.whole(1, 600_000),
        "Time after the TLS handshake within which a client has to authenticate.",
    )
    idle_timeout_seconds: float = _setting(
        120.0,
        values.seconds(0, 30 * DAY_SECONDS),
        "A connection that sends nothing for this long is closed; 0 turns that off.",
    )
    write_timeout_seconds: float = _setting(
        30.0,
        values.timeout,
        "A client that does not read its replies for this long is disconnected.",
    )
    drain_timeout_seconds: float = _setting(
        10.0, values.seconds(0, DAY_SECONDS), "Time that a stopping server gives to what is in flight."
    )
    memory_bytes: int = _setting(
        256 * MIB,
        values.size(64 * KIB, 1_024 * GIB),
        "Budget of all connections for unfinished input, waiting requests and unsent replies.",
    )
    disable_tls: bool = _setting(False, values.switch, "Listen without TLS.", environment=("KVSD_DISABLE_TLS",))
    tls_certificate: Path | None = _setting(
        None, values.path, "PEM file with the server's certificate chain.", environment=("KVSD_TLS_CERT",)
    )
    tls_key: Path | None = _setting(
        None, values.path, "PEM file with the certificate's private key.", environment=("KVSD_TLS_KEY",)
    )
    tls_key_passphrase: str | None = _setting(
        None,
        values.secret,
        "Passphrase of an encrypted private key; from the environment only.",
        secret=True,
        in_file=False,
    )
    tls_auto: bool = _setting(
        False, values.switch, "Make a local CA and a certificate where neither configured file exists."
    )
    allow_insecure: bool = _setting(
        False,
        values.switch,
        "Listen beyond loopback even without TLS, with plain-text passwords or with the sample password.",
    )
    log_level: LogLevel = _setting(
        LogLevel.INFO,
        values.choice(
            LogLevel,
            # The words of the Rust program.
            {"trace": LogLevel.DEBUG, "warn": LogLevel.WARNING},
        ),
        "Least severity that is logged: debug, info, warning, error or critical.",
        environment=("KVSD_LOG",),
    )
    log_format: LogFormat = _setting(
        LogFormat.AUTO,
        values.choice(LogFormat),
        "console, json, or auto: console on a terminal and JSON elsewhere.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who may connect, with exactly one of an Argon2id hash and, for local use only, a plain password."""

    username: str
    password_hash: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    from_environment: bool = False
    """Stands in no file."""

    def __post_init__(self) -> None:
        if (self.password_hash is None) == (self.password is None):
            raise ValueError("must have either password_hash or password, and not both")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The YAML section `kvsd`: data on disk, limits of keys and values, users."""

    root_dir: Path = _setting(
        Path("data"), values.path, "Folder of the data; made where it is missing.", environment=("KVSD_DIR",)
    )
    fsync: Fsync = _setting(
        Fsync.ALWAYS,
        values.choice(Fsync),
        "When entries are synced: always (before the OK), interval, or never (left to the system).",
    )
    fsync_interval_ms: int = _setting(
        1_000, values.whole(1, 3_600_000), "Time between syncs in milliseconds, with fsync: interval."
    )
    segment_bytes: int = _setting(
        128 * MIB, values.size(64 * KIB, 2 * GIB), "Size at which a table's log goes on in a new file."
    )
    cache_bytes: int = _setting(
        64 * MIB,
        values.size(0, 1_024 * GIB),
        "Memory for recently used values, all tables together; 0: none.",
    )
    max_open_tables: int = _setting(
        256,
        values.whole(1, 1_000_000),
        "Tables open at a time; past it the least recently used one is closed until it is asked for again.",
    )
    dropped_keep_seconds: int = _setting(
        7 * DAY_SECONDS, values.whole(0, 100_000 * DAY_SECONDS), "Time that the files of a dropped table are kept."
    )
    compaction: bool = _setting(True, values.switch, "Compact a table's log whenever a file of it is complete.")
    compaction_bytes_per_second: int = _setting(
        0, values.size(0, 1_024 * GIB), "How fast a compaction reads a table's log; 0: as fast as it goes."
    )
    compaction_garbage_ratio: float = _setting(
        0.5, values.share, "The share of a file, from 0.05 to 1, that must be garbage before it is compacted."
    )
    max_key_bytes: int = _setting(MAX_KEY_BYTES, values.size(1, 64 * KIB - 1), "Longest key.")
    max_value_bytes: int = _setting(MAX_VALUE_BYTES, values.size(1, LARGEST_VALUE_BYTES), "Longest value.")
    users: tuple[User, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The YAML section `client`: whom the commands talk to, and as whom."""

    host: str = _setting(
        DEFAULT_HOST,
        values.host,
        "Host of the server; by default server.listen_host, a wildcard being loopback.",
        environment=("KVSD_HOST",),
    )
    port: int = _setting(
        DEFAULT_PORT,
        values.port,
        "Port of the server; by default server.listen_port.",
        environment=("KVSD_PORT",),
    )
    username: str | None = _setting(None, values.name, "User to authenticate as.", environment=("KVSD_USERNAME",))
    password: str | None = _setting(
        None, values.secret, "The user's password.", environment=("KVSD_PASSWORD",), secret=True
    )
    ca: Path | None = _setting(
        None,
        values.path,
        "PEM file with the only CA to trust; by default the system's CAs.",
        environment=("KVSD_CA",),
    )
    insecure: bool = _setting(
        False, values.switch, "Do not verify the server's certificate.", environment=("KVSD_INSECURE",)
    )
    disable_tls: bool = _setting(
        False,
        values.switch,
        "Connect without TLS; by default server.disable_tls.",
        environment=("KVSD_DISABLE_TLS",),
    )
    timeout: float = _setting(
        30.0,
        values.timeout,
        "Seconds that a request may take.",
        environment=("KVSD_TIMEOUT",),
    )
    namespace: str = _setting("default", values.table_name, "Namespace of the table.", environment=("KVSD_NAMESPACE",))
    table: str = _setting(
        "default", values.table_path, "Table that keys are in, or NAMESPACE/TABLE.", environment=("KVSD_TABLE",)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All settings as resolved, and where each came from.

    `origins` maps every setting ("server.listen_port") to "flag --listen-port", "environment
    KVSD_SERVER_LISTEN_PORT", "config.yaml:3" or "default". `path` is the file that was read, None without
    one. `warnings` are sentences for the user about what was ignored.
    """

    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    client: ClientSettings = ClientSettings()
    path: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def value(self, name: str) -> object:
        """The value of the setting `name` ("server.listen_port"); Setting.shown hides a secret."""
        section, key = name.split(".")
        return getattr({"server": self.server, "kvsd": self.storage, "client": self.client}[section], key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting as a source or a table of settings sees it; `name` is dotted, the section first."""

    name: str
    default: object
    parse: Callable[[str], object]
    doc: str
    environment: tuple[str, ...]
    """The variables that set it; an earlier one wins over a later one."""
    file_environment: tuple[str, ...]
    """Variables that name a file which holds it, for a secret."""
    secret: bool
    in_file: bool

    def variables(self, environ: Mapping[str, str]) -> list[tuple[str, str]]:
        """The name and text of each of its variables that is set, first the one that wins.

        An empty one is not set, and one that tells where a service is sets nothing. Raises ConfigError where the file
        that a variable names cannot be read, or one gives the secret and another a file.
        """
        found = [
            (name, text)
            for name in self.environment
            if (text := environ.get(name)) and not services.is_address(name, text)
        ]
        for name in self.file_environment:
            if path := environ.get(name):
                if found and found[0][0] not in self.file_environment:
                    raise ConfigError(f"environment {found[0][0]} and {name} are both set; set one of them")
                try:
                    text = password_file.read(Path(path))
                except ValueError as error:
                    raise ConfigError(f"environment {name}: the file {path} {error}") from None
                if not text:
                    raise ConfigError(f"environment {name}: the file {path} begins with an empty line")
                found.append((name, text))
        return found

    def shown(self, value: object) -> str:
        """`value` for a reader; a secret only says whether there is one."""
        if value is None:
            return "(none)"
        if self.secret:
            return "(hidden)"
        return str(value).lower() if isinstance(value, bool) else str(value)


SECTIONS: Final[Mapping[str, type[ServerSettings | StorageSettings | ClientSettings]]] = {
    "server": ServerSettings,
    "kvsd": StorageSettings,
    "client": ClientSettings,
}
"""The sections of the file, and what each becomes."""

USERS: Final = "kvsd.users"
"""The one setting that is not a single value. It comes from the file, or is one user whom the environment names."""


IGNORED: Final[Mapping[str, str]] = {
    "server.connection_tcp_buffer_bytes": "is ignored: here all connections share one read buffer",
}
"""Settings of the Rust program that have no meaning here, and why; they are accepted with a warning."""


def variable(name: str) -> str:
    """The environment variable of the setting `name`: KVSD_SERVER_LISTEN_PORT for server.listen_port."""
    return f"KVSD_{name.replace('.', '_')}".upper()


def _collect() -> dict[str, Setting]:
    return {
        name: Setting(
            name=name,
            default=entry.default,
            parse=entry.metadata["parse"],
            doc=entry.metadata["doc"],
            environment=(names := (variable(name), *entry.metadata["environment"])),
            file_environment=tuple(f"{name}_FILE" for name in names) if entry.metadata["secret"] else (),
            secret=entry.metadata["secret"],
            in_file=entry.metadata["in_file"],
        )
        for section, cls in SECTIONS.items()
        for entry in fields(cls)
        if (name := f"{section}.{entry.name}") != USERS
    }


SETTINGS: Final[Mapping[str, Setting]] = _collect()
"""Every setting but the users, by its dotted name, in the order of the documentation."""
