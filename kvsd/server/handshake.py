"""TLS with a stranger: a handshake that fails gets its alert, and its reason the task that waits for the handshake; and
nobody can have the server compute for long before a login.

Owns: what becomes of the loop's TLS object between a failure and the end of the connection, and how it reads before
the login. Must not know sockets, permits or logs.

The loop ends a connection at once whose handshake fails, before it has sent the alert that says why. So it is told that
more is needed from the peer, upon which it sends what there is; the peer then closes, or is cut a moment later.
"""

from __future__ import annotations

import asyncio
import ssl
import weakref
from contextvars import ContextVar
from typing import Any, Final

LINGER_SECONDS: Final = 1.0

_RECORD_HEAD_BYTES: Final = 5
MAX_EMPTY_RECORDS: Final = 32
"""Of a stranger, as OpenSSL bounds some kinds. Others that bring nothing cost 35 microseconds: a read full of messages
that each change the key (KeyUpdate) took 335 ms."""

_current: ContextVar[Handshake] = ContextVar("handshake")


class Handshake:
    """One handshake, made by the task that has the loop do it; that task is cancelled some time after a failure."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.error: ssl.SSLError | None = None
        """Why it has failed, or what came behind it."""
        self.is_with_stranger = True
        """Until somebody has logged in."""
        # The task's context keeps this object.
        self._task = weakref.ref(task)
        _current.set(self)

    def fail(self, error: ssl.SSLError) -> None:
        self.error = error
        if (task := self._task()) is not None:
            task.get_loop().call_later(LINGER_SECONDS, task.cancel)


class HandshakeContext(ssl.SSLContext):
    """A context whose TLS objects know the Handshake that they are made for, if there is one."""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        handshake = _current.get(None)
        if handshake is not None and isinstance(made, _HandshakeObject):
            made.ends = handshake, incoming, outgoing
        return made


class _HandshakeObject(ssl.SSLObject):
    ends: tuple[Handshake, ssl.MemoryBIO, ssl.MemoryBIO] | None = None
    """Until somebody has logged in."""
    _is_done = False
    _missing_bytes = 0
    """Of the record that OpenSSL has a part of."""
    _empty_records = 0

    def do_handshake(self) -> None:
        if self.ends is None or self._is_done:
            return super().do_handshake()
        handshake, incoming, outgoing = self.ends
        if handshake.error is not None:
            incoming.read()  # and thrown away: a close before the peer has read the alert could destroy it
            raise ssl.SSLWantReadError
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            handshake.fail(error)
            if not outgoing.pending:  # the alert was the peer's
                raise
            incoming.read()
            raise ssl.SSLWantReadError from error
        self._is_done = True
        return None

    def read(self, len: int = 1024, buffer: Any = None) -> bytes:  # noqa: A002 - the names are SSLObject's
        """Before the login one record after the other: OpenSSL goes through all that it finds until one brings data."""
        if self.ends is None:
            return super().read(len, buffer)
        handshake, incoming, _ = self.ends
        if not handshake.is_with_stranger:
            self.ends = None
            return super().read(len, buffer)
        unread = memoryview(incoming.read())
        has_record = False
        try:
            while True:
                try:
                    return super().read(len, buffer)
                except ssl.SSLWantReadError:
                    if has_record:
                        self._note_empty(handshake)
                    size = self._size_of_next(unread)
                    if not size:
                        raise
                incoming.write(unread[:size])
                unread = unread[size:]
                has_record = not self._missing_bytes
        finally:
            incoming.write(unread)

    def _size_of_next(self, unread: memoryview) -> int:
        """How much of `unread` belongs to the next record, or to the one that OpenSSL has a part of; 0 nothing yet."""
        if not self._missing_bytes:
            if unread.nbytes < _RECORD_HEAD_BYTES:
                return 0
            self._missing_bytes = _RECORD_HEAD_BYTES + int.from_bytes(unread[3:_RECORD_HEAD_BYTES])
        size = min(self._missing_bytes, unread.nbytes)
        self._missing_bytes -= size
        return size

    def _note_empty(self, handshake: Handshake) -> None:
        self._empty_records += 1
        if self._empty_records > MAX_EMPTY_RECORDS:
            handshake.error = error = ssl.SSLError(ssl.SSL_ERROR_SSL, "too many records without data before a login")
            error.reason = "TOO_MANY_RECORDS_WITHOUT_DATA"
            raise error


HandshakeContext.sslobject_class = _HandshakeObject


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's word for what is wrong, in plain letters."""
    return (error.reason or "no reason given").replace("_", " ").lower()
