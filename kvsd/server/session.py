"""One connection's conversation in the native protocol.

Owns: authentication first, replies in request order, and every wait that a peer can cause: for its credentials, for
its next request, for it to read. Must not know tables beyond a mailbox, nor how a connection was accepted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
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
from kvsd.table.budget import Budget, out_of_memory
from kvsd.table.request import FREE_BYTES, MAX_OPERATIONS, Operation, Origin, Request, Result

READ_BUFFER_BYTES: Final = 256 << 10

_MAX_TURNS: Final = 4
"""Stretches of messages whose replies are outstanding; then nothing is taken from the peer until some have left."""

_OPERATION_BYTES: Final = 128
"""What an operation keeps in memory beside its value."""

_WRITE_BYTES: Final = 64 << 10
"""Handed to the transport at once. Behind TLS two such writes may lie unsent before it asks for a pause, so this bounds
what the budget does not see."""

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

    @property
    def is_back(self) -> bool:
        return self.request is None or self.request.future.done()


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
        self._taking: asyncio.Handle | None = None
        self._putting: asyncio.Task[None] | None = None
        self._unput: deque[Request] = deque()
        self._unsent = memoryview(b"")
        """Replies that the transport has not taken yet."""
        self._unsent_held_bytes = 0
        self._input_held_bytes = 0
        self._last_read = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._behind = False
        """The decoder may hold messages that there was no room to take."""
        self._rest_is_due = False
        """The first turn's Request was cut, and the part that came has been written."""
        self._ending = False
        """Nothing more is read; the connection closes when all that was read is answered."""
        self._lingering = False
        """What still arrives is read and thrown away meanwhile."""

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # what it is; uvloop's class does not say so
        self._peer = transport.get_extra_info("peername")
        self._services.sessions.add(self)
        self._set_timer(self._services.authenticate_timeout_seconds, self._refuse_late)

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = self._services.read_buffer
        return buffer if self._principal is not None else buffer[: BEFORE_AUTHENTICATION.message_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        self._last_read = self._loop.time()
        self._decoder.feed(self._services.read_buffer[:nbytes])
        self._take_messages()

    def eof_received(self) -> bool:
        """A peer that has ended its side (it can without TLS only) still gets the replies that it is owed."""
        self._ending = True
        self._lingering = False
        if self._transport.get_extra_info("sslcontext") is not None:
            self._close()
            return False
        self._go_on()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._watch_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._transport.is_closing():
            return
        self._stop_timer()
        self._watch_idleness()
        self._write_unsent()
        self._send_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        for handle in (self._timer, self._login, self._taking, self._putting):
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
        self._services.reporter.debug("connection ended", peer=self._peer, user=user, error=exc and str(exc))
        # The loop's TLS object keeps our methods: this cycle would keep the memory of a lost connection, up to a whole
        # value, until the garbage collector comes by. Nothing is written from here on.
        self._writing_paused = True
        del self._transport
        super().connection_lost(exc)

    # Called by the server

    def drain(self) -> None:
        """Read no more; close when all that was read is answered."""
        self._ending = True
        self._go_on()

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
            self._behind = True
            self._login = self._loop.create_task(self._verify(username, password))

    async def _verify(self, username: str, password: str) -> None:
        try:
            principal = await self._services.authenticator.verify(username, password)
        except AuthenticationError:
            # Exactly the Rust program's answer, with no text: that could only help who is guessing.
            self._end_with(AuthenticationError())
        except Busy as error:
            self._end_with(error)
        except Exception as error:
            self._end_with_fault(error)
        else:
            if not self._transport.is_closing():
                self._admit(principal)
        self._login = None
        self._send_ready()

    def _admit(self, principal: Principal) -> None:
        self._principal = principal
        self._table = self._services.dispatcher.table(principal, DEFAULT_TABLE)
        self._decoder.limits = self._services.limits
        # Not 0: behind TLS that asks for a pause when nothing is unsent.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._watch_idleness()
        self._reply(encode_success(None))

    def _refuse_late(self) -> None:
        milliseconds = round(self._services.authenticate_timeout_seconds * 1000)
        self._end_with(AuthenticationError(f"no Authenticate within {milliseconds} ms"))
        self._send_ready()

    # Messages

    def _take_messages(self) -> None:
        """Start on what has arrived, as far as there is room: one Request for each run of table operations."""
        self._taking = None
        self._behind = False
        is_large = self._decoder.buffered_bytes > FREE_BYTES
        if self._input_held_bytes:
            self._services.budget.release(self._input_held_bytes)
            self._input_held_bytes = 0
        try:
            if self._principal is None:
                self._take_credentials()
            if self._principal is not None:
                self._take_operations(is_large=is_large)
        except ProtocolError as error:
            self._end_with(error)
        except Exception as error:
            self._end_with_fault(error)
        else:
            if is_large:
                self._hold_input()
        self._send_ready()

    def _take_operations(self, *, is_large: bool) -> None:
        """Take a bounded number of messages: others have their turn before the rest is looked at."""
        operations: list[Operation] = []
        try:
            for _ in range(MAX_OPERATIONS):
                message = self._decoder.next_message()
                match message:
                    case messages.Get():
                        operations.append(request.Get(message.key))
                    case messages.Set():
                        operations.append(request.Set(message.key, message.value))
                    case messages.Delete():
                        operations.append(request.Delete(message.key))
                    case None:
                        return
                    case _:
                        run, operations = operations, []
                        self._ask(run, is_large=is_large)
                        self._answer(message)
                        if len(self._turns) >= _MAX_TURNS:
                            break
            self._behind = True
        finally:
            self._ask(operations, is_large=is_large)

    def _answer(self, message: Message | Refused) -> None:
        """Reply to what needs no table."""
        match message:
            case Refused():
                self._reply(_fail(message.error))
            case messages.Ping():
                self._reply(encode(messages.Ping(message.client_time, Time(time.time_ns()))))
            case messages.Hello():
                self._reply(encode(messages.Welcome(min(message.version, messages.PROTOCOL_VERSION), ())))
            case _:
                self._reply(_fail(UnexpectedMessage(f"{type(message).__name__} is not expected here")))

    def _ask(self, operations: Sequence[Operation], *, is_large: bool) -> None:
        """Pass `operations` to the table as one Request; the replies take their turn."""
        if not operations:
            return
        if not isinstance(self._table, TableActor):
            assert self._table is not None
            self._reply(_fail(self._table) * len(operations))
            return
        held_bytes = _OPERATION_BYTES * len(operations)
        if is_large:
            held_bytes += sum(len(operation.value) for operation in operations if isinstance(operation, request.Set))
        if held_bytes <= FREE_BYTES:
            held_bytes = 0
        elif not self._services.budget.hold(held_bytes):
            self._reply(_fail(out_of_memory()) * len(operations))
            return
        turn = _Turn(self._request(operations), held_bytes)
        self._turns.append(turn)
        self._put(turn)

    def _request(self, operations: Sequence[Operation]) -> Request:
        return Request(operations, self._origin, self._loop.create_future())

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
            else:
                return
        self._unput.append(asked)

    async def _put_waiting(self, mailbox: asyncio.Queue[Request | None]) -> None:
        """The mailbox is full: wait for room, while nothing is read from this peer."""
        while self._unput:
            await mailbox.put(self._unput[0])
            self._unput.popleft()
        self._putting = None
        self._go_on()

    def _hold_input(self) -> None:
        """Count a half-received value; where the budget has no room, its bytes are dropped and it is refused."""
        unread_bytes = self._decoder.buffered_bytes - FREE_BYTES
        if unread_bytes <= 0:
            return
        if self._services.budget.hold(unread_bytes):
            self._input_held_bytes = unread_bytes
            return
        self._decoder.refuse_incomplete(out_of_memory())
        # What is left in memory is at most one read, unless the message is made of many parts.
        if self._decoder.buffered_bytes > READ_BUFFER_BYTES:
            self._end_with(out_of_memory())

    # Replies

    def _reply(self, reply: bytes) -> None:
        """Give `reply` its turn behind all that are owed; `_send_ready` sends it."""
        if not self._turns or self._turns[-1].request is not None:
            self._turns.append(_Turn(None, 0))
        self._turns[-1].reply += reply

    def _send_ready(self, _: object = None) -> None:
        """Write all replies whose turn has come, with one write."""
        if self._writing_paused or self._transport.is_closing():
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
                    turn.request = self._request(asked.operations[len(results) :])
                    self._rest_is_due = True
                    break
            else:
                break
            held_bytes += turn.held_bytes
            turns.popleft()
        if parts:
            self._write(parts[0] if len(parts) == 1 else b"".join(parts), held_bytes)
        self._go_on()

    def _write(self, reply: bytes | bytearray, held_bytes: int) -> None:
        self._unsent_held_bytes = held_bytes
        if len(reply) <= _WRITE_BYTES:
            self._transport.write(reply)
        else:
            self._unsent = memoryview(reply)
        self._write_unsent()

    def _write_unsent(self) -> None:
        while self._unsent and not self._writing_paused:
            piece, self._unsent = self._unsent[:_WRITE_BYTES], self._unsent[_WRITE_BYTES:]
            self._transport.write(piece)
        if self._unsent_held_bytes and not self._writing_paused:
            self._services.budget.release(self._unsent_held_bytes)
            self._unsent_held_bytes = 0

    def _go_on(self) -> None:
        """Replies have left, or a part of one: what waited for that has its turn."""
        if self._transport.is_closing():
            return
        if self._rest_is_due:
            self._ask_again()
        is_held_up = (
            self._writing_paused
            or self._origin.is_cut
            or self._login is not None
            or self._putting is not None
            or len(self._turns) >= _MAX_TURNS
        )
        if self._behind and self._taking is None and not is_held_up:
            self._taking = self._loop.call_soon(self._take_messages)
        # Read from the peer only while everything that it causes has room.
        pause = (is_held_up or self._behind or self._ending) and not self._lingering
        if pause != self._reading_paused:
            self._reading_paused = pause
            if pause:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
        if self._ending:
            self._close_if_done()

    def _ask_again(self) -> None:
        """After a Request was cut: ask for the rest once what came has been written and all behind it is back."""
        if self._writing_paused or not all(turn.is_back for turn in islice(self._turns, 1, None)):
            return
        self._rest_is_due = self._origin.is_cut = False
        for turn in self._turns:
            asked = turn.request
            if asked is None:
                continue
            if not asked.future.done():
                self._put(turn)
            elif not asked.results:
                turn.request = self._request(asked.operations)
                self._put(turn)

    # Waiting and ending

    def _watch_idleness(self) -> None:
        timeout = self._services.idle_timeout_seconds
        if timeout and not self._ending:
            idle = 0.0 if self._turns else self._loop.time() - self._last_read
            if idle >= timeout:
                self._close()
            else:
                self._set_timer(timeout - idle, self._watch_idleness)

    def _watch_writing(self, left_bytes: int | None = None) -> None:
        """Disconnect a peer that has taken none of its replies since the last look."""
        now_left = self._transport.get_write_buffer_size() + len(self._unsent)
        if left_bytes is not None and now_left >= left_bytes:
            self._transport.abort()
        else:
            self._set_timer(self._services.write_timeout_seconds, self._watch_writing, now_left)

    def _end_with(self, error: KvsdError) -> None:
        """Say what is wrong, behind the replies that are owed, and close."""
        self._ending = self._lingering = True
        self._behind = False
        self._reply(_fail(error))

    def _end_with_fault(self, error: Exception) -> None:
        """A fault of ours concerns this connection only."""
        self._services.reporter.critical("internal fault in a session", exc_info=error)
        self._end_with(InternalError("internal fault; the server's log has the details"))

    def _close_if_done(self) -> None:
        if self._turns or self._behind or self._login is not None or self._writing_paused:
            return
        # Not at once: the stdlib loop's transport does not stand a close within resume_writing.
        self._set_timer(0, self._linger if self._lingering else self._close)

    def _linger(self) -> None:
        self._set_timer(_LINGER_SECONDS, self._close)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        """Close once the transport has sent what it holds, and cut a peer that does not take even that."""
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
