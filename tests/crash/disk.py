"""A small file system of its own, mounted for a test, that can be filled and emptied.

Owns: mounting and unmounting, and the file of another program that takes the room.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

DISK_BYTES: Final = 8 << 20


class CannotMount(Exception):
    """Not permitted here, or the file system is not known."""


class Disk:
    """`path` is where it is mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, *, leave_bytes: int = 0) -> None:
        """Another program takes all the room but the last `leave_bytes`."""
        os.sync()  # ext4 gives back what was removed with its journal's next commit
        with self._ballast.open("ab", buffering=0) as ballast:
            for size in (1 << 16, 1 << 12, 1 << 12, 1 << 12):  # a block is the least that is taken
                with contextlib.suppress(_NoRoom):
                    while self.free_bytes >= leave_bytes + size:
                        _write(ballast.fileno(), size)
                # What ext4 has put by for the file's own blocks is free again once they are written.
                with contextlib.suppress(OSError):
                    os.fsync(ballast.fileno())

    def empty(self) -> None:
        """The other program gives its room back."""
        self._ballast.unlink()

    @property
    def free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


class _NoRoom(Exception):
    pass


def _write(fd: int, size: int) -> None:
    """Through to the file system: one that allocates late would tell only later that there is no room."""
    try:
        os.write(fd, b"\xff" * size)
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _NoRoom from error


@contextlib.contextmanager
def mounted(folder: Path, kind: str) -> Iterator[Disk]:
    """An empty file system of DISK_BYTES, "tmpfs" or "ext4"; raises CannotMount."""
    path = folder / "disk"
    path.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(path))
    else:
        image = folder / "image"
        image.touch()
        os.truncate(image, DISK_BYTES)
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(path))
    try:
        yield Disk(path)
    finally:
        _run("umount", str(path))


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    except FileNotFoundError as error:
        raise CannotMount(f"no {command[0]} here") from error
    except subprocess.CalledProcessError as error:
        raise CannotMount(error.stderr) from error
