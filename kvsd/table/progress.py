"""Progress of a recovery, for whoever waits for it, and the end of one that nobody waits for any more.

Owns: two figures and a flag. Must not know what is recovered.
"""

from __future__ import annotations


class RecoveryAbandoned(Exception):
    """Nobody waits for this recovery any more. It has changed nothing that a later one minds."""


class RecoveryProgress:
    """Bytes of the log, not of what is read: a hint stands for its whole segment. May be used by any thread."""

    __slots__ = ("_is_abandoned", "bytes_done", "bytes_total")

    def __init__(self) -> None:
        self.bytes_done = 0
        self.bytes_total = 0
        """0 until the segments have been found."""
        self._is_abandoned = False

    def abandon(self) -> None:
        """Have the recovery end at its next `check`."""
        self._is_abandoned = True

    def check(self) -> None:
        """Raise RecoveryAbandoned after `abandon`. For every few milliseconds, where files may be left as they are."""
        if self._is_abandoned:
            raise RecoveryAbandoned
