"""The files of tables that were dropped, until they are removed.

Owns: the names in ROOT/dropped, the mark of a drop, and how files are moved there and removed. Must not know the
catalog, nor when their time has come.

What lies there without the mark was put there by somebody else, or by a version that set aside what nobody had dropped:
it is never removed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from kvsd.server.names import TableName
from kvsd.table.known import DROPPED_NAME
from kvsd.table.medium import Medium
from kvsd.table.segment_header import parse_name
from kvsd.types import NAME

_FOLDER: Final = re.compile(rf"({NAME.pattern})\.({NAME.pattern})\.([0-9]{{1,12}})")


class Dropped(NamedTuple):
    """A table that was dropped, whose files are still kept in `folder`."""

    name: TableName
    folder: Path
    seconds: int
    """The time of the drop, since 1970."""
    is_marked: bool = True
    """True where a drop has put its mark there: else nobody has asked for its removal."""


def move_away(medium: Medium, folder: Path, dropped: Path, name: TableName, seconds: int) -> None:
    """Move the files of table `name` from its `folder` into the folder `dropped`.

    Raises OSError where they cannot be moved, since they are on another file system, say, and then they are where they
    were.
    """
    if folder.is_symlink():
        raise OSError(errno.EXDEV, "a link, which is followed and stays", str(folder))
    while (target := dropped / f"{name.namespace}.{name.table}.{seconds}").exists():
        seconds += 1
    _mark(medium, folder, name)
    medium.make_directory(dropped)
    medium.sync_parents(dropped)
    medium.rename(folder, target)
    medium.sync_directory(dropped)
    medium.sync_directory(folder.parent)


def _mark(medium: Medium, folder: Path, name: TableName) -> None:
    medium.write_file(folder / DROPPED_NAME, f"table {name} was dropped\n".encode("ascii"))
    medium.sync_directory(folder)


def list_dropped(medium: Medium, dropped: Path) -> list[Dropped]:
    """The tables whose files are in the folder `dropped`. Raises OSError where it cannot be read."""
    if not dropped.is_dir():
        return []
    return [
        Dropped(
            TableName(match[1], match[2]),
            dropped / match[0],
            int(match[3]),
            (dropped / match[0] / DROPPED_NAME).exists(),
        )
        for match in map(_FOLDER.fullmatch, medium.names(dropped))
        if match
    ]


def remove(folder: Path) -> None:
    """Remove `folder` and all that is in it, there where a link leads, too; a mount point stays, and is empty.

    Raises the first OSError, when all that could be removed is; but what shows whose files these are goes last.
    """
    names = sorted(os.listdir(folder))
    proof = [name for name in names if parse_name(name)][:1] + [name for name in names if name == DROPPED_NAME]
    errors: list[OSError] = []
    for name in [name for name in names if name not in proof] + proof:
        if errors and name in proof:
            break
        try:
            _remove_one(folder / name)
        except OSError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    try:
        if folder.is_symlink():
            folder.resolve().rmdir()
            folder.unlink()
        else:
            folder.rmdir()
    except OSError as error:
        if not os.path.ismount(folder):
            raise OSError(error.errno, error.strerror, str(folder)) from error


def _remove_one(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
