"""One connection's conversation in the native protocol.

Owns: authentication first, what each message means, and every wait that a peer can cause: for its credentials, for
its next request, for it to read. Must not know tables beyond a mailbox, nor how a connection was accepted.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from kvsd.errors import (
    AuthenticationError,
    Busy,
    InternalError,
    KvsdError,
    ProtocolError,
    RequestError,
    TableNotFound,
    UnexpectedMessage,
)
from kvsd.protocol import engine, messages
from kvsd.protocol.administration import AdministrationRequest
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.frames import Time
from kvsd.protocol.limits import BEFORE_AUTHENTICATION, Limits
from kvsd.protocol.message_reader import Refused
from kvsd.protocol.messages import VERSIONS, Message, encode, encode_success
from kvsd.server.administration import Administration
from kvsd.server.authentication import Authenticator, Principal
from kvsd.server.connection import Connection
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.pace import LEAST_BYTES_PER_SECOND, Pace
from kvsd.server.replies import Replies
from kvsd.server.reporting import Reporter, shown
from kvsd.server.timer import Timer
from kvsd.server.translation import TableRequest, operation_of, value_bytes_of
from kvsd.table import request
from kvsd.table.budget import Budget, out_of_memory
from kvsd.table.request import FREE_BYTES, MAX_OPERATIONS, Mailbox, Operation, work_of
from kvsd.types import Address

READ_BUFFER_BYTES: Final = 256 << 10

_FEATURES: Final = frozenset((VERSIONS,))
"""The features that a Hello can ask for."""

_TURN_FRAMES: Final = 1_000
"""After so much work, or MAX_OPERATIONS of the common messages, others have their turn: 1 to 2 ms."""

_LINGER_SECONDS: Final = 1.0
"""After a fatal error what still arrives is thrown away for so long: closing at once could destroy the Fail that
says why, while the peer still sends."""


@dataclass(slots=True)
class Services:
    """What all sessions of a server share."""

    authenticator: Authenticator
    dispatcher: Dispatcher
    administration: Administration
    budget: Budget
    limits: Limits
    reporter: Reporter
    authenticate_timeout_seconds: float
    idle_timeout_seconds: float
    write_timeout_seconds: float
    sessions: set[Session] = field(default_factory=set)
    # A read is taken out of it before the next connection's turn.
    read_buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_BUFFER_BYTES)))


class _Asked(NamedTuple):
    mailbox: Mailbox | KvsdError
    operation: Operation
    value_bytes: int


class Session(Connection):
    """A BufferedProtocol, since streams cost 15 to 40 %, and a plain Protocol under uvloop and TLS two thirds."""

    def __init__(self, services: Services) -> None:
        super().__init__()
        self._services = services
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder(BEFORE_AUTHENTICATION)
        self._read_buffer = services.read_buffer[: BEFORE_AUTHENTICATION.message_bytes]
        self._replies = Replies(services.budget, self._progressed)
        self._principal: Principal | None = None
        self._table = DEFAULT_TABLE
        self._features: frozenset[str] = frozenset()
        self._mailbox: Mailbox | KvsdError
        self._transport: asyncio.Transport
        self._errand: asyncio.Task[None] | None = None
        """A login or a command under way."""
        self._taking: asyncio.Handle | None = None
        self._command: AdministrationRequest | None = None
        """It begins when all before it is answered, and nothing behind it is taken before it is."""
        self._input_held_bytes = 0
        self._last_read = 0.0
        self._received_bytes = 0
        self._watched = 0
        """The unfinished message whose pace is looked at; 0 none."""
        self._input_pace = Pace(min(services.idle_timeout_seconds or math.inf, services.write_timeout_seconds))
        self._output_pace = Pace(services.write_timeout_seconds)
        self._timer = Timer()
        """The timer of the one wait that is bounded at a time."""
        self._reading_paused = False
        self._read_full = False
        """The last read has filled the buffer. uvloop would read 32 times before others have their turn."""
        self._behind = False
        """The decoder may hold messages that there was no room to take."""
        self._ending = False
        """Nothing more is read; the connection closes when all that was read is answered."""
        self._lingering = False
        """What still arrives is read and thrown away meanwhile."""

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # what it is; uvloop's class does not say so
        self._replies.open(self._transport)
        self._peer = transport.get_extra_info("peername")
        self._services.sessions.add(self)
        self._timer.set(self._services.authenticate_timeout_seconds, self._refuse_late)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._ending:
            return
        self._last_read = self._loop.time()
        self._received_bytes += nbytes
        self._read_full = nbytes == len(self._read_buffer)
        self._decoder.feed(self._read_buffer[:nbytes])
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
        self._replies.pause()
        self._watch_writing()
        self._go_on()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._watch_input()
        self._replies.resume()
        if not self._replies.is_paused:
            self._output_pace.reset()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ending = True
        self._timer.stop()
        for handle in (self._errand, self._taking):
            if handle is not None:
                handle.cancel()
        self._services.budget.release(self._input_held_bytes)
        self._replies.close()
        self._services.sessions.discard(self)
        user = None if self._principal is None else self._principal.username
        self._services.reporter.debug("connection ended", peer=self._peer, user=user, error=exc and str(exc))
        # The loop's TLS object keeps our methods: this cycle would keep the memory of a lost connection, up to a whole
        # value, until the garbage collector comes by. Nothing uses it from here on.
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
        self.on_speaking()
        message = self._decoder.next_message()
        match message:
            case None:
                return
            case messages.Authenticate(username, password):
                pass
            case _:
                self._end_with(AuthenticationError("the first message must be Authenticate"))
                return
        self._timer.stop()
        principal = self._services.authenticator.remembered(username, password)
        if principal is not None:
            self._admit(principal)
        else:
            self._behind = True
            self._errand = self._loop.create_task(self._verify(username, password))

    async def _verify(self, username: str, password: str) -> None:
        try:
            principal = await self._services.authenticator.verify(username, password)
        except AuthenticationError:
            # Exactly the Rust program's answer, with no text: that could only help who is guessing.
            self._end_with(AuthenticationError(), username)
        except Busy as error:
            self._end_with(error)
        except Exception as error:
            self._end_with_fault(error)
        else:
            if not self._transport.is_closing():
                self._admit(principal)
        self._errand = None
        self._replies.send()

    def _admit(self, principal: Principal) -> None:
        self.on_admitted()
        self._principal = principal
        self._mailbox = self._services.dispatcher.mailbox(principal, DEFAULT_TABLE)
        self._decoder.limits = self._services.limits
        self._read_buffer = self._services.read_buffer
        # Not 0: behind TLS that asks for a pause when nothing is unsent.
        self._transport.set_write_buffer_limits(high=1, low=0)
        self._watch_input()
        self._replies.say(encode_success(None))

    def _refuse_late(self) -> None:
        milliseconds = round(self._services.authenticate_timeout_seconds * 1000)
        self._end_with(AuthenticationError(f"no Authenticate within {milliseconds} ms"))
        self._replies.send()

    # Messages

    def _take_messages(self) -> None:
        """Start on what has arrived, as far as there is room: one Request for each run of table operations."""
        self._taking = None
        self._behind = False
        if self._input_held_bytes:
            self._services.budget.release(self._input_held_bytes)
            self._input_held_bytes = 0
        try:
            if self._principal is None:
                self._take_credentials()
            if self._principal is not None:
                self._take_operations()
            if self._decoder.held_bytes > FREE_BYTES:
                self._hold_input()
        except ProtocolError as error:
            self._end_with(error)
        except Exception as error:
            self._end_with_fault(error)
        if self._replies.is_due:
            self._replies.send()
        self._go_on()

    def _take_operations(self) -> None:
        """Take a bounded amount of work: others have their turn before the rest is looked at."""
        operations: list[Operation] = []
        value_bytes = 0
        self._decoder.allow(_TURN_FRAMES)
        try:
            for _ in range(MAX_OPERATIONS):
                message = self._decoder.next_message()
                match message:
                    case messages.Get():
                        operations.append(request.Get(message.key))
                    case messages.Set():
                        operations.append(request.Set(message.key, message.value))
                        value_bytes += len(message.value)
                    case messages.Delete():
                        operations.append(request.Delete(message.key))
                    case None:
                        self._behind = self._read_full or self._decoder.is_tired
                        self._read_full = False
                        return
                    case _:
                        asked = self._translate(message)
                        if isinstance(asked, _Asked) and asked.mailbox is self._mailbox:
                            operations.append(asked.operation)
                            value_bytes += asked.value_bytes
                            continue
                        run, run_bytes, operations, value_bytes = operations, value_bytes, [], 0
                        self._ask(self._mailbox, run, run_bytes)
                        if isinstance(asked, _Asked):
                            self._ask(asked.mailbox, [asked.operation], asked.value_bytes)
                        else:
                            self._answer(asked)
                        if self._is_held_up:
                            break
            self._behind = True
        finally:
            self._ask(self._mailbox, operations, value_bytes)

    def _translate(self, message: Message | Refused) -> _Asked | Message | Refused:
        """What an engine message asks of which table; the message itself where it asks nothing of a table."""
        if not isinstance(message, TableRequest):
            return message
        try:
            operation = operation_of(
                message, self._services.limits, time.time_ns() // 1000, versions=VERSIONS in self._features
            )
        except RequestError as error:
            return Refused(error)
        self._decoder.charge(work_of(operation))
        return _Asked(self._mailbox_of(message.namespace, message.table), operation, value_bytes_of(message))

    def _mailbox_of(self, namespace: str | None, table: str | None) -> Mailbox | KvsdError:
        """The mailbox of a table; what is None is the session's."""
        if namespace is None and table is None:
            return self._mailbox
        assert self._principal is not None
        return self._services.dispatcher.mailbox(self._principal, self._table.resolve(namespace, table))

    def _use(self, name: TableName) -> KvsdError | None:
        """Make `name` the session's table; the error where there is none."""
        assert self._principal is not None
        mailbox = self._services.dispatcher.mailbox(self._principal, name)
        if isinstance(mailbox, TableNotFound):
            return mailbox
        self._table, self._mailbox = name, mailbox
        return None

    def _answer(self, message: Message | Refused) -> None:
        """Reply to what needs no table."""
        match message:
            case Refused():
                self._replies.fail(message.error)
            case messages.Ping():
                self._replies.say(encode(messages.Ping(message.client_time, Time(time.time_ns()))))
            case messages.Hello(version, features):
                self._features = _FEATURES.intersection(features)
                version = min(version, messages.PROTOCOL_VERSION)
                self._replies.say(encode(messages.Welcome(version, tuple(sorted(self._features)))))
            case engine.Use(namespace, table):
                error = self._use(TableName(namespace, table))
                if error is None:
                    self._replies.say(encode_success(None))
                else:
                    self._replies.fail(error)
            case _ if isinstance(message, AdministrationRequest):
                self._command = message
            case _:
                self._replies.fail(UnexpectedMessage(f"{type(message).__name__} is not expected here"))

    def _ask(self, mailbox: Mailbox | KvsdError, operations: Sequence[Operation], value_bytes: int) -> None:
        """Pass `operations`, which carry `value_bytes`, to a table as one Request."""
        if not operations:
            return
        if isinstance(mailbox, KvsdError):
            self._replies.fail(mailbox, len(operations))
            return
        self._replies.ask(mailbox, operations, value_bytes)

    def _hold_input(self) -> None:
        """Count a half-received value; where the budget has no room, its bytes are dropped and it is refused."""
        unread_bytes = self._decoder.held_bytes - FREE_BYTES
        if self._services.budget.hold(unread_bytes):
            self._input_held_bytes = unread_bytes
            if self._principal is not None and self._decoder.unfinished not in (0, self._watched):
                self._watch_input()
            return
        self._decoder.refuse_incomplete(out_of_memory())
        # What is left in memory is at most one read, unless the message is made of many parts.
        if not self._behind and self._decoder.held_bytes > READ_BUFFER_BYTES:
            self._end_with(out_of_memory())

    async def _carry_out(self, command: AdministrationRequest) -> None:
        try:
            reply = await self._services.administration.carry_out(command, self._table)
        except Exception as error:
            self._end_with_fault(error)
            self._replies.send()
        else:
            self._replies.say_alone(reply)
        self._command = self._errand = None
        self._go_on()

    # Waiting and ending

    @property
    def _is_held_up(self) -> bool:
        """Whether nothing more should be taken before something has ended."""
        return self._errand is not None or self._command is not None or self._replies.is_held_up

    def _progressed(self) -> None:
        """Some replies have left. Nothing waits for that unless reading is paused or the end is near."""
        if self._reading_paused or self._ending:
            self._go_on()

    def _go_on(self) -> None:
        """Something may have become possible: taking what is held, reading, or closing."""
        if self._transport.is_closing():
            return
        if self._command is not None and self._errand is None and self._replies.is_done:
            self._errand = self._loop.create_task(self._carry_out(self._command))
        is_held_up = self._is_held_up
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

    def _watch_input(self) -> None:
        """Close a peer that sends nothing, and one whose message does not come on."""
        self._timer.stop()
        if self._ending:
            return
        now, timeout = self._loop.time(), self._services.idle_timeout_seconds
        left = math.inf
        if timeout:
            is_busy = self._replies.turns or self._command is not None
            left = timeout if is_busy else self._last_read + timeout - now
            if left <= 0:
                self._close()
                return
        unfinished = 0 if self._reading_paused else self._decoder.unfinished
        if unfinished != self._watched:
            self._watched = unfinished
            self._input_pace.reset()
        if unfinished:
            pace_left = self._input_pace.left_seconds(now, self._received_bytes)
            if pace_left <= 0:
                self._end_with(ProtocolError(f"a message came by less than {LEAST_BYTES_PER_SECOND} bytes a second"))
                self._replies.send()
                return
            left = min(left, pace_left)
        if left < math.inf:
            self._timer.set(left, self._watch_input)

    def _watch_writing(self) -> None:
        """Disconnect a peer that does not take its replies, or takes them too slowly."""
        left_bytes = self._transport.get_write_buffer_size() + self._replies.unsent_bytes
        left = self._output_pace.left_seconds(self._loop.time(), self._replies.written_bytes - left_bytes)
        if left <= 0:
            self._transport.abort()
        else:
            self._timer.set(left, self._watch_writing)

    def _end_with(self, error: KvsdError, username: str = "") -> None:
        """Say what is wrong, behind the replies that are owed, and close; `username` is who wanted to log in."""
        self._services.reporter.info(
            "login refused" if self._principal is None else "connection ended for an error",
            peer=str(Address(*self._peer[:2])) if self._peer else "gone",
            user=shown(username) if self._principal is None else self._principal.username,
            error=shown(str(error)) or "wrong username or password",
        )
        self._ending = self._lingering = True
        self._behind = False
        self._replies.fail(error)

    def _end_with_fault(self, error: Exception) -> None:
        """A fault of ours concerns this connection only."""
        self._services.reporter.critical("internal fault in a session", exc_info=error)
        self._end_with(InternalError("internal fault; the server's log has the details"))

    def _close_if_done(self) -> None:
        if self._behind or self._errand is not None or self._command is not None or not self._replies.is_done:
            return
        # Not at once: the stdlib loop's transport does not stand a close within resume_writing.
        self._timer.set(0, self._linger if self._lingering else self._close)

    def _linger(self) -> None:
        self._timer.set(_LINGER_SECONDS, self._close)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        """Close once the transport has sent what it holds, and cut a peer that does not take even that."""
        self._timer.set(self._services.write_timeout_seconds, self._transport.abort)
        self._transport.close()
