"""From a table's folder to a Store that serves.

Owns: the recovery of one table on a worker thread, and how far it is. Must not know asyncio, nor who waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kvsd.errors import TableUnavailable
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table.compactor import CompactionOptions
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store
from kvsd.types import Fsync


@dataclass(frozen=True, slots=True)
class Effective:
    """What a table's settings come to, the server's included."""

    fsync: Fsync
    fsync_interval_ms: int
    cache_bytes: int
    segment_bytes: int
    compaction: bool
    compaction_bytes_per_second: int
    compaction_garbage_ratio: float

    @property
    def compaction_options(self) -> CompactionOptions:
        return CompactionOptions(self.compaction, self.compaction_bytes_per_second, self.compaction_garbage_ratio)

    def needs_reopening(self, before: Effective) -> bool:
        """Whether a table that is open with `before` must be opened anew: compaction alone changes at once."""
        return self != replace(
            before,
            compaction=self.compaction,
            compaction_bytes_per_second=self.compaction_bytes_per_second,
            compaction_garbage_ratio=self.compaction_garbage_ratio,
        )


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
        self._store.recover()
        return self._store

    def __str__(self) -> str:
        progress = self._store.recovering
        return str(min(99, progress.bytes_done * 100 // (progress.bytes_total or 1)))
