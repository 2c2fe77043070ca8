"""Knowledge of a server that all connections of a client share: whether it is a plain one.

Owns: how a server's answer to Hello is understood, and for how long. Knows nothing of connections.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final

from kvsd.client import failures
from kvsd.client.calls import Call
from kvsd.client.settings import ConnectSettings
from kvsd.errors import KvsdError
from kvsd.protocol.messages import Delete, Get, Set

PLAIN_SECONDS: Final = 60.0
"""The time for which a server counts as plain: another program may be started in its place."""

CLOSES_IN_ANSWER: Final = 2
"""After so many in a row, each on a connection begun after the one before, it is the server's answer to Hello; one may
be a restart, which ends all connections that there are."""


class Acquaintance:
    """Nothing is known at first."""

    __slots__ = ("_closed_at", "_closes", "_plain_until", "_settings")

    def __init__(self, settings: ConnectSettings) -> None:
        self._settings = settings
        self._closes = 0
        self._closed_at = 0.0
        self._plain_until = 0.0

    @property
    def is_plain(self) -> bool:
        """True while it is known not to understand Hello."""
        return self._plain_until > 0 and monotonic() < self._plain_until

    # Any: a call of whatever result.
    def check(self, call: Call[Any]) -> None:
        """Raises UnexpectedMessage or InvalidKey where the server is known to be too plain for `call`."""
        if (call.engine or (call.placed and self._settings.place is not None)) and self.is_plain:
            raise self.beyond(call)

    def answered(self) -> None:
        """Hello, with a Welcome."""
        self._closes = 0

    def refused(self) -> None:
        """Hello, with UNEXPECTED_MESSAGE."""
        self._plain_until = monotonic() + PLAIN_SECONDS

    def closed(self, begun_at: float) -> None:
        """The connection that was begun then, in answer to Hello, without a word, as the Rust program does."""
        if begun_at < self._closed_at:
            return
        self._closed_at = monotonic()
        self._closes += 1
        if self._closes >= CLOSES_IN_ANSWER:
            self._closes = 0
            self.refused()

    def beyond(self, call: Call[Any]) -> KvsdError:
        """The error of `call`, which a plain server cannot carry out."""
        if self._settings.place is None and isinstance(call.message, Get | Set | Delete):
            return failures.key_for_no_plain_server(self._settings)
        return failures.plain_server(self._settings)
