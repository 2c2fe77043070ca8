"""From a table's folder to a Store that serves.

Owns: the recovery of one table on a worker thread, and how far it is. Must not know asyncio, nor who waits for it.
"""

from __future__ import annotations

import stat
from pathlib import Path

from kvsd.errors import TableUnavailable
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import Effective
from kvsd.table.known import KnownLog
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.open_segments import OpenSegments
from kvsd.table.store import Store


def check_folder(name: TableName, folder: Path, known: KnownLog | None) -> None:
    """Raises TableUnavailable where the folder of a table is gone: recovery would make an empty table of it.

    That is right for default/default alone, as long as nobody knows a log of it.
    """
    try:
        found = folder.stat()
    except FileNotFoundError:
        if name == DEFAULT_TABLE and known is None and not folder.is_symlink():
            return
        what = f"is a link to {folder.readlink()}, which is missing" if folder.is_symlink() else "is missing"
        raise TableUnavailable(
            f"table {name} cannot be opened: {folder} {what}; restore it"
            + (", or drop the table" if name != DEFAULT_TABLE else "")
        ) from None
    if not stat.S_ISDIR(found.st_mode):
        raise TableUnavailable(f"table {name} cannot be opened: {folder} is no folder; restore the table's own")


class Loader:
    """How far the recovery of a table is; `str()` is the percentage."""

    def __init__(
        self,
        name: TableName,
        folder: Path,
        known: KnownLog | None,
        effective: Effective,
        medium: Medium,
        open_segments: OpenSegments,
    ) -> None:
        self._name = name
        self._folder = folder
        self._known = known
        options = LogOptions(effective.fsync, effective.segment_bytes)
        log = Log(folder, options, medium, known, open_segments=open_segments)
        self._store = Store(log, cache_bytes=effective.cache_bytes)

    def run(self) -> Store:
        """On a worker. Raises TableUnavailable where the files are gone, and what Store.recover raises."""
        check_folder(self._name, self._folder, self._known)
        self._store.recover()
        return self._store

    def __str__(self) -> str:
        progress = self._store.recovering
        return str(min(99, progress.bytes_done * 100 // (progress.bytes_total or 1)))
