"""From a table's folder to a Store that serves.

Owns: the recovery of one table on a worker thread, and how far it is. Must not know asyncio, nor who waits for it.
"""

from __future__ import annotations

from pathlib import Path

from kvsd.errors import TableUnavailable
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import Effective
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store


class Loader:
    """How far the recovery of a table is; `str()` is the percentage."""

    def __init__(self, name: TableName, folder: Path, effective: Effective, medium: Medium) -> None:
        self._name = name
        self._folder = folder
        log = Log(folder, LogOptions(effective.fsync, effective.segment_bytes), medium)
        self._store = Store(log, cache_bytes=effective.cache_bytes)

    def run(self) -> Store:
        """On a worker. Raises TableUnavailable where the files are gone, and what Store.recover raises."""
        if not self._folder.is_dir() and self._name != DEFAULT_TABLE:
            # Recovery would make an empty table of it.
            raise TableUnavailable(
                f"table {self._name} cannot be opened: {self._folder} is missing; restore it, or drop the table"
            )
        try:
            self._store.recover()
        except BaseException:
            for _ in self._store.free():
                pass  # in slices here, too: no other thread has the interpreter while many keys go at once
            raise
        return self._store

    def __str__(self) -> str:
        progress = self._store.recovering
        return str(min(99, progress.bytes_done * 100 // (progress.bytes_total or 1)))
