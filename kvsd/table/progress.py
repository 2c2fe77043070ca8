"""How far a recovery has come, for whoever waits for it.

Owns: two figures. Must not know what is recovered.
"""

from __future__ import annotations


class RecoveryProgress:
    """Bytes of the log, not of what is read: a hint stands for its whole segment. May be read by any thread."""

    __slots__ = ("bytes_done", "bytes_total")

    def __init__(self) -> None:
        self.bytes_done = 0
        self.bytes_total = 0
        """0 until the segments have been found."""
