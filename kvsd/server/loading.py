"""From a table's folder to a Store that serves.

Owns: the recovery of one table on a worker thread, and how far it is. Must not know asyncio, nor who waits for it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from kvsd.errors import TableUnavailable
from kvsd.server.dispatcher import DEFAULT_TABLE, TableName
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store
from kvsd.types import Fsync


class Metered(Medium):
    """Knows how much was read, which tells how far a recovery is."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def read(self, fd: int, size: int, offset: int) -> bytes:
        data = super().read(fd, size, offset)
        self.read_bytes += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Effective:
    """What a table's settings come to, the server's included."""

    fsync: Fsync
    fsync_interval_ms: int
    cache_bytes: int
    segment_bytes: int


class Loader:
    """How far the recovery of a table is; `str()` is the percentage."""

    def __init__(self, name: TableName, folder: Path, medium: Medium) -> None:
        self._name = name
        self._folder = folder
        self._medium = medium
        self._total_bytes = 0

    def run(self, effective: Effective) -> Store:
        """On a worker. Raises TableUnavailable where the files are gone, and what Store.recover raises."""
        if not self._folder.is_dir() and self._name != DEFAULT_TABLE:
            # Recovery would make an empty table of it.
            raise TableUnavailable(
                f"table {self._name} cannot be opened: {self._folder} is missing; restore it, or drop the table"
            )
        with contextlib.suppress(OSError):
            self._total_bytes = sum(file.stat().st_size for file in self._folder.iterdir())
        options = LogOptions(effective.fsync, effective.segment_bytes)
        store = Store(Log(self._folder, options, self._medium), cache_bytes=effective.cache_bytes)
        store.recover()
        return store

    def __str__(self) -> str:
        if not self._total_bytes or not isinstance(self._medium, Metered):
            return "0"
        return str(min(99, self._medium.read_bytes * 100 // self._total_bytes))
