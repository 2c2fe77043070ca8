"""The file system as the log uses it: the few calls whose failures and order matter.

Owns: how a sync reaches the medium on this platform. Must not know what the bytes mean. Tests put a faulty or a
recording one in its place, so the log makes every change to a file through this class.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_MAX_BUFFERS = 512  # below every platform's IOV_MAX


class Medium:
    """All errors are OSError, as the operating system gave them. Every call may block, except `read_cached`."""

    def open(self, path: Path, *, create: bool = False) -> int:
        """A descriptor for reading and writing; `create` empties a file that exists."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        return os.open(path, flags, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def exists(self, path: Path) -> bool:
        """Whether there is a file or folder of this name, be it a link that leads nowhere."""
        return os.path.lexists(path)

    def write(self, fd: int, buffers: Sequence[bytes], offset: int) -> None:
        """All of `buffers`, one behind the other, from `offset` on; short writes are continued."""
        for first in range(0, len(buffers), _MAX_BUFFERS):
            rest: list[bytes | memoryview] = list(buffers[first : first + _MAX_BUFFERS])
            while rest:
                written = os.pwritev(fd, rest, offset)
                offset += written
                while rest and written >= len(rest[0]):
                    written -= len(rest.pop(0))
                if rest and written:
                    rest[0] = memoryview(rest[0])[written:]

    def sync(self, fd: int) -> None:
        """The file's data, and the metadata needed to read it, are on the medium when this returns."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(fd, _FULL_SYNC)
        elif sys.platform == "darwin":
            os.fsync(fd)
        else:
            os.fdatasync(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        data = os.pread(fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        got = len(data)
        while got < size and (data := os.pread(fd, size - got, offset + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def can_read_cached(self, fd: int) -> bool:
        """Whether this file's system can tell cached bytes from cold ones; some cannot (overlay, network, macOS)."""
        if _NO_WAIT is None:
            return False
        try:
            os.preadv(fd, [bytearray(1)], 0, _NO_WAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                return False
            raise
        return True

    def read_cached(self, fd: int, size: int, offset: int) -> bytearray | None:
        """Exactly `size` bytes if the page cache holds them all, else None; only where `can_read_cached`."""
        assert _NO_WAIT is not None
        buffer = bytearray(size)
        try:
            got = os.preadv(fd, [buffer], offset, _NO_WAIT)
        except BlockingIOError:
            return None
        return buffer if got == size else None

    def rename(self, old: Path, new: Path) -> None:
        """Atomically, over `new` if it exists; durable once the directory is synced."""
        old.rename(new)

    def link(self, path: Path, new: Path) -> None:
        os.link(path, new)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def create_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def make_directory(self, path: Path) -> None:
        """`path` and its missing parents; durable after `sync_parents`."""
        missing = [path, *path.parents]
        missing = missing[: next(i for i, folder in enumerate(missing) if folder.exists())]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self.create_directory(folder)

    def sync_parents(self, path: Path) -> None:
        """Make the names that lead to `path` durable, whoever has created them, up to its mount point."""
        device = path.stat().st_dev
        for folder in path.absolute().parents:
            if folder.stat().st_dev != device:
                return
            try:
                self.sync_directory(folder)
            except PermissionError:
                return  # what we may not read we have not created

    def sync_directory(self, path: Path) -> None:
        with self._directory(path) as fd:
            os.fsync(fd)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write on this file system."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def has_no_inodes(self, path: Path) -> bool:
        """Whether this file system has a number of files, and no further one for us; some have no such limit."""
        status = os.statvfs(path)
        return status.f_files > 0 and status.f_favail == 0

    @contextlib.contextmanager
    def _directory(self, path: Path) -> Iterator[int]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
