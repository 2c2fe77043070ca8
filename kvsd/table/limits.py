"""Limits of the system that are reached for a while, and have nothing to do with damage.

Owns: which errors are such limits, what each is called, and what helps. Must not know what was tried, nor what becomes
of it: whoever meets a limit gives up the one attempt, and tries again later.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from kvsd.table.medium import Medium


class Limit(Enum):
    """The name that users know it by, and what they can do."""

    ROOM = "room on the disk", "make room"
    QUOTA = "the disk quota", "make room, or raise the quota"
    INODES = "inodes", "remove files: the disk has room, and none for further files"
    DESCRIPTORS = "descriptors (ulimit -n)", "raise that limit, or close connections"
    DESCRIPTORS_OF_ALL = "descriptors of the whole system (fs.file-max)", "raise that limit, or end other programs"

    def __init__(self, title: str, remedy: str) -> None:
        self.title = title
        self.remedy = remedy

    @property
    def is_of_disk(self) -> bool:
        """True where deleting keys may help."""
        return self in (Limit.ROOM, Limit.QUOTA)

    @property
    def is_of_descriptors(self) -> bool:
        """True where what is open already can be used all the same."""
        return self in (Limit.DESCRIPTORS, Limit.DESCRIPTORS_OF_ALL)

    def __str__(self) -> str:
        return self.title


class OutOfInodes(OSError):
    """ENOSPC, though the disk has room."""


_LIMITS = {
    errno.ENOSPC: Limit.ROOM,
    errno.EDQUOT: Limit.QUOTA,
    errno.EMFILE: Limit.DESCRIPTORS,
    errno.ENFILE: Limit.DESCRIPTORS_OF_ALL,
}


def limit_of(error: BaseException | None) -> Limit | None:
    """The limit that `error` tells of; None where it tells of something else."""
    match error:
        case OutOfInodes():
            return Limit.INODES
        case OSError(errno=int(number)):
            return _LIMITS.get(number)
        case _:
            return None


@contextlib.contextmanager
def telling_apart(medium: Medium, directory: Path) -> Iterator[None]:
    """Raise OutOfInodes for an ENOSPC that means that. For a worker: it asks the file system."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and medium.has_no_inodes(directory):
            raise OutOfInodes(error.errno, "no inodes are left", str(directory)) from error
        raise
