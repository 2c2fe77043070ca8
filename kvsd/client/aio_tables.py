"""Namespaces and tables as the asyncio client sees them.

Owns: the calls about them as coroutines. The meaning of each is `administration`'s, how it is carried out is the
client's.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvsd.client import administration as calls
from kvsd.client.administration import (
    Action,
    CompactionProgress,
    DroppedTable,
    Setting,
    TableEntry,
    TableInfo,
    TableSettings,
)
from kvsd.client.aio_table import Table


class Tables:
    """The tables of a server; a namespace or table that is not given is the client's.

    Settings of a table are `fsync`, `fsync_interval_ms`, `cache_bytes`, `segment_bytes`, `compaction`,
    `compaction_bytes_per_second` and `compaction_garbage_ratio`, as in the server's configuration; "default" takes one
    back. All calls raise TableNotFound where there is no such table or namespace.
    """

    def __init__(self, client: Table, namespace: str, table: str) -> None:
        self._client = client
        self._namespace = namespace
        self._table = table

    async def create(self, table: str, *, namespace: str | None = None, **settings: Setting) -> None:
        """Make a table. Raises Conflict where it exists, InvalidValue for an unfit name or setting."""
        await self._client.run(calls.create(*self._name(table, namespace), settings))

    async def list(self, namespace: str | None = None) -> Sequence[TableEntry]:
        """All tables, or those of a namespace, by name."""
        return await self._client.run(calls.list_tables(namespace))

    async def dropped(self, namespace: str | None = None) -> Sequence[DroppedTable]:
        """Dropped tables whose files are still kept, the oldest first."""
        return await self._client.run(calls.list_dropped(namespace))

    async def info(self, table: str | None = None, *, namespace: str | None = None) -> TableInfo:
        """All that is known of a table; it is opened for that."""
        return await self._client.run(calls.info(*self._name(table, namespace)))

    async def settings(
        self, table: str | None = None, *, namespace: str | None = None, **changes: Setting
    ) -> TableSettings:
        """Change settings of a table, if any are given, at once; all of them as they are then."""
        return await self._client.run(calls.settings(*self._name(table, namespace), changes))

    async def drop(self, table: str, *, namespace: str | None = None) -> None:
        """Drop a table; the server keeps its files for a while. Raises Conflict for `default/default`."""
        await self._client.run(calls.drop(*self._name(table, namespace)))

    async def reopen(self, table: str | None = None, *, namespace: str | None = None) -> None:
        """Close a table and recover it anew: brings back one that is read-only or unavailable, if its disk does.

        Raises what keeps it from being opened.
        """
        await self._client.run(calls.reopen(*self._name(table, namespace)))

    async def compact(
        self, table: str | None = None, *, namespace: str | None = None, action: Action = "start"
    ) -> CompactionProgress:
        """Start a compaction of a table, pause it, resume it, or ask for its status: how far it is at this moment."""
        return await self._client.run(calls.compact(*self._name(table, namespace), action))

    def _name(self, table: str | None, namespace: str | None) -> tuple[str, str]:
        return self._namespace if namespace is None else namespace, self._table if table is None else table


class Namespaces:
    """The namespaces of a server."""

    def __init__(self, client: Table) -> None:
        self._client = client

    async def create(self, namespace: str) -> None:
        """Make a namespace. Raises Conflict where it exists, InvalidValue for an unfit name."""
        await self._client.run(calls.create_namespace(namespace))

    async def list(self) -> Sequence[str]:
        """All namespaces by name."""
        return await self._client.run(calls.list_namespaces())

    async def drop(self, namespace: str) -> None:
        """Drop a namespace. Raises Conflict where it has tables, TableNotFound where there is none."""
        await self._client.run(calls.drop_namespace(namespace))
