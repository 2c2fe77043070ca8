"""One blocking connection to a server.

Owns: the socket, its TLS handshake, and the one call that is on its way. Knows nothing of retries, of other
connections or of threads: whoever holds it uses it alone.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from time import monotonic
from typing import TypeVar

from kvsd.client import failures, forks
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.addresses import Endpoint, addresses
from kvsd.client.calls import Call, authenticate, most_demanding
from kvsd.client.conversation import Conversation, Outcome
from kvsd.client.readable import is_readable
from kvsd.client.settings import ConnectSettings
from kvsd.client.tls import names_offered
from kvsd.errors import KvsdError

R = TypeVar("R")

READ_BYTES = 256 * 1024


class Connection:
    """Open from the start; the credentials go out with, or before, the first call.

    Deadlines are points of `time.monotonic`. Raises as `Connection.run`, and CannotConnect or Timeout where no
    connection could be opened.
    """

    def __init__(
        self, settings: ConnectSettings, server: Acquaintance, context: ssl.SSLContext | None, deadline: float
    ) -> None:
        self._settings = settings
        self._opening_deadline = min(deadline, monotonic() + settings.connect_timeout_seconds)
        self._opening_seconds = self._opening_deadline - monotonic()
        self._conversation = Conversation(settings, server)
        self._welcome: Outcome[None] = Outcome()
        self._greeting = self._conversation.send(authenticate(settings.username, settings.password), self._welcome)
        self._sent_bytes = 0
        self._socket: socket.socket | None = None
        self.usable = False
        """Authenticated, and no reply is due: another call may be made."""
        forks.watch(self)
        try:
            self._open(context)
        except BaseException:
            self.close()
            raise

    def run(self, call: Call[R], deadline: float) -> R:
        """Send `call` and wait for its reply.

        Raises what the server answered; ConnectionLost, Timeout, whose `may_be_applied` is false where not one byte
        of the call was sent; ProtocolError. Only `usable` tells whether the connection survived.
        """
        return self.run_all(deadline, [call])[0].result()

    def run_all(self, deadline: float, calls: Sequence[Call[R]]) -> list[Outcome[R]]:
        """The same for several calls, sent at once; what the server answered to each is in its Outcome."""
        demanding = most_demanding(calls)
        try:
            for first in self._conversation.preparations(demanding):
                self._exchange([first], deadline)[0].result()
        except KvsdError as error:
            raise self._conversation.unprepared(demanding, error) from error.__cause__
        return self._exchange(calls, deadline)

    def _exchange(self, calls: Sequence[Call[R]], deadline: float) -> list[Outcome[R]]:
        self.usable = False
        self._sent_bytes = 0
        outcomes: list[Outcome[R]] = [Outcome() for _ in calls]
        try:
            if self._greeting and not (calls[0].early and len(calls) == 1):
                self._transmit(b"", deadline)
                self._await(self._welcome, deadline)
            sent = [self._conversation.send(call, outcome) for call, outcome in zip(calls, outcomes, strict=True)]
            self._transmit(b"".join(sent), deadline)
            for outcome in outcomes:
                self._await(outcome, deadline)
        except TimeoutError:
            if not self._welcome.done():
                raise failures.no_handshake(self._settings, self._opening_seconds) from None
            raise failures.no_reply(self._settings, may_be_applied=self._sent_bytes > 0) from None
        self.usable = True
        return outcomes

    def is_stale(self) -> bool:
        """Whether the server has closed an idle connection, or said something that nobody asked for."""
        return is_readable(self._connected.fileno())

    def close(self) -> None:
        """Without a TLS goodbye: messages carry their own lengths, so a cut cannot pass for an end."""
        self.usable = False
        if self._socket is not None:
            self._socket.close()

    def after_fork(self) -> None:
        """Whoever used it before the fork finds it ended; the parent does not notice."""
        self.usable = False
        if self._socket is not None and self._socket.fileno() >= 0:
            forks.cut_off(self._socket.fileno())

    @property
    def _connected(self) -> socket.socket:
        assert self._socket is not None, "the constructor has opened it, or raised"
        return self._socket

    def _open(self, context: ssl.SSLContext | None) -> None:
        settings = self._settings
        try:
            endpoints = addresses(settings.host, settings.port, self._opening_deadline)
        except TimeoutError:
            raise failures.no_name(settings, self._opening_seconds) from None
        except (OSError, ValueError) as error:
            raise failures.cannot_open(settings, error) from error
        try:
            plain = self._connect(endpoints)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                plain.settimeout(_remaining(self._opening_deadline))
                encrypted = self._socket = context.wrap_socket(
                    plain, server_hostname=settings.host, do_handshake_on_connect=False
                )
                encrypted.do_handshake()
        except TimeoutError:
            raise failures.no_handshake(settings, self._opening_seconds) from None
        except (OSError, ValueError) as error:
            raise failures.cannot_open(settings, error, names_offered(settings, error)) from error

    def _connect(self, endpoints: list[Endpoint]) -> socket.socket:
        """A connection to the first address that takes one; each has an equal share of the time that is left.

        Raises TimeoutError or OSError, as the last address has it.
        """
        for left in range(len(endpoints), 0, -1):
            family, address = endpoints[-left]
            try:
                plain = self._socket = socket.socket(family, socket.SOCK_STREAM)
                plain.settimeout(_remaining(self._opening_deadline) / left)
                plain.connect(address)
            except OSError:
                self.close()
                if left == 1:
                    raise
            else:
                return plain
        raise AssertionError("a look-up finds an address, or raises")

    def _transmit(self, request: bytes, deadline: float) -> None:
        """Send `request`, behind the greeting if that has not gone out.

        A broken connection is not reported here: the reply that says why it was closed may be there to be read.
        """
        data = memoryview(self._greeting + request if self._greeting else request)
        greeting_bytes, self._greeting = len(self._greeting), b""
        sent = 0
        try:
            while sent < len(data):
                self._connected.settimeout(self._patience(deadline))
                sent += self._connected.send(data[sent:])
                self._sent_bytes = max(sent - greeting_bytes, 0)
        except TimeoutError:
            raise
        except OSError:
            return

    def _await(self, outcome: Outcome[R], deadline: float) -> None:
        """Receive until `outcome` is there."""
        while not outcome.done():
            error: OSError | None = None
            data = b""
            self._connected.settimeout(self._patience(deadline))
            try:
                data = self._connected.recv(READ_BYTES)
            except TimeoutError:
                raise
            except OSError as reason:
                error = reason
            if not data:
                raise self._conversation.loss(error, may_be_applied=self._sent_bytes > 0) from error
            self._conversation.receive(data)

    def _patience(self, deadline: float) -> float:
        """Seconds for the next step; the server's answer to the credentials is part of the opening."""
        return _remaining(deadline if self._welcome.done() else min(deadline, self._opening_deadline))


def _remaining(deadline: float) -> float:
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
