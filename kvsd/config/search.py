"""The search for a config file: where it may lie, and whether what lies there can be trusted.

Owns: the order of the places and the bounded read of the file. Must not know what a config file says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvsd.errors import ConfigError

FILE_NAME: Final = "config.yaml"
MAX_FILE_BYTES: Final = 1024 * 1024
VARIABLES: Final = ("KVSD_CONFIG", "KVSD_SERVER_CONFIG_PATH")
"""The variables that name a config file, the second one being the Rust program's; the first wins."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file and its bytes, or neither; `skipped` says which files were passed over, and why."""

    path: Path | None = None
    data: bytes = b""
    is_public: bool = False
    """Every user of the machine can read it."""
    skipped: tuple[str, ...] = ()


class _UntrustedError(Exception):
    """Somebody else may have written the file."""


def find(path: Path | None, environ: Mapping[str, str], cwd: Path) -> Found:
    """The first of: `path` (the --config flag), KVSD_CONFIG, ./config.yaml, the one in the XDG config folder.

    ./config.yaml lies where the user happens to stand, perhaps in a folder that others write to, and it says
    which server gets the password. So it counts only if it belongs to the user or to root and nobody else can
    write it.

    Raises ConfigError: a file that was asked for by name cannot be read, or a file is larger than 1 MiB.
    """
    if path is not None:
        return Found(cwd / path, *_read_named(cwd / path, "flag --config"))
    for variable in VARIABLES:
        if text := environ.get(variable):
            return Found(cwd / text, *_read_named(cwd / text, f"environment {variable}"))
    skipped: list[str] = []
    for place, trusted in ((cwd / FILE_NAME, False), (_personal(environ), True)):
        try:
            if place is not None:
                return Found(place, *_read(place, trusted=trusted), tuple(skipped))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, _UntrustedError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            skipped.append(f"{place} is passed over: {reason}; --config reads it nevertheless")
    return Found(skipped=tuple(skipped))


def _personal(environ: Mapping[str, str]) -> Path | None:
    # The XDG specification has relative paths ignored.
    if (folder := environ.get("XDG_CONFIG_HOME", "")).startswith("/"):
        return Path(folder, "kvsd", FILE_NAME)
    if home := environ.get("HOME"):
        return Path(home, ".config", "kvsd", FILE_NAME)
    return None


def _read_named(path: Path, origin: str) -> tuple[bytes, bool]:
    try:
        return _read(path, trusted=True)
    except OSError as error:
        raise ConfigError(
            f"{origin}: the config file {path} cannot be read: {error.strerror}; `kvsd init` writes a new one"
        ) from None


def _read(path: Path, *, trusted: bool) -> tuple[bytes, bool]:
    """The bytes of the file, and whether everybody can read it."""
    # The checks are of the open file, which nobody can exchange any more.
    with open(path, "rb", opener=None if trusted else _open_at_once) as file:
        status = os.fstat(file.fileno())
        if not trusted:
            _check(status, path.lstat().st_uid)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: the file is larger than {MAX_FILE_BYTES} bytes; is it a kvsd config file?")
    return data, stat.S_ISREG(status.st_mode) and bool(status.st_mode & stat.S_IROTH)


def _open_at_once(path: str, flags: int) -> int:
    """Opens also a FIFO without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check(status: os.stat_result, link_owner: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _UntrustedError("it is no regular file")
    if not {status.st_uid, link_owner} <= {os.geteuid(), 0}:
        raise _UntrustedError("it belongs to another user")
    if status.st_mode & stat.S_IWOTH:
        raise _UntrustedError("other users can write it (`chmod go-w` it)")
    if status.st_mode & stat.S_IWGRP and not _is_owners_group(status):
        raise _UntrustedError("its group can write it (`chmod go-w` it)")


def _is_owners_group(status: os.stat_result) -> bool:
    """Whether the file's group holds nobody but its owner.

    Many Linux systems give each user such a group together with a umask of 002: there every file is
    group-writable.
    """
    # Imported here: rarely needed.
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    same = (group.gr_name, group.gr_gid) == (owner.pw_name, owner.pw_gid)
    return same and set(group.gr_mem) <= {owner.pw_name}
