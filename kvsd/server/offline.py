"""Work on a data directory whose server is not running.

Owns: taking the server's own lock, and committing without an event loop. Must not know where the values come from.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from kvsd.server.catalog import Catalog
from kvsd.server.directory import DataDirectory
from kvsd.server.loading import check_folder
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table.log import Log, LogOptions
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
    with DataDirectory(root) as directory:
        catalog = Catalog(directory.root)
        catalog.settle()
        if name.namespace not in catalog.namespaces:
            catalog.create_namespace(name.namespace)
        if name not in catalog.tables:
            catalog.create_table(name)
        check_folder(name, catalog.folder(name))
        log = Log(catalog.folder(name), options or LogOptions(), known=catalog.known(name))
        store = Store(log, cache_bytes=0)
        try:
            store.recover()
            if not store.log.is_settled:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
            catalog.remember({name: log.known_at_end})
        finally:
            log.close()
    return written


def _commit(store: Store) -> None:
    commit = store.take()
    if commit is not None:
        commit.append.run()
        store.committed(commit)
