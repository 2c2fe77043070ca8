"""The asyncio client.

Owns: `connect` and `Client`, the time that a call may take, trying again, and which connection calls go to. Transports
are `aio_connection`'s, the meaning of calls and replies is `calls`' and `conversation`'s.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Generator, Iterable
from typing import TYPE_CHECKING, Self, TypeVar

from kvsd.client import calls, failures, forks
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.aio_connection import Connection
from kvsd.client.aio_table import Table
from kvsd.client.calls import Call, Place
from kvsd.client.deadlines import Deadlines
from kvsd.client.parts import parts
from kvsd.client.retries import Retries
from kvsd.client.settings import INSECURE_WARNING, ConnectSettings, resolve
from kvsd.client.tls import client_context
from kvsd.client.turns import Turns
from kvsd.errors import KvsdError, Timeout

if TYPE_CHECKING:
    from types import TracebackType

    from kvsd.client.aio_tables import Namespaces, Tables

R = TypeVar("R")

PIPELINED_CALLS = 500
"""Sent at once by get_many and set_many: half of what may be under way, so that other calls have their turn."""


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
) -> Connecting:
    """An asyncio client of one server: `client = await connect(…)`, or `async with connect(…) as client`.

    Unlike the blocking one it connects at once, and so raises here what a call may raise. The parameters, their
    sources and their defaults are those of `kvsd.connect`, without the pool: all tasks share one connection.
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
    return Connecting(settings)


class Connecting:
    """A client to be: await it, or enter it."""

    def __init__(self, settings: ConnectSettings) -> None:
        self._settings = settings
        self._client: Client | None = None

    def __await__(self) -> Generator[None, None, Client]:
        return Client.open(self._settings).__await__()

    async def __aenter__(self) -> Client:
        self._client = await self
        return self._client

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            await self._client.close()


