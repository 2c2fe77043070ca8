"""A look at a table's files: whether they are where they were, and as long.

Owns: what is asked of the file system about them. Must not know what is in the files, nor what a loss means for the
table. The files are compared with what is held open; nothing is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvsd.table.medium import LostFile, Medium
from kvsd.table.segment import Segment


class Expected(NamedTuple):
    """A segment, and how long it is at least."""

    segment: Segment
    least_bytes: int


class Look:
    """One look; `run` on a worker, and then `done`. Descriptors stay open until that."""

    def __init__(self, medium: Medium, directory: Path, expected: Sequence[Expected]) -> None:
        self.lost_folder: LostFile | None = None
        self.lost: list[tuple[Segment, LostFile]] = []
        self._medium = medium
        self._directory = directory
        self._expected = expected
        for segment, _ in expected:
            segment.pin()

    def run(self) -> None:
        """Raises OSError where the file system does not answer, which says nothing about the files."""
        try:
            self._medium.check_folder(self._directory)
        except LostFile as error:
            self.lost_folder = error
            return
        for segment, least_bytes in self._expected:
            try:
                segment.check(least_bytes)
            except LostFile as error:
                self.lost.append((segment, error))

    def done(self) -> None:
        for segment, _ in self._expected:
            segment.unpin()
