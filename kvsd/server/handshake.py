"""A TLS handshake that fails: its alert reaches the peer, and its reason the task that waits for the handshake.

Owns: what becomes of the loop's TLS object between a failure and the end of the connection. Must not know sockets,
permits or logs.

The loop ends a connection at once whose handshake fails, before it has sent the alert that says why. So it is told that
more is needed from the peer, upon which it sends what there is; the peer then closes, or is cut a moment later.
"""

from __future__ import annotations

import asyncio
import ssl
import weakref
from contextvars import ContextVar
from typing import Final

LINGER_SECONDS: Final = 1.0

_current: ContextVar[Handshake] = ContextVar("handshake")


class Handshake:
    """One handshake, made by the task that has the loop do it; that task is cancelled some time after a failure."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.error: ssl.SSLError | None = None
        """Why it has failed."""
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

    def do_handshake(self) -> None:
        if self.ends is None:
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
        self.ends = None
        return None


HandshakeContext.sslobject_class = _HandshakeObject


def reason_of(error: ssl.SSLError) -> str:
    """OpenSSL's word for what is wrong, in plain letters."""
    return (error.reason or "no reason given").replace("_", " ").lower()
