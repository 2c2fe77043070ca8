"""The data directory: who owns it, and where a table's files are.

Owns: the lock, where each table lies, and the refusal of foreign data. Must not know which tables there are, nor what
is in their files.

The folder itself is locked, and a file in it: a tidy operator may remove the file, some file systems cannot lock a
folder, and earlier versions look at the file alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Final, Self

from kvsd.errors import ConfigError
from kvsd.server.folders import make_folder
from kvsd.server.names import TableName
from kvsd.table.limits import limit_of
from kvsd.table.medium import LostFile, Medium
from kvsd.types import NAME

_LOCK_NAME: Final = "lock"
_LOCK_ADVICE: Final = "see that no other kvsd uses the folder, and restart this one"


class DataDirectory:
    """`ROOT/namespaces/NAMESPACE/TABLE/`, locked for one process from construction to `close`, and held by `medium`."""

    def __init__(self, root: Path, medium: Medium | None = None) -> None:
        """Raises ConfigError where the folder cannot be used, is in use, or holds another program's data."""
        self.root = root
        self.medium = medium or Medium()
        self._lock: int | None = None
        try:
            make_folder(root, 0o700)
            self._folder = self.medium.hold_folder(root)
        except OSError as error:
            raise _unusable(root, error) from error
        try:
            self._take()
            refuse_foreign(root)
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        is_folder_locked = self._lock_folder()
        try:
            # Never unlinked: another process could hold a lock on the file that is gone.
            self._lock = self._open_lock(os.O_CREAT)
        except OSError as error:
            if is_folder_locked and (limit := limit_of(error)) is not None and limit.is_of_disk:
                return  # the folder's lock will do, and what is there can be read
            raise _unusable(self.root, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock the data directory {self.root}: {error.strerror}; its file system must support flock"
            ) from error
        # A courtesy to whoever is refused: a full disk must not keep what is there from being read.
        with contextlib.suppress(OSError):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _lock_folder(self) -> bool:
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        except OSError:
            return False  # network file systems may lock files alone
        return True

    def _open_lock(self, flags: int = 0) -> int:
        return os.open(_LOCK_NAME, os.O_RDWR | os.O_CLOEXEC | flags, 0o600, dir_fd=self._folder)

    def _in_use(self) -> ConfigError:
        owner = "unknown"
        with contextlib.suppress(OSError):
            lock = self._open_lock() if self._lock is None else self._lock
            try:
                owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or owner
            finally:
                if self._lock is None:
                    os.close(lock)
        return ConfigError(
            f"the data directory {self.root} is in use by another kvsd (process {owner}); "
            "stop it, or choose another kvsd.root_dir"
        )

    def check(self) -> None:
        """Raises LostFile where the path leads to another folder by now, or the lock file is not the one held: then
        another kvsd may have been let in."""
        self.medium.check_folder(self.root)
        if self._lock is not None:
            try:
                self.medium.check_file(self.root / _LOCK_NAME, self._lock, 0)
            except LostFile as error:
                raise LostFile(error.path, error.what, _LOCK_ADVICE) from error

    def close(self) -> None:
        """Give up the locks."""
        if self._lock is not None:
            os.close(self._lock)
        self.medium.release_folder(self.root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_foreign(root: Path) -> None:
    """Raise ConfigError where there is a data file of the Rust program below `root`."""
    for found in sorted(root.rglob("*.kvsd")):
        raise ConfigError(
            f"{found} is a data file of the Rust program; "
            f"import it into another folder with `kvsd import --from-kvsd-rs {found} --root-dir FOLDER`"
        )


def check_usable(root: Path) -> None:
    """Raise ConfigError where `root` could neither be used as a data directory nor made. Changes nothing."""
    found = next(folder for folder in (root, *root.absolute().parents) if os.path.lexists(folder))
    if not found.is_dir():
        problem = errno.EEXIST if found == root else errno.ENOTDIR
    elif not os.access(found, os.W_OK | os.X_OK):
        problem = errno.EACCES
    else:
        return
    raise _unusable(root, OSError(problem, os.strerror(problem)))


def _unusable(root: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot use the data directory {root}: {error.strerror}; check kvsd.root_dir and its permissions"
    )


def folder_of(root: Path, name: TableName) -> Path:
    """Where the files of a table are."""
    return root / "namespaces" / name.namespace / name.table


def folders_in(root: Path) -> list[TableName]:
    """Whose folders there are, by name; a link counts as what it leads to, and other names as nobody's."""
    return [
        TableName(folder.parent.name, folder.name)
        for folder in sorted(root.glob("namespaces/*/*"))
        if _is_folder(folder) and NAME.fullmatch(folder.name) and NAME.fullmatch(folder.parent.name)
    ]


def _is_folder(path: Path) -> bool:
    """Tell whether there is a folder; what cannot be looked at is none, and whoever opens it is told why."""
    try:
        return path.is_dir()
    except OSError:
        return False
