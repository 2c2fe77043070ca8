"""One connection's conversation: what was asked, in order, and which reply belongs to whom.

Owns: encoding calls, decoding replies, and giving each reply to the call at the head of the queue. A call that
nobody waits for any more keeps its place, and its reply is dropped: that is all it takes for a cancelled call never
to hand its reply to another. Knows nothing of sockets, threads or asyncio; a shell brings the bytes and the waiters.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from time import monotonic, perf_counter
from typing import Any, Generic, Protocol, TypeVar

from kvsd.client import calls, failures
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.calls import Call
from kvsd.client.settings import ConnectSettings
from kvsd.errors import (
    Conflict,
    ConnectionLost,
    KvsdError,
    ProtocolError,
    RequestError,
    StorageError,
    Timeout,
    UnexpectedMessage,
    from_wire,
)
from kvsd.protocol import engine
from kvsd.protocol.decoder import Decoder
from kvsd.protocol.limits import Limits
from kvsd.protocol.message_reader import Refused
from kvsd.protocol.messages import Fail, Message, encode
from kvsd.types import LARGEST_VALUE_BYTES, MAX_KEY_BYTES

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

REPLY_LIMITS = Limits.of(key_bytes=MAX_KEY_BYTES, value_bytes=LARGEST_VALUE_BYTES)
"""What any server may have stored; memory is taken only as the bytes arrive."""

TLS_ALERT = 0x15


class Waiter(Protocol[R_contra]):
    """Where a call's outcome goes: an `asyncio.Future`, or an `Outcome`."""

    def done(self) -> bool: ...
    def set_result(self, result: R_contra, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Outcome(Generic[R]):
    """The waiter of a shell that blocks: one result or one error."""

    __slots__ = ("_error", "_result")

    def __init__(self) -> None:
        self._error: BaseException | None = None

    def done(self) -> bool:
        return self._error is not None or hasattr(self, "_result")

    def set_result(self, result: R, /) -> None:
        self._result = result

    def set_exception(self, exception: BaseException, /) -> None:
        self._error = exception

    def result(self) -> R:
        """The result, or raises the error; only once it is done."""
        if self._error is not None:
            raise self._error
        return self._result


class Conversation:
    """Calls in the order in which they were sent, each with its waiter. The first must be the authentication."""

    __slots__ = (
        "_authenticated",
        "_begun_at",
        "_decoder",
        "_greets",
        "_heard",
        "_in_place",
        "_server",
        "_settings",
        "_waiting",
        "_welcomed",
    )

    def __init__(self, settings: ConnectSettings, server: Acquaintance) -> None:
        self._settings = settings
        self._server = server
        self._begun_at = monotonic()
        self._decoder = Decoder(REPLY_LIMITS)
        # Any: calls of all kinds of result wait in one queue. `send` pairs each with a waiter of its own kind.
        self._waiting: deque[tuple[Call[Any], Waiter[Any], float]] = deque()
        self._heard = False
        self._greets = False
        self._welcomed = False
        self._in_place = settings.place is None
        self._authenticated = False

    def __len__(self) -> int:
        """How many replies are still to come, those that nobody waits for included."""
        return len(self._waiting)

    def is_ready_for(self, call: Call[R]) -> bool:
        """Tell whether `call` can be sent without preparations."""
        return (self._welcomed or not call.engine) and (self._in_place or not call.placed)

    def preparations(self, call: Call[R]) -> Iterator[Call[None]]:
        """The calls that must be made, each with success and with nothing else under way, before `call` is sent."""
        use = call.placed and not self._in_place
        if (call.engine or use) and not self._welcomed:
            self._greets = True
            yield calls.hello()
            self._greets = False
            self._welcomed = True
            self._server.answered()
        if use:
            assert self._settings.place is not None
            yield calls.use(*self._settings.place)
            self._in_place = True

    def unprepared(self, call: Call[R], error: KvsdError) -> KvsdError:
        """The error of `call`, which was not sent, since one of its preparations ended with `error`."""
        greets, self._greets = self._greets, False
        match error:
            case UnexpectedMessage():
                self._server.refused()
                return self._server.beyond(call)
            case ConnectionLost() if greets and self._authenticated:
                self._server.closed(self._begun_at)
                return self._server.beyond(call) if self._server.is_plain else failures.unsent(error)
            case ConnectionLost() | Timeout():
                return failures.unsent(error)
            case _:
                return error

    def send(self, call: Call[R], waiter: Waiter[R]) -> bytes:
        """The bytes to send for `call`; its reply will settle `waiter`.

        Raises ProtocolError where the call cannot be expressed; it is then not part of the conversation.
        """
        data = encode(call.message)
        self._waiting.append((call, waiter, perf_counter()))
        return data

    def receive(self, data: bytes | memoryview) -> None:
        """Settle the waiters whose replies are in `data`.

        Raises KvsdError where nothing more can come of the connection: a reply makes no sense, or the credentials
        were refused. The waiter concerned has the error too; the shell closes the connection.
        """
        if not self._heard:
            self._heard = True
            if self._settings.disable_tls and data[0] == TLS_ALERT:
                error = failures.speaks_tls(self._settings)
                self._fail_first(error)
                raise error
        self._decoder.feed(data)
        while True:
            try:
                reply = self._decoder.next_message()
            except ProtocolError as error:
                self._fail_first(error)
                raise
            if reply is None:
                return
            self._settle(reply)

    def loss(self, error: OSError | None, *, may_be_applied: bool) -> ConnectionLost:
        """The error for a call whose connection ended before its reply; `error` is None where it ended in order."""
        if self._settings.disable_tls and not self._heard:
            return failures.hung_up_on_plain_client(self._settings, may_be_applied=may_be_applied)
        return failures.lost(self._settings, error, may_be_applied=may_be_applied)

    def end(self, reason: KvsdError | OSError | None, unsent: int = 0) -> None:
        """Fail all calls that still wait; the last `unsent` of them never left this program.

        `reason` is what ended the connection, None where the server closed it in order.
        """
        # Before the credentials were accepted nothing is carried out.
        sent = len(self._waiting) - unsent if self._authenticated else 0
        for position, (_, waiter, _) in enumerate(self._waiting):
            if waiter.done():
                continue
            may_be_applied = position < sent
            if isinstance(reason, KvsdError):
                waiter.set_exception(failures.given_up(self._settings, reason, may_be_applied=may_be_applied))
            else:
                waiter.set_exception(self.loss(reason, may_be_applied=may_be_applied))
        self._waiting.clear()

    def _settle(self, reply: Message | Refused) -> None:
        if not self._waiting:
            raise ProtocolError("the server sent a reply that nobody asked for")
        # It leaves the queue last: where an exception comes in between, `end` still finds it.
        call, waiter, sent_at = self._waiting[0]
        try:
            result = call.read(self._accepted(reply), perf_counter() - sent_at)
        except KvsdError as error:
            if not waiter.done():
                waiter.set_exception(error)
            self._waiting.popleft()
            if not self._authenticated or not isinstance(error, RequestError | StorageError):
                raise
        else:
            self._authenticated = True
            if not waiter.done():
                waiter.set_result(result)
            self._waiting.popleft()

    def _accepted(self, reply: Message | Refused) -> Message:
        """The reply, unless it says that the call was refused."""
        match reply:
            case Fail("UNAUTHENTICATED", ""):
                raise failures.wrong_credentials(self._settings)
            case Fail(code, message):
                raise from_wire(code, message)
            case Refused(error):
                raise error
            case engine.Mismatch(version, text):
                raise Conflict(text, version)
            case _:
                return reply

    def _fail_first(self, error: KvsdError) -> None:
        """What came in place of a reply belongs to the call whose turn it is."""
        if self._waiting:
            _, waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
