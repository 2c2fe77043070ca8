"""The file system as the log uses it: the few calls whose failures and order matter.

Owns: how a sync reaches the medium on this platform, and which folders are held. Must not know what the bytes mean.
Tests put a faulty or a recording one in its place, so the log makes every change to a file through this class.

A path below a held folder is looked up from that folder's descriptor, whatever its path leads to by now: if the folder
was moved, its files are still found, and those of another that took its place never are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone stops at the drive's cache
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NOT_THERE: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}
_ADVICE: Final = (
    "what was there can still be read: copy it before the server stops; or put back what is missing, then reopen"
)
_MAX_BUFFERS = 512  # below every platform's IOV_MAX


class LostFile(OSError):
    """A file or folder is not where it was, or not as long: somebody has removed, moved, replaced or cut it."""

    def __init__(self, path: Path, what: str, advice: str = _ADVICE) -> None:
        super().__init__(errno.ESTALE, what, str(path))
        self.path = path
        self.what = what
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


class Medium:
    """All errors are OSError, as the operating system gave them. Every call may block, except `read_cached`."""

    def __init__(self) -> None:
        self._held: dict[Path, int] = {}

    def hold_folder(self, folder: Path) -> int:
        """Keep a descriptor of `folder` until `release_folder`; its number, for whoever locks it."""
        with self._at(folder) as (at, above):
            fd = self._held[folder] = os.open(at, _DIRECTORY, dir_fd=above)
        return fd

    def release_folder(self, folder: Path) -> None:
        """Let go of a folder, if it is held; nobody may use a path below it at the same time."""
        fd = self._held.pop(folder, None)
        if fd is not None:
            os.close(fd)

    def _way(self, path: Path, *, within: bool = False) -> tuple[Path | str, int | None]:
        """The way to `path` from the nearest held folder above it, and that folder's descriptor.

        With `within`, `path` may be the held folder itself.
        """
        if not within and (fd := self._held.get(path.parent)) is not None:
            return path.name, fd  # nearly always, and four times as fast
        for folder in (path, *path.parents) if within else path.parents:
            fd = self._held.get(folder)
            if fd is not None:
                return path.relative_to(folder), fd
        return path, None

    @contextlib.contextmanager
    def _at(self, path: Path, *, within: bool = False) -> Iterator[tuple[Path | str, int | None]]:
        """The same; what fails then tells the whole path."""
        try:
            yield self._way(path, within=within)
        except OSError as error:
            error.filename = str(path)
            raise

    def open(self, path: Path, *, create: bool = False) -> int:
        """A descriptor for reading and writing; `create` empties a file that exists."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | os.O_TRUNC
        with self._at(path) as (at, folder):
            return os.open(at, flags, 0o600, dir_fd=folder)

    def close(self, fd: int) -> None:
        """Never fails for the disk's sake: what had to last was synced, and nobody could mend it any more."""
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def exists(self, path: Path) -> bool:
        """Tell whether there is a file or folder of this name, be it a link that leads nowhere."""
        try:
            with self._at(path) as (at, folder):
                os.stat(at, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def check_file(self, path: Path, fd: int, least_bytes: int) -> None:
        """Raises LostFile where `path` does not lead to the open file `fd` any more, or the file is shorter."""
        self.check_identity(path, self.identity(fd), least_bytes)

    def stamp(self, path: Path) -> tuple[int, ...]:
        """Numbers that change when a file is replaced or written to, at least. Raises LostFile where it is gone."""
        with self._at(path) as (at, folder):
            try:
                found = os.stat(at, dir_fd=folder)
            except OSError as error:
                raise _lost(path, error) from error
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def identity(self, fd: int) -> tuple[int, int]:
        """The numbers that tell the open file or folder `fd` from all others that exist at the same time."""
        return _identity(os.fstat(fd))

    def check_identity(self, path: Path, identity: tuple[int, int], least_bytes: int) -> None:
        """The same for a file that is not open."""
        with self._at(path) as (at, folder):
            found = _look_for(path, identity, lambda: os.stat(at, dir_fd=folder))
        check_length(path, found.st_size, least_bytes)

    def check_folder(self, folder: Path) -> None:
        """Raises LostFile where the path of the held `folder` leads elsewhere, by the way that everybody else goes."""
        _look_for(folder, self.identity(self._held[folder]), folder.stat)

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

    def write_file(self, path: Path, data: bytes) -> None:
        """A small file that holds `data` alone; its name is durable once the directory is synced."""
        fd = self.open(path, create=True)
        try:
            self.write(fd, [data], 0)
            self.sync(fd)
        finally:
            self.close(fd)

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
        with self._at(old) as (at, folder), self._at(new) as (new_at, new_folder):
            os.rename(at, new_at, src_dir_fd=folder, dst_dir_fd=new_folder)

    def rename_to_new(self, old: Path, new: Path) -> None:
        """The same, never over another file.

        A look before, and not a link, which many file systems do not have: the folder is held and locked, so nobody
        but an operator can come between, who would have to hit the microsecond.
        """
        if self.exists(new):
            raise FileExistsError(errno.EEXIST, "is there already, and nobody of us has put it there", str(new))
        self.rename(old, new)

    def link(self, path: Path, new: Path) -> None:
        with self._at(path) as (at, folder), self._at(new) as (new_at, new_folder):
            os.link(at, new_at, src_dir_fd=folder, dst_dir_fd=new_folder)

    def unlink(self, path: Path) -> None:
        with self._at(path) as (at, folder):
            os.unlink(at, dir_fd=folder)

    def create_directory(self, path: Path) -> None:
        with self._at(path) as (at, folder):
            os.mkdir(at, 0o700, dir_fd=folder)

    def make_directory(self, path: Path) -> None:
        """`path` and its missing parents; durable after `sync_parents`."""
        missing = [path, *path.parents]
        missing = missing[: next(i for i, folder in enumerate(missing) if self.exists(folder))]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                self.create_directory(folder)

    def sync_parents(self, path: Path) -> None:
        """Make the names that lead to `path` durable, whoever has created them, up to its mount point."""
        device = self._device(path)
        for folder in path.absolute().parents:
            if self._device(folder) != device:
                return
            try:
                self.sync_directory(folder)
            except PermissionError:
                return  # what we may not read we have not created

    def _device(self, folder: Path) -> int:
        with self._at(folder, within=True) as (at, above):
            return (folder.stat() if above is None else os.stat(at, dir_fd=above)).st_dev

    def sync_directory(self, path: Path) -> None:
        with self._directory(path) as fd:
            os.fsync(fd)

    def names(self, path: Path) -> list[str]:
        with self._directory(path) as fd:
            return sorted(os.listdir(fd))

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write on this file system."""
        status = os.statvfs(self._held.get(path, path))
        return status.f_bavail * status.f_frsize

    def has_no_inodes(self, path: Path) -> bool:
        """Tell whether this file system has a number of files, and no further one for us; some have no such limit."""
        status = os.statvfs(self._held.get(path, path))
        return status.f_files > 0 and status.f_favail == 0

    @contextlib.contextmanager
    def _directory(self, path: Path) -> Iterator[int]:
        """A descriptor of its own, even if the folder is held: a listing and the news of a failure are told once.

        Where there is none to be had, the held one: a name that is given must not stay unsynced for want of it.
        """
        held = self._held.get(path)
        try:
            with self._at(path, within=True) as (at, above):
                fd = os.open(at, _DIRECTORY, dir_fd=above)
        except OSError as error:
            if held is None or error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            fd = held
        try:
            yield fd
        finally:
            if fd != held:
                os.close(fd)


def check_length(path: Path, size_bytes: int, least_bytes: int) -> None:
    """Raises LostFile where the file at `path` is shorter than it was."""
    if size_bytes < least_bytes:
        raise LostFile(path, f"was cut: it has {size_bytes} bytes, and had {least_bytes}")


def _lost(path: Path, error: OSError) -> OSError:
    """The news of a file whose name leads nowhere; else `error` itself, which says nothing of it."""
    return LostFile(path, "was removed or moved away") if error.errno in _NOT_THERE else error


def _look_for(path: Path, identity: tuple[int, int], look: Callable[[], os.stat_result]) -> os.stat_result:
    """The status that `look` finds at `path`; raises LostFile where it is not that of `identity`."""
    try:
        found = look()
    except OSError as error:
        raise _lost(path, error) from error
    if _identity(found) != identity:
        raise LostFile(path, "was replaced by another")
    return found


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
