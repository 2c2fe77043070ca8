"""One connection's conversation in the native protocol.

Owns: authentication first, replies in request order, and every wait that a peer can cause: for its credentials, for
its next request, for it to read. Must not know tables beyond a mailbox, nor how a connection was accepted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from structlog.typing import FilteringBoundLogger

from kvsd.errors import AuthenticationError, Busy, InternalError, KvsdError, ProtocolError, UnexpectedMessage
from kvsd.protocol import messages
from kvsd.protocol.decoder import BEFORE_AUTHENTICATION, Decoder, Limits, Refused
from kvsd.protocol.frames import Time
from kvsd.protocol.messages import Message, encode, encode_success
from kvsd.server.authentication import Authenticator, Principal
from kvsd.server.connection import Connection
from kvsd.server.dispatcher import DEFAULT_TABLE, Dispatcher
from kvsd.table import request
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.request import FREE_BYTES, Operation, Origin, Request, Result

READ_BUFFER_BYTES: Final = 256 << 10

_MAX_TURNS: Final = 4
"""Reads whose replies are outstanding; then the peer is not read from until some have left."""

_WRITE_HIGH_WATER_BYTES: Final = 64 << 10
_LINGER_SECONDS: Final = 1.0
"""After a fatal error what still arrives is thrown away for so long: closing at once could destroy the Fail that
says why, while the peer still sends."""


@dataclass(slots=True)
class Services:
    """What all sessions of a server share."""

    authenticator: Authenticator
    dispatcher: Dispatcher
    budget: Budget
    limits: Limits
    reporter: FilteringBoundLogger
    authenticate_timeout_seconds: float
    idle_timeout_seconds: float
    write_timeout_seconds: float
    sessions: set[Session] = field(default_factory=set)
    # A read is taken out of it before the next connection's turn.
    read_buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_BUFFER_BYTES)))


class _Turn:
    """The replies to a stretch of messages, and what they keep of the budget until they have left."""

    __slots__ = ("held_bytes", "reply", "request")

    def __init__(self, request: Request | None, held_bytes: int) -> None:
        self.request = request
        self.reply = bytearray()
        """Without a request: what is said instead."""
        self.held_bytes = held_bytes


class Session(Connection):
    """A BufferedProtocol, since streams cost 15 to 40 %, and a plain Protocol under uvloop and TLS two thirds."""

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(BEFORE_AUTHENTICATION)
        self._origin = Origin(services.budget)
        self._principal: Principal | None = None
        self._table: TableActor | KvsdError | None = None
        self._turns: deque[_Turn] = deque()
        self._transport: asyncio.Transport
        self._login: asyncio.Task[None] | None = None
        self._putting: asyncio.Task[None] | None = None
        self._unput: deque[Request] = deque()
        self._input_held_bytes = 0
        self._unsent_held_bytes = 0
        self._last_read = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._rest_is_due = False
        """The first turn's Request was cut, and the part that came has been written."""
        self._ending = False
        """No more requests are taken; the connection closes when all that were are answered."""
        self._lingering = False
        """What still arrives is read and thrown away meanwhile."""

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # what it is; uvloop's class does not say so
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)
        self._services.sessions.add(self)
        self._set_timer(self._services.authenticate_timeout_seconds, self._refuse_late)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._services.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        self._last_read = self._loop.time()
        self._decoder.feed(self._services.read_buffer[:nbytes])
        self._take_messages(is_large=nbytes > FREE_BYTES)

    def eof_received(self) -> bool:
        """A peer that has ended its side (it can without TLS only) still gets the replies that it is owed."""
        self._ending = True
        return bool(self._turns) and self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._steer_reading()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._services.budget.release(self._unsent_held_bytes)
        self._unsent_held_bytes = 0
        self._stop_timer()
        self._watch_idleness()
        self._send_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        for handle in (self._timer, self._login, self._putting):
            if handle is not None:
                handle.cancel()
        budget = self._services.budget
        budget.release(self._input_held_bytes + self._unsent_held_bytes)
        for turn in self._turns:
            budget.release(turn.held_bytes)
            if turn.request is not None and not turn.request.future.cancel():
                budget.release(turn.request.held_bytes)
        self._turns.clear()
        self._services.sessions.discard(self)
        user = None if self._principal is None else self._principal.username
        peer = self._transport.get_extra_info("peername")
        self._services.reporter.debug("connection ended", peer=peer, user=user, error=exc and str(exc))
        super().connection_lost(exc)

    # Called by the server

    def drain(self) -> None:
        """Take no more requests; close when all that were read are answered."""
        self._ending = True
        self._steer_reading()
        self._close_if_done()

    def abort(self) -> None:
        self._transport.abort()

    # Authentication

    def _take_credentials(self) -> None:
        """Take the first message, which must be Authenticate; verifying it may go on in a task."""
        message = self._decoder.next_message()
        match message:
            case None:
                return
            case messages.Authenticate(username, password):
                pass
            case _:
                self._end_with(AuthenticationError("the first message must be Authenticate"))
                return
        self._stop_timer()
        principal = self._services.authenticator.remembered(username, password)
        if principal is not None:
            self._admit(principal)
        else:
            self._login = self._loop.create_task(self._verify(username, password))
            self._steer_reading()

    async def _verify(self, username: str, password: str) -> None:
        try:
            principal = await self._services.authenticator.verify(username, password)
        except AuthenticationError:
            # Exactly the Rust program's answer; a text could only help who is guessing.
            self._login = None
            self._reply(encode(messages.Fail(AuthenticationError.code, "")))
            self._end()
        except Busy as error:
            self._login = None
            self._end_with(error)
        else:
            self._login = None
            self._admit(principal)
            self._take_messages(is_large=self._decoder.buffered_bytes > FREE_BYTES)
            self._steer_reading()

    def _admit(self, principal: Principal) -> None:
        self._principal = principal
        self._table = self._services.dispatcher.table(principal, DEFAULT_TABLE)
        self._decoder.limits = self._services.limits
        self._watch_idleness()
        self._reply(encode_success(None))

    def _refuse_late(self) -> None:
        milliseconds = round(self._services.authenticate_timeout_seconds * 1000)
        self._end_with(AuthenticationError(f"no Authenticate within {milliseconds} ms"))

    # Messages

    def _take_messages(self, *, is_large: bool) -> None:
        """Start on all complete messages that have arrived: one Request for each run of table operations."""
        operations: list[Operation] = []
        try:
            if self._principal is None:
                self._take_credentials()
            while self._principal is not None:
                message = self._decoder.next_message()
                match message:
                    case messages.Get():
                        operations.append(request.Get(message.key))
                    case messages.Set():
                        operations.append(request.Set(message.key, message.value))
                    case messages.Delete():
                        operations.append(request.Delete(message.key))
                    case None:
                        break
                    case _:
                        self._ask(operations, is_large=is_large)
                        operations = []
                        self._answer(message)
        except ProtocolError as error:
            self._ask(operations, is_large=is_large)
            self._end_with(error, linger=True)
        except Exception as error:
            self._services.reporter.critical("internal fault in a session", exc_info=error)
            self._end_with(InternalError("internal fault; the server's log has the details"), linger=True)
        else:
            self._ask(operations, is_large=is_large)
            if is_large or self._input_held_bytes:
                self._hold_input()

    def _answer(self, message: Message | Refused) -> None:
        """Reply to what needs no table."""
        match message:
            case Refused():
                self._reply(_fail(message.error))
            case messages.Ping():
                self._reply(encode(messages.Ping(message.client_time, Time(time.time_ns()))))
            case messages.Hello():
                self._reply(encode(messages.Welcome(messages.PROTOCOL_VERSION, ())))
            case _:
                self._reply(_fail(UnexpectedMessage(f"{type(message).__name__} is not expected here")))

    def _ask(self, operations: list[Operation], *, is_large: bool) -> None:
        """Pass `operations` to the table as one Request; the replies take their turn."""
        if not operations:
            return
        table = self._table
        held_bytes = 0
        if is_large:
            held_bytes = sum(len(operation.value) for operation in operations if isinstance(operation, request.Set))
            if not self._services.budget.hold(held_bytes):
                self._reply(_fail(_out_of_memory()) * len(operations))
                return
        if isinstance(table, TableActor):
            turn = _Turn(Request(operations, self._origin, self._loop.create_future()), held_bytes)
            self._turns.append(turn)
            self._put(turn)
        else:
            self._services.budget.release(held_bytes)
            assert table is not None
            self._reply(_fail(table) * len(operations))

    def _put(self, turn: _Turn) -> None:
        asked = turn.request
        assert asked is not None
        asked.future.add_done_callback(self._send_ready)
        assert isinstance(self._table, TableActor)
        if self._putting is None:
            try:
                self._table.mailbox.put_nowait(asked)
            except asyncio.QueueFull:
                self._putting = self._loop.create_task(self._put_waiting(self._table.mailbox))
        if self._putting is not None:
            self._unput.append(asked)
        if self._putting is not None or len(self._turns) >= _MAX_TURNS:
            self._steer_reading()

    async def _put_waiting(self, mailbox: asyncio.Queue[Request | None]) -> None:
        """The mailbox is full: wait for room, while nothing is read from this peer."""
        while self._unput:
            await mailbox.put(self._unput[0])
            self._unput.popleft()
        self._putting = None
        self._steer_reading()

    def _hold_input(self) -> None:
        """Count a half-received value; where the budget has no room, its bytes are dropped and it is refused."""
        budget = self._services.budget
        wanted = max(0, self._decoder.buffered_bytes - FREE_BYTES)
        if not budget.hold(wanted - self._input_held_bytes):
            self._decoder.refuse_incomplete(_out_of_memory())
            budget.release(self._input_held_bytes)
            wanted = 0
        self._input_held_bytes = wanted

    # Replies

    def _reply(self, reply: bytes) -> None:
        """Give `reply` its turn behind all that are owed."""
        if self._turns and self._turns[-1].request is None:
            self._turns[-1].reply += reply
        else:
            turn = _Turn(None, 0)
            turn.reply += reply
            self._turns.append(turn)
        self._send_ready()

    def _send_ready(self, _: object = None) -> None:
        """Write all replies whose turn has come, with one write."""
        if self._writing_paused or self._transport.is_closing():
            return
        if self._rest_is_due:
            self._ask_again()
            return
        turns = self._turns
        parts: list[bytes | bytearray] = []
        held_bytes = 0
        while turns:
            turn = turns[0]
            asked = turn.request
            if asked is None:
                parts.append(turn.reply)
            elif asked.future.done():
                results = asked.future.result()
                parts += [_encode_result(result) for result in results]
                held_bytes += asked.held_bytes
                if len(results) < len(asked.operations):
                    turn.request = Request(asked.operations[len(results) :], self._origin, self._loop.create_future())
                    self._rest_is_due = True
                    break
            else:
                break
            held_bytes += turn.held_bytes
            turns.popleft()
        if parts:
            self._write(parts[0] if len(parts) == 1 else b"".join(parts), held_bytes)
        self._go_on()

    def _write(self, data: bytes | bytearray, held_bytes: int) -> None:
        self._transport.write(data)
        if self._writing_paused:
            self._unsent_held_bytes += held_bytes
        elif held_bytes:
            self._services.budget.release(held_bytes)

    def _go_on(self) -> None:
        """Replies have left, or a part of one: what waited for that has its turn."""
        if self._rest_is_due:
            self._ask_again()
        elif self._reading_paused:
            self._steer_reading()
        if self._ending:
            self._close_if_done()

    def _ask_again(self) -> None:
        """After a Request was cut: ask for the rest once what came has been written and all behind it is back."""
        self._steer_reading()
        turns = [turn for turn in self._turns if turn.request is not None]
        if self._writing_paused or not all(turn.request.future.done() for turn in turns[1:] if turn.request):
            return
        self._rest_is_due = self._origin.is_cut = False
        for turn in turns:
            asked = turn.request
            assert asked is not None
            if not asked.future.done():
                self._put(turn)
            elif not asked.results:
                turn.request = Request(asked.operations, self._origin, self._loop.create_future())
                self._put(turn)

    # Reading, waiting and ending

    def _steer_reading(self) -> None:
        """Read from the peer only while everything that it causes has room."""
        pause = not self._lingering and (
            self._writing_paused
            or self._ending
            or self._origin.is_cut
            or self._login is not None
            or self._putting is not None
            or len(self._turns) >= _MAX_TURNS
        )
        if pause != self._reading_paused and not self._transport.is_closing():
            self._reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _watch_idleness(self) -> None:
        timeout = self._services.idle_timeout_seconds
        if timeout and not self._ending:
            idle = 0.0 if self._turns else self._loop.time() - self._last_read
            if idle >= timeout:
                self._transport.close()
            else:
                self._set_timer(timeout - idle, self._watch_idleness)

    def _watch_writing(self, left_bytes: int | None = None) -> None:
        """Disconnect a peer that has taken none of its replies since the last look."""
        now_left = self._transport.get_write_buffer_size()
        if left_bytes is not None and now_left >= left_bytes:
            self._transport.abort()
        else:
            self._set_timer(self._services.write_timeout_seconds, self._watch_writing, now_left)

    def _end_with(self, error: KvsdError, *, linger: bool = False) -> None:
        """Say what is wrong, behind the replies that are owed, and close."""
        self._lingering = linger
        self._ending = True
        self._reply(_fail(error))
        self._steer_reading()

    def _end(self) -> None:
        self._ending = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._turns or self._login is not None or self._transport.is_closing():
            return
        if self._lingering:
            self._set_timer(_LINGER_SECONDS, self._transport.abort)
        else:
            self._set_timer(self._services.write_timeout_seconds, self._transport.abort)
            self._transport.close()

    def _set_timer(self, seconds: float, callback: Callable[..., None], *args: object) -> None:
        """One timer a session: what it waits for changes, and is one thing at a time."""
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, callback, *args)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _encode_result(result: Result) -> bytes:
    return encode_success(result) if result is None or type(result) is bytes else _fail(result)


def _fail(error: object) -> bytes:
    assert isinstance(error, KvsdError)
    return encode(messages.Fail(error.code, str(error)))


def _out_of_memory() -> Busy:
    return Busy("the server's memory for requests is used up (server.memory_bytes); nothing was done, try again")
