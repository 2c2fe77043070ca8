"""Work on a data directory whose server is not running.

Owns: taking the server's own lock, and committing without an event loop. Must not know where the values come from, nor
who has copied what.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kvsd.errors import ConfigError, KvsdError, ReadOnly, StorageError, TableUnavailable
from kvsd.server.catalog import Catalog
from kvsd.server.directory import DataDirectory
from kvsd.server.loading import check_folder
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table import hint
from kvsd.table.entry import Record
from kvsd.table.index import Block
from kvsd.table.known import KnownLog
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store
from kvsd.types import Key, Value

_GROUP_BYTES: Final = 4 << 20


def write(
    root: Path,
    items: Iterable[tuple[Key, Value]],
    options: LogOptions | None = None,
    *,
    name: TableName = DEFAULT_TABLE,
) -> int:
    """Set all `items` in table `name` under `root`, synced and sealed; returns how many. A missing one is made.

    Raises ConfigError where the directory is in use or cannot be used or its catalog is damaged, CorruptLog where its
    table is damaged, what Catalog.create_table raises, and the OSError of a disk that is full or fails; what was
    written before an error stays.
    """
    with DataDirectory(root.absolute()) as directory:
        catalog = Catalog(directory.root, directory.medium)
        catalog.settle()
        if name.namespace not in catalog.namespaces:
            catalog.create_namespace(name.namespace)
        if name not in catalog.tables:
            catalog.create_table(name)
        check_folder(name, catalog.folder(name), catalog.known(name))
        log = Log(catalog.folder(name), options or LogOptions(), directory.medium, catalog.known(name))
        store = Store(log, cache_bytes=0)
        try:
            store.recover()
            if log.unsettled_because is not None:
                raise log.unsettled_because
            written = group_bytes = 0
            for key, value in items:
                store.set(key, value)
                written += 1
                group_bytes += len(key) + len(value)
                if group_bytes >= _GROUP_BYTES:
                    _commit(store)
                    group_bytes = 0
            _commit(store)
            log.finish().run()
            with contextlib.suppress(ReadOnly):  # all is written; the next start knows less
                catalog.remember({name: log.known_at_end})
        finally:
            log.close()
    return written


class Restored(NamedTuple):
    """The outcome for one table of a folder that was restored."""

    name: TableName
    last_seq: int
    """Versions go on above it."""
    was_another: bool
    """True where its files are not those that the catalog knew."""
    error: KvsdError | None
    """Why the table stays as it is."""


def restored(root: Path) -> Iterator[Restored]:
    """Leave a gap in the numbers of every table under `root`, and take its log as it is; how that went, one by one.

    Raises ConfigError where the directory is in use or is not a data folder, or its catalog is damaged; ReadOnly where
    the catalog cannot be written.
    """
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        raise ConfigError(f"there is no data folder {root}; name the one that was restored")
    nothing = ConfigError(
        f"{root} is not a data folder: it has no catalog and no tables; name the one that was restored"
    )
    is_empty = not any(os.path.lexists(root / part) for part in ("catalog", "namespaces"))
    if is_empty and not os.path.lexists(root / "lock"):
        raise nothing  # before a lock is left in somebody's folder
    with DataDirectory(root.absolute()) as directory:
        if is_empty:
            raise nothing
        catalog = Catalog(directory.root, directory.medium)
        catalog.settle()
        logs: dict[TableName, KnownLog] = {}
        for name in sorted(catalog.tables):
            known = catalog.known(name)
            try:
                logs[name] = log = _restore(name, catalog.folder(name), known, directory.medium)
            except (StorageError, TableUnavailable) as error:
                yield Restored(name, 0, False, error)
            except OSError as failure:
                yield Restored(name, 0, False, TableUnavailable(f"table {name} cannot be opened: {failure}"))
            else:
                yield Restored(
                    name, log.last_seq, known is not None and known.table_id not in (b"", log.table_id), None
                )
        catalog.remember(logs)


def _restore(name: TableName, folder: Path, known: KnownLog | None, medium: Medium) -> KnownLog:
    check_folder(name, folder, known)
    log = Log(folder, LogOptions(), medium, known)
    try:
        log.recover(_Nobody(), restored=True)
        if log.unsettled_because is not None:
            raise log.unsettled_because
        for path in log.take_unhinted():
            hint.discard(log.medium, path)  # it may be of the files that were there before
        log.finish().run()
        return log.known_at_end
    finally:
        log.close()


class _Nobody:
    """Has entries read and checked, and keeps none."""

    def replay(self, records: Iterable[Record]) -> None:
        for _ in records:
            pass

    def load(self, block: Block) -> None:
        pass


def _commit(store: Store) -> None:
    commit = store.take()
    if commit is not None:
        commit.append.run()
        store.committed(commit)
