"""kvsd: a persistent, append-only key-value daemon, its command line and its Python clients.

Owns: the public names. `connect` makes a blocking client, `kvsd.aio.connect` an asyncio one. What they need is
imported when it is first asked for, since every command of the shell passes through here.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # which type checkers take for true; `typing` takes longer to import than all of this
if TYPE_CHECKING:
    from kvsd import aio, config, server
    from kvsd.client.sync import Client, connect
    from kvsd.errors import (
        AuthenticationError,
        Busy,
        ConfigError,
        Conflict,
        ConnectionLost,
        CorruptLog,
        Forbidden,
        Gone,
        InternalError,
        InvalidKey,
        InvalidValue,
        KvsdError,
        Loading,
        ProtocolError,
        ReadOnly,
        RequestError,
        StorageError,
        TableNotFound,
        TableUnavailable,
        Timeout,
        UnexpectedMessage,
        UnsupportedFormat,
    )
    from kvsd.types import Entry

__version__ = "0.1.0"

__all__ = [
    "AuthenticationError",
    "Busy",
    "Client",
    "ConfigError",
    "Conflict",
    "ConnectionLost",
    "CorruptLog",
    "Entry",
    "Forbidden",
    "Gone",
    "InternalError",
    "InvalidKey",
    "InvalidValue",
    "KvsdError",
    "Loading",
    "ProtocolError",
    "ReadOnly",
    "RequestError",
    "StorageError",
    "TableNotFound",
    "TableUnavailable",
    "Timeout",
    "UnexpectedMessage",
    "UnsupportedFormat",
    "__version__",
    "aio",
    "config",
    "connect",
    "server",
]


# Hidden from type checkers: to them, whatever a module's __getattr__ may be asked for is there, typing errors too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        match name:
            case "aio" | "config" | "errors" | "server":
                return import_module(f"kvsd.{name}")
            case "Client" | "connect":
                module = "kvsd.client.sync"
            case "Entry":
                module = "kvsd.types"
            case _ if name in __all__:
                module = "kvsd.errors"
            case _:
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(import_module(module), name))
