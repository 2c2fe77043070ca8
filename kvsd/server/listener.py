"""Accepts connections within its permits, and sees each to its end.

Owns: the listening sockets, the semaphore, the TLS handshake, and what happens when descriptors run out. Must not
know what is said on a connection.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from kvsd.errors import ConfigError
from kvsd.server.connection import Connection
from kvsd.server.handshake import Handshake, reason_of
from kvsd.server.newcomers import Newcomers
from kvsd.server.reporting import Reporter
from kvsd.server.timer import patience
from kvsd.types import Address

HANDSHAKE_TIMEOUT_SECONDS: Final = 10.0
SHUTDOWN_TIMEOUT_SECONDS: Final = 1.0
"""The loop's default would hold a silent peer's permit for 30 s."""

_NEVER_SECONDS: Final = 86_400.0
"""The loop's own timer of a handshake, which ours replaces: it would end those that came while the process stood."""

BACKOFF_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)
"""Waits after EMFILE, ENFILE, ENOBUFS, ENOMEM and whatever else accept may fail with; the last one repeats."""

_NO_SUCH_ADDRESS: Final = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

# What a client can cause by going away between connect and accept: waiting would let it stall everyone.
_PEER_GONE: Final = {
    errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.EHOSTDOWN, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.ECONNRESET, errno.ETIMEDOUT,
}  # fmt: skip


