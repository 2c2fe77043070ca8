"""When a failed call is tried again, and after which pause.

Owns: the policy, the same for both shells. Knows nothing of time left, sockets or sleeping: the shell compares the
pause with its deadline and does the waiting.
"""

from __future__ import annotations

import os

from kvsd.client.failures import may_come_back
from kvsd.errors import ConnectionLost, KvsdError

MAX_LOSSES = 2
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0


class Retries:
    """The further tries of one call.

    A refusal that is `retryable` (the server is busy or loading, nothing was applied) is tried again for as long as
    there is time. A lost connection is worth two more tries where nothing of the call was sent or the call is
    idempotent. While nobody listens, or a handshake is cut off, it is worth trying for as long as the settings say; a
    connection that cannot be opened for another reason is reported at once.
    """

    __slots__ = ("_idempotent", "_losses", "_pause_seconds")

    def __init__(self, *, idempotent: bool) -> None:
        self._idempotent = idempotent
        self._losses = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS

    def pause_after(self, error: KvsdError, *, connected: bool) -> float | None:
        """Seconds to wait before the next try; None where there is to be none.

        `connected` is false where `error` came of opening a connection.
        """
        if isinstance(error, ConnectionLost):
            self._losses += 1
            if not connected or self._losses > MAX_LOSSES or (error.may_be_applied and not self._idempotent):
                return None
        elif not (error.retryable or may_come_back(error)):
            return None
        pause_seconds = self._pause_seconds
        self._pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        # Between half and all of it, so that clients which failed together do not come back together. One random
        # byte is enough, and spares the import of `random`.
        return pause_seconds * (1 + os.urandom(1)[0] / 255) / 2
