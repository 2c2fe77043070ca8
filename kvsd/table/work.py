"""The system calls of the log, as jobs that a worker thread runs.

Owns: the order of write, sync, create and cut in each job. Must not know asyncio, keys or replies; whoever runs a
job calls `run` once, anywhere, and then tells the Log how it went, on the Log's own thread.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvsd.table.limits import limit_of, telling_apart
from kvsd.table.medium import LostFile, Medium
from kvsd.table.segment import Segment, seal
from kvsd.table.segment_header import TEMPORARY, SegmentHeader

RESERVE_NAME: Final = "reserve"
RESERVE_BYTES: Final = 16 << 10
ROOM_BYTES: Final = 1 << 20
"""What must be free before a full disk counts as having room again."""


class Run:
    """Consecutive entries of one segment; without a segment, the worker creates it from `header`."""

    __slots__ = ("buffers", "end", "header", "offset", "seal", "segment")

    def __init__(self, header: SegmentHeader, offset: int) -> None:
        self.header = header
        self.segment: Segment | None = None
        self.offset = self.end = offset
        self.buffers: list[bytes] = []
        self.seal: bytes | None = None


class Append:
    """Everything staged since the last one: one write and one sync for each segment that it touches."""

    def __init__(self, medium: Medium, directory: Path, runs: list[Run], *, sync: bool) -> None:
        self.medium = medium
        self.directory = directory
        self.runs = runs
        self.sync = sync
        """Every append is synced; else a sync covers earlier ones too."""
        self.syncing = False
        """Whether a failure was that of the sync of entries."""

    def run(self) -> None:
        """Raises OSError, with all that did not get a descriptor or an inode told apart from a full disk."""
        with telling_apart(self.medium, self.directory):
            self._run()

    def _run(self) -> None:
        for run in self.runs:
            segment = run.segment
            if segment is None:
                segment = run.segment = Segment.create(self.medium, self.directory, run.header)
            else:
                segment.check_size(run.offset)
            if run.buffers:
                # One buffer: joining is cheaper than a vector of hundreds of small ones.
                self.medium.write(segment.fd, [b"".join(run.buffers)], run.offset)
            if self.sync or run.seal is not None:
                self.syncing = True
                self.medium.sync(segment.fd)
                self.syncing = False
            if run.seal is not None:
                seal(self.medium, segment.fd, run.end, run.seal)

    @property
    def may_have_lost_committed(self) -> bool:
        """Whether what failed was a sync that covered entries which were answered before it."""
        return self.syncing and not self.sync


class Fill:
    """Zeros ahead of the appends: a sync that changes neither size nor extents is 1.3 to 2 times cheaper.

    Through a descriptor of its own: the system tells of a failed write once for each descriptor, and a Fill must not
    take the news from an append that runs beside it.
    """

    def __init__(self, segment: Segment, start: int, size: int) -> None:
        self.segment = segment
        self.start = start
        self.size = size
        self.filled = False
        self._known_bytes = segment.size_bytes

    def run(self) -> None:
        medium = self.segment.medium
        try:
            fd = self.segment.open_again(self._known_bytes)
        except LostFile:
            raise
        except OSError:
            return  # nothing was written, so nothing can be wrong; appends do without zeros
        try:
            try:
                medium.write(fd, [bytes(self.size)], self.start)
                medium.sync(fd)
            except OSError as error:
                if limit_of(error) is None:
                    raise
            else:
                self.filled = True  # else the appends will meet the full disk, and tell
        finally:
            medium.close(fd)


class Sync:
    """A sync apart from the appends: as `fsync: interval` owes it, and before a compaction drops older values."""

    def __init__(self, segment: Segment, end: int) -> None:
        self.segment = segment
        self.end = end

    def run(self) -> None:
        self.segment.medium.sync(self.segment.fd)


class Resume:
    """After a limit: cut the active segment where its committed entries end, seal it, and start another.

    Through a new descriptor, which has no old failure to tell, and only after a limit: what was committed is known to
    be on the medium then, as it is not after EIO. Where no further descriptor can be had, what failed was opening, and
    the held one will do. A crash at any step leaves a state that recovery takes for an ordinary stop.
    """

    def __init__(
        self,
        segment: Segment,
        end: int,
        failed_to: int,
        seal_entry: bytes,
        header: SegmentHeader,
        *,
        later: Iterable[str],
        sync: bool,
    ) -> None:
        """`later` are the names, in their order, of segments that the failed append, or a Resume before this one, may
        have created."""
        self.segment = segment
        self.end = end
        self.failed_to = failed_to
        self.seal_entry = seal_entry
        self.header = header
        self.sync = sync
        self.syncing = False
        """As for an Append."""
        self.is_cut = False
        """True once what was not committed is gone for good: no start will find any of it."""
        self.created: Segment | None = None
        self._later = list(later)

    def run(self) -> None:
        """Raises OSError as an Append does."""
        with telling_apart(self.segment.medium, self.segment.path.parent):
            self._run()

    def _run(self) -> None:
        medium, path = self.segment.medium, self.segment.path
        _remove(medium, path.with_name(RESERVE_NAME))
        # Newest first and each for good: the chain of segments has no hole at any moment. No list of the folder is
        # asked for, since that takes a descriptor.
        for name in reversed(self._later):
            _remove(medium, path.with_name(name + TEMPORARY))
            _remove(medium, path.with_name(name))
            # Also where it is gone: a Resume before this one may have come no further.
            medium.sync_directory(path.parent)
        fd = self._open()
        try:
            # The SEAL of a failed roll goes first: while it stands, what is cut off before it looks like damage.
            self._cut(fd, min(self.failed_to, medium.size(fd)))
            self._cut(fd, self.end)
            self.is_cut = True
            seal(medium, fd, self.end, self.seal_entry)
        finally:
            if fd != self.segment.fd:
                medium.close(fd)
        self.created = Segment.create(medium, path.parent, self.header, fill_bytes=0)

    def _open(self) -> int:
        try:
            return self.segment.open_again(self.end)
        except OSError as error:
            limit = limit_of(error)
            if limit is None or not limit.is_of_descriptors:
                raise
            return self.segment.fd

    def _cut(self, fd: int, size: int) -> None:
        medium = self.segment.medium
        medium.truncate(fd, size)
        self.syncing = True
        medium.sync(fd)
        self.syncing = False

    @property
    def may_have_lost_committed(self) -> bool:
        """Whether what failed was a sync that covered entries which were answered before it."""
        return self.syncing and not self.sync


class Reserve:
    """A small file whose room a full disk gives back, so that deletes still find some."""

    def __init__(self, medium: Medium, directory: Path) -> None:
        self.medium = medium
        self.directory = directory

    def run(self) -> None:
        """Raises OSError, ENOSPC also where nothing but the reserve itself would fit.

        That it can be made says more than the figures of the file system do: there is a descriptor, an inode and quota.
        """
        if self.medium.free_bytes(self.directory) < ROOM_BYTES:
            raise OSError(errno.ENOSPC, "not enough room for a reserve", str(self.directory))
        self.medium.write_file(self.directory / RESERVE_NAME, bytes(RESERVE_BYTES))


def _remove(medium: Medium, path: Path) -> None:
    """Remove a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        medium.unlink(path)
