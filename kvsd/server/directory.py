"""The data directory: who owns it, and where a table's files are.

Owns: the lock file, where each table lies, and the refusal of foreign data. Must not know which tables there are, nor
what is in their files.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final, Self

from kvsd.errors import ConfigError
from kvsd.server.folders import make_folder
from kvsd.server.names import TableName
from kvsd.types import NAME

_LOCK_NAME: Final = "lock"


class DataDirectory:
    """`ROOT/namespaces/NAMESPACE/TABLE/`, locked for one process from construction to `close`."""

    def __init__(self, root: Path) -> None:
        """Raises ConfigError where the folder cannot be used, is in use, or holds another program's data."""
        self.root = root
        try:
            make_folder(root, 0o700)
            # Never unlinked: another process could hold a lock on the file that is gone.
            self._lock = os.open(root / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(root, error) from error
        try:
            self._take()
            refuse_foreign(root)
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"the data directory {self.root} is in use by another kvsd (process {owner}); "
                "stop it, or choose another kvsd.root_dir"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"cannot lock the data directory {self.root}: {error.strerror}; its file system must support flock"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._lock)

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
        if folder.is_dir() and NAME.fullmatch(folder.name) and NAME.fullmatch(folder.parent.name)
    ]