class Client(Table):
    """A server's keys and values, for any number of tasks of one event loop; close it, or use it with `async with`.

    It belongs to the event loop of its first call: in another loop or thread, in a second `asyncio.run`, and in a child
    process after a fork, each call raises ClientUnusable.

    All tasks share one connection, on which their requests are pipelined; at most 1,024 replies are due at once.
    Further calls wait in their order, which counts as part of their `timeout`. A call may be cancelled at any time: its
    request may still be carried out, its reply goes to nobody. A connection that was closed while idle is reopened
    without a word.

    Keys and values, and what every call raises, are as with the blocking `kvsd.client.sync.Client`.
    """

    def __init__(self, settings: ConnectSettings) -> None:
        """Connects with the first call. Raises ConfigError where the CA file is unfit."""
        super().__init__()
        self._settings = settings
        self._context = client_context(settings)
        self._server = Acquaintance(settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_forked = False
        self._connection: Connection | None = None
        self._former: list[Connection] = []
        self._opening: asyncio.Task[Connection] | None = None
        self._unopened = Turns()
        self._deadlines = Deadlines()
        self._closed = False
        forks.watch(self)

    @classmethod
    async def open(cls, settings: ConnectSettings) -> Self:
        """A client that has reached its server. Warning of `insecure` is up to the caller."""
        client = cls(settings)
        try:
            await client.ping()
        except BaseException:
            await client.close()
            raise
        return client

    def table(self, table: str, *, namespace: str | None = None) -> Table:
        """Another table on the same connection; its namespace is the client's unless another is given."""
        return _View(self, Place(namespace, table))

    @property
    def tables(self) -> Tables:
        """Make, list, change, drop and reopen tables."""
        from kvsd.client.aio_tables import Tables  # here, since no plain command needs it

        return Tables(self, self._settings.namespace, self._settings.table)

    @property
    def namespaces(self) -> Namespaces:
        """Make, list and drop namespaces."""
        from kvsd.client.aio_tables import Namespaces

        return Namespaces(self)

    async def ping(self) -> float:
        """Seconds from sending a ping to its reply; it queues behind the requests of other tasks."""
        return await self.run(calls.ping())

    async def close(self) -> None:
        """End the connection. Calls that wait raise ConnectionLost, later ones ClientUnusable."""
        self._closed = True
        if self._is_forked or self._loop is None or self._loop.is_closed():
            return  # nothing is left that could be closed here
        self._own_loop()
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._connection is not None:
            self._former.append(self._connection)
            self._connection = None
        await asyncio.gather(*(connection.close() for connection in self._former))

    def after_fork(self) -> None:
        """Loop and connections are the parent's."""
        self._is_forked = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def run(self, call: Call[R]) -> R:
        """Carry `call` out, again where that may help."""
        loop = self._own_loop()
        self._server.check(call)
        started = loop.time()
        deadline = self._deadlines.begin(started + self._settings.timeout_seconds)
        retries = Retries(idempotent=call.idempotent)
        connection: Connection | None = None
        failure: KvsdError | None = None
        sent = False
        try:
            while True:
                connection = failure = None
                try:
                    connection = self._reusable() or await self._open()
                    if not connection.is_ready_for(call):
                        await connection.prepare(call)
                    if not connection.has_room:
                        await connection.room()
                    sent = True
                    return await connection.run(call)
                except KvsdError as error:
                    sent, failure = False, error
                    pause_seconds = retries.pause_after(error, connected=connection is not None)
                    is_refused = failures.may_come_back(error)
                    until = started + self._settings.wait_seconds if is_refused else deadline.at
                    if pause_seconds is None or loop.time() + pause_seconds >= until:
                        raise
                if is_refused:
                    self._deadlines.extend(deadline, loop.time() + pause_seconds + self._settings.timeout_seconds)
                await asyncio.sleep(pause_seconds)
        except asyncio.CancelledError:
            if not deadline.takes_back():
                raise
            if failure is not None:  # in the pause before another try
                raise failure from None
            raise self._late(call, connection, started, sent=sent) from None
        finally:
            self._deadlines.end(deadline)

    def _late(self, call: Call[R], connection: Connection | None, started: float, *, sent: bool) -> Timeout:
        """The error of a call whose time is up, wherever it has come to."""
        if connection is None:
            return failures.no_handshake(self._settings, self._settings.timeout_seconds)
        if not connection.was_heard_since(started):
            self._retire(connection)
        if not sent and connection.is_ready_for(call):
            return failures.no_turn(self._settings)
        return failures.no_reply(self._settings, may_be_applied=sent)

    async def run_all(self, batch: Iterable[Call[R]]) -> AsyncIterator[R]:
        for part in parts(batch, PIPELINED_CALLS):
            # All of them end before an error of one is told.
            outcomes = await asyncio.gather(*map(self.run, part), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """The running loop, to which connections are bound; raises ClientUnusable where it is not that of this client.

        Looked at before anything else: what is done to a connection from another thread reaches the wrong callers.
        """
        if self._is_forked:
            raise failures.forked(self._settings)
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise failures.foreign_loop(self._settings)
        return loop

    def _reusable(self) -> Connection | None:
        """The present connection, unless it has ended."""
        connection = self._connection
        if connection is None or not connection.is_open or connection.is_stale():
            return None
        return connection

    async def _open(self) -> Connection:
        """A new connection; tasks that need one at the same time get the same."""
        if self._closed:
            raise failures.closed(self._settings)
        if self._opening is None:
            self._opening = asyncio.create_task(self._replace())
            self._opening.add_done_callback(self._opened)
        opening = self._opening
        # Not `await opening`: a cancelled caller must not take it away from the others.
        await self._unopened.wait()
        if opening.cancelled():
            raise failures.closed_by_us(self._settings)
        return opening.result()

    async def _replace(self) -> Connection:
        if self._connection is not None:
            self._retire(self._connection)
        self._connection = await Connection.open(self._settings, self._server, self._context)
        return self._connection

    def _opened(self, opening: asyncio.Task[Connection]) -> None:
        self._opening = None
        if not opening.cancelled():
            opening.exception()  # looked at even if every task that waits was cancelled meanwhile
        self._unopened.grant_all()

    def _retire(self, connection: Connection) -> None:
        """Give `connection` no more calls; those that it has may still be answered."""
        if connection is self._connection:
            self._connection = None
            self._former = [former for former in self._former if not former.is_gone]
            self._former.append(connection)
        connection.retire(self._settings.timeout_seconds)


class _View(Table):
    """Another table of a client."""

    def __init__(self, client: Client, place: Place) -> None:
        super().__init__(place)
        self._client = client

    async def run(self, call: Call[R]) -> R:
        return await self._client.run(call)

    def run_all(self, batch: Iterable[Call[R]]) -> AsyncIterator[R]:
        return self._client.run_all(batch)