def bind(host: str, port: int, backlog: int) -> list[socket.socket]:
    """A listening socket for each address of `host`, all on one port; raises ConfigError.

    An address that this machine does not have is passed over where there is another: `localhost` may name ::1 although
    IPv6 is off.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}; check server.listen_host") from error
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(_listen(family, (address[0], chosen, *address[2:]), backlog))
            except OSError as error:
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                missing = error
        if missing is not None and not sockets:
            raise missing
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; {_advice(error)}") from error
    return sockets


def _listen(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening


class Listener:
    """A semaphore-wrapped listener: the permit is taken before accept, so at the limit clients wait in the backlog.

    Where they wait, connections that have not logged in give way: peers that say nothing must not keep others out.

    Each connection's own task returns its permit, exactly once, however it ends.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        make_connection: Callable[[], Connection],
        *,
        max_connections: int,
        max_unauthenticated_per_address: int,
        context: ssl.SSLContext | None,
        reporter: Reporter,
    ) -> None:
        self.max_connections = max_connections
        self._sockets = sockets
        self._make_connection = make_connection
        self._permits = asyncio.Semaphore(max_connections)
        self._context = context
        self._timeouts = (
            {}
            if context is None
            else {
                "ssl_handshake_timeout": _NEVER_SECONDS,
                "ssl_shutdown_timeout": SHUTDOWN_TIMEOUT_SECONDS,
            }
        )
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._connections: set[asyncio.Task[None]] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._newcomers = Newcomers(max_unauthenticated_per_address)
        self._accepting: asyncio.Task[None]
        self._freed = asyncio.Event()
        self._full = False

    def __len__(self) -> int:
        """Connections at this moment, those in their handshake included."""
        return len(self._connections)

    def start(self) -> None:
        self._accepting = self._loop.create_task(self._accept_all())

    async def stop(self) -> None:
        """Accept no more, close the listening sockets, and end what is still in its handshake: it has asked nothing.

        The other connections stay; `wait_closed` waits for them.
        """
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        for listening in self._sockets:
            listening.close()
        for connection in self._handshakes:
            connection.cancel()

    async def wait_closed(self) -> None:
        """Until every connection has ended."""
        while self._connections:
            await asyncio.wait(self._connections)

    def abort(self) -> None:
        """End all connections now, also those in their handshake."""
        for connection in self._connections:
            connection.cancel()

    async def _accept_all(self) -> None:
        while True:
            self._note_fullness()
            await self._make_room()
            await self._permits.acquire()
            try:
                accepted = await self._accept_one()
            except BaseException:
                self._permits.release()
                raise
            connection = self._loop.create_task(self._see_through(accepted))
            self._connections.add(connection)
            connection.add_done_callback(self._ended)

    async def _make_room(self) -> None:
        """At the limit: have newcomers give way while clients wait."""
        while self._permits.locked() and len(self._newcomers):
            self._freed.clear()
            client, freed = (self._loop.create_task(wait) for wait in (self._acceptable(), self._freed.wait()))
            try:
                await asyncio.wait((client, freed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                client.cancel()
                freed.cancel()
                # To their ends: the first one removes the readers that `_accept_one` is about to add.
                await asyncio.wait((client, freed))
            if self._permits.locked():
                seconds = self._newcomers.make_way(self._loop.time())
                if seconds is not None:
                    await self._wait_for_a_close(seconds or SHUTDOWN_TIMEOUT_SECONDS)

    async def _accept_one(self) -> socket.socket:
        """The next connection to any of the sockets, however long that takes."""
        failures = 0
        while True:
            listening = await self._acceptable()
            try:
                accepted, _ = listening.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _PEER_GONE:
                    continue
                backoff = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)]
                failures += 1
                self._reporter.error(
                    "cannot accept; waiting for connections to close", error=str(error), seconds=backoff
                )
                await self._wait_for_a_close(backoff)
            else:
                return accepted

    async def _acceptable(self) -> socket.socket:
        """A socket on which a client waits.

        Not sock_accept: it would take a permit for each socket while it waits, so that the last one could be held for
        an address to which nobody connects, and it may swallow a connection where it is cancelled.
        """
        ready: asyncio.Future[socket.socket] = self._loop.create_future()

        def settle(listening: socket.socket) -> None:
            if not ready.done():
                ready.set_result(listening)

        for listening in self._sockets:
            self._loop.add_reader(listening, settle, listening)
        try:
            return await ready
        finally:
            for listening in self._sockets:
                self._loop.remove_reader(listening)

    async def _readable(self, accepted: socket.socket) -> None:
        """Until the peer has said something, or has left."""
        spoken = asyncio.Event()
        self._loop.add_reader(accepted, spoken.set)
        try:
            await spoken.wait()
        finally:
            self._loop.remove_reader(accepted)

    async def _wait_for_a_close(self, seconds: float) -> None:
        self._freed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._freed.wait()
        except TimeoutError:
            pass

    async def _see_through(self, accepted: socket.socket) -> None:
        """Handshake, conversation, end. The permit is back when this task is done."""
        peer = _peer(accepted)
        task = asyncio.current_task()
        assert task is not None
        self._handshakes.add(task)
        handshake = Handshake(task)
        self._newcomers.add(task, peer.rpartition(":")[0], self._loop.time())
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._make_connection()
            connection.on_speaking = partial(self._newcomers.speaks, task)
            connection.on_admitted = partial(self._newcomers.discard, task)
            async with patience(HANDSHAKE_TIMEOUT_SECONDS):
                if self._context is not None:
                    # A silent peer then costs a socket, and not the memory of a handshake.
                    await self._readable(accepted)
                    self._newcomers.speaks(task)
                # uvloop does not return the protocol that it was given.
                transport, _ = await self._loop.connect_accepted_socket(
                    lambda: connection, accepted, ssl=self._context, **self._timeouts
                )
        except (OSError, asyncio.CancelledError) as error:
            accepted.close()
            if handshake.error is not None:
                self._reporter.info("TLS handshake failed", peer=peer, error=reason_of(handshake.error))
            elif isinstance(error, TimeoutError | ConnectionAbortedError):  # ours, or as the loop calls it
                self._reporter.info("TLS handshake failed", peer=peer, error="nothing was heard for too long")
            else:
                # Gone without a word, as those who only look whether the port is open.
                self._reporter.debug("no connection", peer=peer, error=str(error) or type(error).__name__)
            return
        except BaseException:
            accepted.close()
            raise
        finally:
            self._handshakes.discard(task)
        try:
            # Not awaited directly: cancelling this task must not cancel the future.
            await asyncio.wait([connection.closed])
        except asyncio.CancelledError:
            transport.abort()
            await asyncio.wait([connection.closed])

    def _ended(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        self._newcomers.discard(connection)
        self._permits.release()
        self._freed.set()
        if not connection.cancelled() and (error := connection.exception()) is not None:
            self._reporter.error("a connection's task failed", exc_info=error)

    def _note_fullness(self) -> None:
        """Say once that the limit is reached, and once more only after a tenth of it was free."""
        if self._permits.locked():
            if not self._full:
                self._full = True
                self._reporter.warning(
                    "connection limit reached; new clients wait in the backlog",
                    max_tcp_connections=self.max_connections,
                )
        elif len(self._connections) <= self.max_connections * 0.9:
            self._full = False


def _advice(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "is another server running? Stop it, or choose another server.listen_port"
        case errno.EACCES:
            return "ports below 1024 may need privileges; choose another server.listen_port"
        case _:
            return "is this an address of this machine? Check server.listen_host"


def _peer(accepted: socket.socket) -> str:
    try:
        host, port, *_ = accepted.getpeername()
    except OSError:
        return "gone"
    return str(Address(host, port))
