"""The tables of a running server: which there are, and what is done to them as wholes.

Owns: administration (create, settings, drop, reopen), one change at a time, and the removal of what was dropped long
ago. Must not know sessions, what is in a table, nor how it opens and when it closes (that is OpenTables').
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from kvsd.config import StorageSettings
from kvsd.errors import KvsdError, TableNotFound, TableUnavailable
from kvsd.server.catalog import Catalog, Dropped
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.names import TableName
from kvsd.server.open_tables import PATIENCE_SECONDS, OpenTables
from kvsd.server.reporting import Reporter
from kvsd.server.slot import Slot
from kvsd.server.table_settings import Effective, TableSettings, settings_from
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.medium import Medium
from kvsd.table.request import Compact, CompactionProgress, Describe, Operation, Origin, Request, Result, Status
from kvsd.table.workers import Pools

T = TypeVar("T")
P = ParamSpec("P")

_LOAD_THREADS: Final = 4
_PURGE_SECONDS: Final = 3_600.0
_DESCRIPTION_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class TableEntry:
    """A table in a list."""

    name: TableName
    state: str
    """closed (opens when it is asked for), loading, unavailable, or as in Status."""
    settings: TableSettings


@dataclass(frozen=True, slots=True)
class TableInfo:
    """All there is to say about a table."""

    entry: TableEntry
    effective: Effective
    status: Status | None
    """None where the table cannot be asked, with the reason in `error`."""
    error: KvsdError | None


def _to_its_end(
    method: Callable[Concatenate[Tables, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Tables, P], Coroutine[Any, Any, T]]:
    """Done as a whole, even if whoever asked for it goes away in the middle."""

    async def whole(self: Tables, /, *args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.get_running_loop().create_task(method(self, *args, **kwargs))
        self.changes.add(task)
        task.add_done_callback(self.changes.discard)
        return await asyncio.shield(task)

    update_wrapper(whole, method)
    return whole


class Tables:
    """All tables of `catalog`. `start` comes first and `stop` last; both, like all the rest, on the event loop."""

    def __init__(
        self,
        catalog: Catalog,
        storage: StorageSettings,
        pools: Pools,
        dispatcher: Dispatcher,
        reporter: Reporter,
        *,
        medium: Medium | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._catalog = catalog
        self._storage = storage
        self._dispatcher = dispatcher
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._tables: dict[TableName, Slot] = {}
        self._names: list[TableName] = []
        """Of them, in order: 10,000 take 10 ms to sort."""
        self._dropped: WeakValueDictionary[TableName, Slot] = WeakValueDictionary()
        """Those that sessions still have in use: a new table of the name is what they find there."""
        self._loads = ThreadPoolExecutor(_LOAD_THREADS, thread_name_prefix="kvsd-load")
        self._open_tables = OpenTables(
            catalog.folder,
            self._effective,
            pools,
            self._loads,
            reporter,
            max_open_tables=storage.max_open_tables,
            medium=medium or Medium(),
            patience_seconds=patience_seconds,
        )
        self._administration = ThreadPoolExecutor(1, thread_name_prefix="kvsd-tables")
        self._changing = asyncio.Lock()
        """One change of the catalog at a time."""
        self._purging: asyncio.Task[None] | None = None
        self.changes: set[asyncio.Task[Any]] = set()
        """What `stop` must see to its end."""
        for name, settings in catalog.tables.items():
            self._add(name, settings)

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def actors(self) -> list[TableActor]:
        """Those of the open tables."""
        return [table.actor for table in self._open_tables if table.actor is not None]

    @property
    def unavailable(self) -> int:
        """How many tables could not be opened."""
        return sum(table.is_unavailable for table in self._tables.values())

    @property
    def entries(self) -> int:
        """Keys that have a value, in all open tables."""
        return sum(map(len, self.actors))

    # Start and stop

    def start(self) -> None:
        """From now on tables open when they are asked for, and what was dropped long ago is removed."""
        self._purging = self._loop.create_task(self._purge(), name="dropped tables")

    async def load(self, name: TableName) -> None:
        """Open a table before anybody asks for it; a failure is what its Requests are answered with."""
        table = self._tables[name]
        if table.actor is None and not table.is_unavailable:
            await self._open_tables.open(table)

    async def stop(self) -> None:
        """Close all tables in order; what still comes is answered TABLE_UNAVAILABLE."""
        self._open_tables.stop_opening()
        if self._purging is not None:
            self._purging.cancel()
        async with self._changing:
            await asyncio.gather(*map(self._open_tables.end, self._tables.values()))
        ending = self.changes | ({self._purging} if self._purging is not None else set())
        await asyncio.gather(*ending, return_exceptions=True)
        for pool in (self._loads, self._administration):
            pool.shutdown()

    async def _purge(self) -> None:
        keep_seconds = self._storage.dropped_keep_seconds
        while True:
            try:
                removed = await self._loop.run_in_executor(self._loads, self._catalog.remove_dropped, keep_seconds)
            except OSError as error:
                self._reporter.warning("dropped tables could not be removed", error=str(error))
            else:
                for dropped in removed:
                    self._reporter.info("a dropped table's files are removed", table=str(dropped.name))
                    await asyncio.sleep(0)  # there may be thousands
            await asyncio.sleep(_PURGE_SECONDS)

    # Administration

    def namespaces(self) -> list[str]:
        return sorted(self._catalog.namespaces)

    def list(self, namespace: str | None = None) -> Sequence[TableEntry]:
        """All tables, or those of a namespace, by name. Raises TableNotFound for an unknown namespace."""
        return [self.entry(name) for name in self.names(namespace)]

    def names(self, namespace: str | None = None) -> Sequence[TableName]:
        """All tables, or those of a namespace, in order. Raises TableNotFound for an unknown namespace."""
        if namespace is not None and namespace not in self._catalog.namespaces:
            raise TableNotFound(f"no namespace {namespace}")
        return [name for name in self._names if namespace is None or namespace == name.namespace]

    def entry(self, name: TableName) -> TableEntry:
        """Raises TableNotFound."""
        table = self._tables.get(name)
        if table is None:
            raise TableNotFound(f"no table {name}")
        return _entry(table)

    async def dropped(self) -> Sequence[Dropped]:
        """Dropped tables whose files are still there."""
        return await self._loop.run_in_executor(self._administration, self._catalog.dropped)

    async def info(self, name: TableName) -> TableInfo:
        """Opens the table where it is closed. Raises TableNotFound."""
        table = self._find(name)
        result = await self._ask(table, Describe())
        status = result if isinstance(result, Status) else None
        error = result if isinstance(result, KvsdError) else None
        return TableInfo(_entry(table), self._effective(table.settings), status, error)

    async def compact(self, name: TableName, operation: Compact) -> CompactionProgress:
        """Opens the table where it is closed. Raises TableNotFound, ReadOnly, and what keeps it from being opened."""
        result = await self._ask(self._find(name), operation)
        if isinstance(result, KvsdError):
            raise result
        assert isinstance(result, CompactionProgress)
        return result

    async def _ask(self, table: Slot, operation: Operation) -> Result:
        request = Request([operation], Origin(Budget(_DESCRIPTION_BYTES)), self._loop.create_future())
        await table.mailbox.put(request)
        [result] = await request.future
        return result

    @_to_its_end
    async def create_namespace(self, namespace: str) -> None:
        """Raises what Catalog.create_namespace raises."""
        async with self._changing:
            await self._change(partial(self._catalog.create_namespace, namespace))

    @_to_its_end
    async def drop_namespace(self, namespace: str) -> None:
        """Raises what Catalog.drop_namespace raises."""
        async with self._changing:
            await self._change(partial(self._catalog.drop_namespace, namespace))

    @_to_its_end
    async def create(self, name: TableName, settings: TableSettings | None = None) -> None:
        """It can be used when this returns. Raises what Catalog.create_table raises."""
        async with self._changing:
            await self._change(partial(self._catalog.create_table, name, settings))
            self._add(name, self._catalog.tables[name])
            self._share_cache()

    @_to_its_end
    async def change_settings(self, name: TableName, changes: Mapping[str, str]) -> tuple[TableSettings, Effective]:
        """Takes effect at once, for some settings by reopening the table; its own settings then, and what they come to.

        `changes` is as `settings_from` takes it. Raises what that and Catalog.change_settings raise.
        """
        async with self._changing:
            table = self._find(name)
            settings = settings_from(changes, table.settings)
            if settings != table.settings:
                await self._change(partial(self._catalog.change_settings, name, settings))
                async with self._open_tables.holding(table):
                    effective = self._effective(settings)
                    reopens = effective.needs_reopening(self._effective(table.settings))
                    table.settings = settings
                    if table.opening is not None or (table.actor is not None and reopens):
                        await self._open_tables.close(table)
                        await self._open_tables.open(table)
                    elif table.actor is not None:
                        table.actor.set_compaction(effective.compaction_options)
                        table.actor.set_cache_bytes(effective.cache_bytes)
            return table.settings, self._effective(table.settings)

    @_to_its_end
    async def drop(self, name: TableName) -> None:
        """Requests that wait are answered first; its files are set aside. Raises what Catalog.drop_table raises."""
        async with self._changing:
            table = self._find(name)
            self._catalog.check_droppable(name)
            async with self._open_tables.holding(table):
                await self._open_tables.settled(table)
                before = table.refusal
                table.refuse(lambda: TableNotFound(f"no table {name}: it was dropped"))
                try:
                    await self._open_tables.close(table)
                    await self._change(partial(self._catalog.drop_table, name))
                finally:
                    if name in self._catalog.tables:
                        table.refuse(before if table.is_unavailable else None)
                    else:
                        self._dropped[name] = self._tables.pop(name)
                        self._names.remove(name)
                        self._dispatcher.remove(name)
                        self._share_cache()

    @_to_its_end
    async def reopen(self, name: TableName) -> None:
        """Close the table and recover it anew: brings back one that is read-only or unavailable, if its disk does.

        Requests that wait are answered as before; those that come meanwhile wait, or are answered LOADING. Raises
        TableNotFound, and what keeps the table from being opened.
        """
        table = self._find(name)
        async with self._open_tables.holding(table):
            if self._tables.get(name) is not table:
                raise TableNotFound(f"no table {name}")
            await self._open_tables.close(table)
            table.is_unavailable = False
            table.refuse(None)
            await self._open_tables.open(table)
            if table.refusal is not None:
                raise table.refusal()

    def _find(self, name: TableName) -> Slot:
        if self._open_tables.stopping:
            raise TableUnavailable("the server is stopping")
        table = self._tables.get(name)
        if table is None:
            raise TableNotFound(f"no table {name}")
        return table

    def _add(self, name: TableName, settings: TableSettings) -> None:
        table = self._dropped.pop(name, None)
        if table is None:
            table = Slot(name, settings, self._open_tables.want)
        else:
            table.settings, table.is_unavailable = settings, False
            table.refuse(None)
        self._tables[name] = table
        insort(self._names, name)
        self._dispatcher.add(name, table.mailbox)

    async def _change(self, change: Callable[[], None]) -> None:
        if self._open_tables.stopping:
            raise TableUnavailable("the server is stopping")
        await self._loop.run_in_executor(self._administration, change)

    def _effective(self, settings: TableSettings) -> Effective:
        return Effective.of(settings, self._storage, cache_share_bytes=self._cache_share)

    @property
    def _cache_share(self) -> int:
        return self._storage.cache_bytes // max(1, min(len(self._tables), self._storage.max_open_tables))

    def _share_cache(self) -> None:
        """The number of tables has changed."""
        for table in self._open_tables:
            if table.actor is not None and table.settings.cache_bytes is None:
                table.actor.set_cache_bytes(self._cache_share)


def _entry(table: Slot) -> TableEntry:
    return TableEntry(table.name, table.state, table.settings)
