"""The blocking client.

Owns: `connect` and `Client`, the time that a call may take, and trying again. Sockets are `sync_connection`'s, the
meaning of calls and replies is `calls`' and `conversation`'s. Never imports asyncio.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Self, TypeVar

from kvsd.client import calls, failures
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.calls import Call, Place
from kvsd.client.conversation import Outcome
from kvsd.client.parts import parts
from kvsd.client.pool import Pool
from kvsd.client.retries import Retries
from kvsd.client.settings import INSECURE_WARNING, ConnectSettings, resolve, shown
from kvsd.client.sync_connection import Connection
from kvsd.client.sync_table import Table
from kvsd.client.tls import client_context
from kvsd.errors import ConfigError, KvsdError

if TYPE_CHECKING:
    from types import TracebackType

    from kvsd.client.sync_tables import Namespaces, Tables

R = TypeVar("R")
T = TypeVar("T")

DEFAULT_POOL_SIZE = 8

PIPELINED_CALLS = 100
"""Sent at once by get_many and set_many: even with the longest keys they fit what both sides buffer."""


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
    wait: float | None = None,
    namespace: str | None = None,
    table: str | None = None,
    pool_size: int = DEFAULT_POOL_SIZE,
) -> Client:
    """A blocking client of one server. Opens nothing yet: the first call does.

    What is not given is taken from the URL (`kvsd://user:password@host:port/namespace/table?ca=…`), then from
    KVSD_HOST, KVSD_PORT, KVSD_USERNAME, KVSD_PASSWORD, KVSD_CA, KVSD_INSECURE, KVSD_DISABLE_TLS, KVSD_TIMEOUT,
    KVSD_NAMESPACE and KVSD_TABLE, then from the defaults: 127.0.0.1:7379 over TLS, verified by the system's
    authorities or by the one in `ca` alone, `timeout` 30 s for a call with all its waits and retries,
    `connect_timeout` 10 s for opening a connection, over all addresses of the host and the look-up of its name, table
    default/default. Config files are not read.

    `wait` (`?wait=30` in the URL) is for a server that restarts, or starts later: while nobody listens, a call tries
    again for so many seconds, beside its `timeout`. By default that is reported at once, as ConnectionRefused.

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
        wait=wait,
        namespace=namespace,
        table=table,
    )
    if settings.insecure and not settings.disable_tls:
        warnings.warn(INSECURE_WARNING, RuntimeWarning, stacklevel=2)
    return Client(settings, pool_size=pool_size)


class Client(Table):
    """A server's keys and values, for any number of threads; close it, or use it as a context manager.

    At most `pool_size` connections are open, each used by one thread at a time; further threads wait. A connection
    that was closed while idle is reopened without a word. A process that forks makes a client of its own.

    Keys and values are bytes; `str` is encoded as UTF-8. A server takes keys of up to 1,024 bytes and values of up
    to 10 MiB unless it is configured otherwise. Every call raises:

    - AuthenticationError, InvalidKey, InvalidValue and the other errors that a server answers with; those that are
      `retryable` (Busy, Loading) only after they have been tried again for as long as `timeout` allows;
    - ConnectionLost and Timeout, whose `may_be_applied` says whether a write may have been carried out; a get or a
      ping whose connection was lost is tried again first, a set or a delete only where nothing of it was sent;
    - CannotConnect where no connection can be opened: ConnectionRefused where nobody listens (see `wait`),
      CertificateError where the server's certificate is not accepted;
    - ClientUnusable once it is closed; TypeError for a key, value or number of the wrong type;
    - ProtocolError where the server's reply makes no sense.
    """

    def __init__(self, settings: ConnectSettings, *, pool_size: int = DEFAULT_POOL_SIZE) -> None:
        """Raises ConfigError where the CA file or `pool_size` is unfit. Warning of `insecure` is up to the caller."""
        super().__init__()
        if isinstance(pool_size, bool) or not isinstance(pool_size, int) or pool_size < 1:
            raise ConfigError(f"pool_size is {shown(pool_size)}; it takes a whole number, 1 or more")
        self._settings = settings
        self._timeout_seconds = settings.timeout_seconds
        self._server = server = Acquaintance(settings)
        context = client_context(settings)
        self._pool = Pool(settings, pool_size, lambda deadline: Connection(settings, server, context, deadline))

    def table(self, table: str, *, namespace: str | None = None) -> Table:
        """Another table on the same connections; its namespace is the client's unless another is given."""
        return _View(self, Place(namespace, table))

    @property
    def tables(self) -> Tables:
        """Make, list, change, drop and reopen tables."""
        from kvsd.client.sync_tables import Tables  # here, since no plain command needs it

        return Tables(self, self._settings.namespace, self._settings.table)

    @property
    def namespaces(self) -> Namespaces:
        """Make, list and drop namespaces."""
        from kvsd.client.sync_tables import Namespaces

        return Namespaces(self)

    def ping(self) -> float:
        """Seconds from sending a ping to its reply; opening a connection and logging in do not count."""
        return self.run(calls.ping())

    def close(self) -> None:
        """Close the idle connections at once, and each busy one after its call. Later calls raise ClientUnusable."""
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

    def run(self, call: Call[R]) -> R:
        self._server.check(call)
        return self._try(lambda connection, deadline: connection.run(call, deadline), idempotent=call.idempotent)

    def run_all(self, batch: Iterable[Call[R]]) -> Iterator[R]:
        for part in parts(batch, PIPELINED_CALLS):
            self._server.check(calls.most_demanding(part))
            outcomes = self._try(partial(_run_part, part), idempotent=part[0].idempotent)
            for call, outcome in zip(part, outcomes, strict=True):
                try:
                    yield outcome.result()
                except KvsdError as error:
                    if not error.retryable:
                        raise
                    yield self.run(call)  # alone: what was answered beside it must not be sent again

    def _try(self, action: Callable[[Connection, float], T], *, idempotent: bool) -> T:
        """`action` with a connection and a deadline, again where that may help."""
        started = monotonic()
        deadline = started + self._timeout_seconds
        retries = Retries(idempotent=idempotent)
        while True:
            try:
                return self._pool.use(action, deadline)
            except KvsdError as error:
                failure = error
                pause_seconds = retries.pause_after(error, connected=True)
                is_refused = failures.may_come_back(error)
                limit = started + self._settings.wait_seconds if is_refused else deadline
                if pause_seconds is None or monotonic() + pause_seconds >= limit:
                    raise
            time.sleep(pause_seconds)
            if is_refused:
                deadline = monotonic() + self._timeout_seconds
            elif monotonic() >= deadline:  # the pause took longer than it should
                raise failure


def _run_part(part: list[Call[R]], connection: Connection, deadline: float) -> list[Outcome[R]]:
    return connection.run_all(deadline, part)


class _View(Table):
    """Another table of a client."""

    def __init__(self, client: Client, place: Place) -> None:
        super().__init__(place)
        self._client = client

    def run(self, call: Call[R]) -> R:
        return self._client.run(call)

    def run_all(self, batch: Iterable[Call[R]]) -> Iterator[R]:
        return self._client.run_all(batch)
