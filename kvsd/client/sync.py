"""The blocking client.

Owns: `connect` and `Client`, the time that a call may take, and trying again. Sockets are `sync_connection`'s, the
meaning of calls and replies is `calls`' and `conversation`'s. Never imports asyncio.
"""

from __future__ import annotations

import os
import time
import warnings
from time import monotonic
from typing import TYPE_CHECKING, Self, TypeVar

from kvsd.client import calls
from kvsd.client.calls import Call
from kvsd.client.pool import Pool
from kvsd.client.retries import Retries
from kvsd.client.settings import INSECURE_WARNING, ConnectSettings, resolve
from kvsd.client.sync_connection import Connection
from kvsd.client.tls import client_context
from kvsd.errors import KvsdError
from kvsd.types import KeyLike, ValueLike

if TYPE_CHECKING:
    from types import TracebackType

R = TypeVar("R")

DEFAULT_POOL_SIZE = 8


def connect(
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
    pool_size: int = DEFAULT_POOL_SIZE,
) -> Client:
    """A blocking client of one server. Opens nothing yet: the first call does.

    What is not given is taken from the URL (`kvsd://user:password@host:port?ca=…`), then from KVSD_HOST, KVSD_PORT,
    KVSD_USERNAME, KVSD_PASSWORD, KVSD_CA, KVSD_INSECURE, KVSD_DISABLE_TLS and KVSD_TIMEOUT, then from the defaults:
    127.0.0.1:7379 over TLS, verified by the system's authorities or by the one in `ca` alone, `timeout` 30 s for a
    call with all its waits and retries, `connect_timeout` 10 s for opening a connection. Config files are not read.

    `insecure` verifies nothing and is warned of; `disable_tls` sends all in the clear, the password too.

    Raises ConfigError for settings that cannot work, AuthenticationError where no user name or password is given.
    """
    settings = resolve(
        url,
        host=host,
        port=port,
        username=username,
        password=password,
        ca=ca,
        insecure=insecure,
        disable_tls=disable_tls,
        timeout=timeout,
        connect_timeout=connect_timeout,
    )
    if settings.insecure and not settings.disable_tls:
        warnings.warn(INSECURE_WARNING, RuntimeWarning, stacklevel=2)
    return Client(settings, pool_size=pool_size)


class Client:
    """A server's keys and values, for any number of threads; close it, or use it as a context manager.

    At most `pool_size` connections are open, each used by one thread at a time; further threads wait. A connection
    that was closed while idle is reopened without a word. A process that forks makes a client of its own.

    Keys and values are bytes; `str` is encoded as UTF-8. A server takes keys of up to 1,024 bytes and values of up
    to 10 MiB unless it is configured otherwise. Every call raises:

    - AuthenticationError, InvalidKey, InvalidValue and the other errors that a server answers with; those that are
      `retryable` (Busy, Loading) only after they have been tried again for as long as `timeout` allows;
    - ConnectionLost and Timeout, whose `may_be_applied` says whether a write may have been carried out; a get or a
      ping whose connection was lost is tried again first, a set or a delete only where nothing of it was sent;
    - ProtocolError where the server's reply makes no sense.
    """

    def __init__(self, settings: ConnectSettings, *, pool_size: int = DEFAULT_POOL_SIZE) -> None:
        """Raises ConfigError where the CA file is unfit. Warning of `insecure` is up to the caller."""
        self._timeout_seconds = settings.timeout_seconds
        context = client_context(settings)
        self._pool = Pool(settings, pool_size, lambda deadline: Connection(settings, context, deadline))

    def get(self, key: KeyLike) -> bytes | None:
        """The value of `key`, None where it is absent."""
        return self._run(calls.get(key))

    def set(self, key: KeyLike, value: ValueLike) -> None:
        """Store `value` under `key`. Under the server's default settings it is on disk when this returns."""
        self._run(calls.set_(key, value))

    def delete(self, key: KeyLike) -> bytes | None:
        """Remove `key`; the value that it had, None where it was absent."""
        return self._run(calls.delete(key))

    def ping(self) -> float:
        """Seconds from sending a ping to its reply; opening a connection and logging in do not count."""
        return self._run(calls.ping())

    def close(self) -> None:
        """Close the idle connections at once, and each busy one after its call. Later calls raise ConnectionLost."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Call[R]) -> R:
        deadline = monotonic() + self._timeout_seconds
        retries = Retries(idempotent=call.idempotent)
        while True:
            connection = None
            try:
                with self._pool.lend(deadline) as connection:
                    return connection.run(call, deadline)
            except KvsdError as error:
                pause_seconds = retries.pause_after(error, connected=connection is not None)
                if pause_seconds is None or monotonic() + pause_seconds >= deadline:
                    raise
            time.sleep(pause_seconds)
