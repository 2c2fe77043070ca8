"""One asyncio connection to a server, shared by many tasks.

Owns: the transport, its TLS handshake, the login, and when requests are written. Knows nothing of retries, of the
time that a call may take, or of other connections.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Self, TypeVar, cast

from kvsd.client import failures, forks
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.aio_opening import connect_first, resolve
from kvsd.client.calls import Call, authenticate
from kvsd.client.conversation import Conversation
from kvsd.client.readable import is_readable
from kvsd.client.settings import ConnectSettings
from kvsd.client.tls import names_offered
from kvsd.client.turns import Turns
from kvsd.errors import KvsdError

R = TypeVar("R")

MAX_IN_FLIGHT = 1024
"""Replies that may be due at once, those of cancelled calls included; further calls wait."""

OUTBOX_BYTES = 64 * 1024
"""What one turn of the loop collects is written at once beyond this, so that the transport can call a halt."""

READ_BYTES = 256 * 1024

GOODBYE_SECONDS = 1.0
"""How long a silent server can hold up a close."""


class Connection(asyncio.BufferedProtocol):
    """Any number of tasks of one loop `run` their calls here; replies come in the order of the requests.

    A BufferedProtocol, since uvloop allocates 256 KiB for each TLS read that it hands to a plain one.
    """

    def __init__(self, settings: ConnectSettings, server: Acquaintance) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._conversation = Conversation(settings, server)
        self._transport: asyncio.Transport | None = None
        self._descriptor = -1
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        self._writing_paused = False
        self._turns = Turns()
        self._preparing: asyncio.Task[None] | None = None
        self._unprepared = Turns()
        self._hindrance: KvsdError | None = None
        self._quiet: asyncio.Future[None] | None = None
        self._reason: KvsdError | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._retirement: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()

    @classmethod
    async def open(cls, settings: ConnectSettings, server: Acquaintance, context: ssl.SSLContext | None) -> Self:
        """Resolve the host, connect, shake hands and log in, all within the connect timeout.

        Raises CannotConnect, ConnectionLost, Timeout, and what the server answered to the credentials.
        """
        seconds = settings.connect_timeout_seconds
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        connection: Self | None = None
        endpoints = await resolve(settings, seconds)
        try:
            async with asyncio.timeout_at(deadline):
                plain = await connect_first(endpoints)
                try:
                    _, connection = await loop.create_connection(
                        lambda: cls(settings, server),
                        sock=plain,
                        ssl=context,
                        server_hostname=settings.host if context else None,
                        # Not to come first: the timeout around all of this has the better words.
                        ssl_handshake_timeout=seconds + 1 if context else None,
                        ssl_shutdown_timeout=GOODBYE_SECONDS if context else None,
                    )
                except BaseException:
                    plain.close()
                    raise
                await connection.run(authenticate(settings.username, settings.password))
        except BaseException as error:
            if connection is not None:
                await connection.abort()
            match error:
                case KvsdError():
                    raise
                case TimeoutError():
                    raise failures.no_handshake(settings, seconds) from None
                case OSError() | ValueError():
                    names: tuple[str, ...] = ()
                    if isinstance(error, ssl.SSLCertVerificationError):
                        names = await asyncio.to_thread(names_offered, settings, error)
                    raise failures.cannot_open(settings, error, names) from error
                case _:
                    raise
        return connection

    @property
    def is_open(self) -> bool:
        """Whether another call may be made."""
        return self._reason is None and self._transport is not None and not self._transport.is_closing()

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left to be closed."""
        return self._lost.done()

    @property
    def has_room(self) -> bool:
        """Whether a call may be made now, rather than after `room`."""
        return self._free > 0 and not self._turns.is_line

    async def room(self) -> None:
        """Wait until the server has taken and answered enough of what it was asked, or the connection has ended."""
        try:
            if self.is_open and not self.has_room:
                await self._turns.wait()
        except BaseException:
            self._make_room()  # it may have been this one's turn
            raise

    def is_ready_for(self, call: Call[R]) -> bool:
        """Tell whether nothing must be asked before `call`."""
        return self._conversation.is_ready_for(call)

    async def prepare(self, call: Call[R]) -> None:
        """Ask what must be asked before `call` is run, with nothing else under way. Raises as `run`."""
        while self.is_open and not self.is_ready_for(call):
            if self._preparing is None:
                self._hindrance = None
                self._preparing = self._loop.create_task(self._prepare(call))
                self._preparing.add_done_callback(self._prepared)
            # A task of its own, since other calls wait for it, whatever becomes of this one.
            await self._unprepared.wait()
            if self._hindrance is not None:
                raise self._hindrance

    async def _prepare(self, call: Call[R]) -> None:
        try:
            while self._conversation or self._turns.granted:
                self._quiet = self._loop.create_future()
                await self._quiet
            if not self.is_open:
                raise self._conversation.loss(None, may_be_applied=False)
            for first in self._conversation.preparations(call):
                await self.run(first)
        except KvsdError as error:
            self._hindrance = self._conversation.unprepared(call, error)

    def _prepared(self, preparing: asyncio.Task[None]) -> None:
        self._preparing = None
        if not preparing.cancelled():
            preparing.exception()  # looked at; who waits finds the connection ended
        self._unprepared.grant_all()
        self._make_room()

    async def run(self, call: Call[R]) -> R:
        """Send `call`, before the first wait, and return its result.

        Raises what the server answered, ProtocolError, or ConnectionLost, whose `may_be_applied` is false where
        nothing of the call was handed to the transport. When cancelled, the reply is dropped as it comes.
        """
        if not self.is_open:
            raise self._conversation.loss(None, may_be_applied=False)
        waiter: asyncio.Future[R] = self._loop.create_future()
        try:
            self._write(self._conversation.send(call, waiter))
        except KvsdError:  # it cannot be expressed, and has no place in the conversation
            self._make_room()
            raise
        except BaseException:  # it may have a place, but no bytes that are answered
            self._give_up(failures.interrupted(self._settings))
            raise
        return await waiter

    def was_heard_since(self, moment: float) -> bool:
        """Whether anything came from the server after `moment` of the loop's clock."""
        return self._heard_at > moment

    def is_stale(self) -> bool:
        """Whether the end of an idle connection is there, and the loop has not come to read it."""
        return not self._conversation and is_readable(self._descriptor)

    def retire(self, seconds: float) -> None:
        """End the connection in `seconds`, by when all calls on it have their replies or have timed out."""
        if self._retirement is None and not self.is_gone:
            self._retirement = self._loop.call_later(seconds, self._give_up, failures.silent(self._settings))

    async def close(self) -> None:
        """Fail the calls that wait, part from the server in order, and wait for the end, for about a second."""
        if self._transport is not None and not self.is_gone:
            self._reason = failures.closed_by_us(self._settings)
            self._conversation.end(self._reason, unsent=len(self._outbox))
            self._transport.close()
            await asyncio.wait([self._lost], timeout=GOODBYE_SECONDS)
            await self.abort()

    async def abort(self) -> None:
        """End the connection at once and wait until it is gone."""
        if self._transport is not None and not self.is_gone:
            self._transport.abort()
            # Not for ever: a signal handler may have raised where the loop told of the end.
            await asyncio.wait([self._lost], timeout=GOODBYE_SECONDS)

    def after_fork(self) -> None:
        """Whatever the child's copy of the loop does with it, the parent does not notice."""
        if not self.is_gone:
            forks.cut_off(self._descriptor)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Nothing checks this: uvloop's TLS transport is one in all but name.
        self._transport = cast("asyncio.Transport", transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        forks.watch(self)

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._reason is not None:
            return
        self._heard_at = self._loop.time()
        try:
            self._conversation.receive(self._buffer[:nbytes])
        except KvsdError as error:
            self._give_up(error)
        except BaseException:  # of a signal handler, after which nobody knows whose reply comes next
            self._give_up(failures.interrupted(self._settings))
            raise
        self._make_room()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        try:
            reason = self._reason or (exc if isinstance(exc, OSError) else None)
            self._conversation.end(reason, unsent=len(self._outbox))
            self._outbox.clear()
            self._turns.grant_all()
            self._make_room()
            if self._retirement is not None:
                self._retirement.cancel()
        finally:
            self._lost.set_result(None)

    def _write(self, request: bytes) -> None:
        """Leave with all other requests of this turn of the loop in one write: one TLS record, one system call."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(request)
        self._outbox_bytes += len(request)
        if self._outbox_bytes >= OUTBOX_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not (self._outbox and self._transport is not None and self.is_open):
            return
        try:
            requests = b"".join(self._outbox)
            self._outbox.clear()
            self._outbox_bytes = 0
            self._transport.write(requests)
        except BaseException:
            self._give_up(failures.interrupted(self._settings))
            raise

    @property
    def _free(self) -> int:
        """The number of further calls that may be under way."""
        if self._writing_paused or self._preparing is not None:
            return 0
        return MAX_IN_FLIGHT - len(self._conversation) - self._turns.granted

    def _make_room(self) -> None:
        if self._quiet is not None and not (self._conversation or self._turns.granted):
            if not self._quiet.done():
                self._quiet.set_result(None)
            self._quiet = None
        # Only when half is free, so that waiting tasks are woken in droves and not one by one.
        if len(self._conversation) <= MAX_IN_FLIGHT // 2:
            self._turns.grant(self._free)

    def _give_up(self, reason: KvsdError) -> None:
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()
