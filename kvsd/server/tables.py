"""The tables of a running server: which there are, and what is done to them as wholes.

Owns: administration (create, settings, drop, reopen), one change at a time, and the removal of what was dropped long
ago. Must not know sessions, what is in a table, nor how it opens and when it closes (that is OpenTables').
"""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from kvsd.config import StorageSettings
from kvsd.errors import Busy, KvsdError, ReadOnly, TableNotFound, TableUnavailable
from kvsd.server.catalog import Catalog
from kvsd.server.clock import WallClock
from kvsd.server.descriptors import check_some_are_left
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.dropped import Dropped
from kvsd.server.names import TableName
from kvsd.server.open_tables import PATIENCE_SECONDS, STOPPING, OpenTables
from kvsd.server.reporting import Reporter
from kvsd.server.slot import Slot
from kvsd.server.table_settings import Effective, TableSettings, settings_from
from kvsd.server.watch import Watch
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.limits import limit_of
from kvsd.table.medium import Medium
from kvsd.table.open_segments import OpenSegments
from kvsd.table.request import Compact, CompactionProgress, Describe, Operation, Origin, Request, Result, Status
from kvsd.table.threads import Threads
from kvsd.table.workers import Pools

T = TypeVar("T")
P = ParamSpec("P")

_LOAD_THREADS: Final = 4
_PURGE_SECONDS: Final = 3_600.0
_DOUBT_SECONDS: Final = 10.0
"""The time between two looks whether the clock can be believed by now."""
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
        clock: WallClock | None = None,
        open_segments: OpenSegments | None = None,
        check_root: Callable[[], None] = lambda: None,
    ) -> None:
        """Without `clock`, the time is believed whatever it is; `check_root` raises LostFile where the data folder is
        not what it was."""
        self._catalog = catalog
        self._clock = clock
        self._storage = storage
        self._dispatcher = dispatcher
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._tables: dict[TableName, Slot] = {}
        self._names: list[TableName] = []
        """The names of all, in order: 10,000 take 10 ms to sort."""
        self._dropped: WeakValueDictionary[TableName, Slot] = WeakValueDictionary()
        """Those that sessions still have in use: a new table of the name is what they find there."""
        self._loads = Threads(_LOAD_THREADS, "kvsd-load")
        self._open_tables = OpenTables(
            catalog.folder,
            self._effective,
            pools,
            self._loads,
            reporter,
            max_open_tables=storage.max_open_tables,
            medium=medium or Medium(),
            patience_seconds=patience_seconds,
            is_clock_right=self._is_clock_right,
            open_segments=OpenSegments() if open_segments is None else open_segments,
        )
        self.watch = Watch(self._open_tables, check_root, self._check_catalog, reporter)
        self._administration = Threads(1, "kvsd-tables")
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
    def still_open(self) -> int:
        """The number of tables that are open, or on the way to it."""
        return len(self._open_tables)

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
        self.watch.start()

    async def load(self, name: TableName) -> None:
        """Open a table before anybody asks for it; a failure is what its Requests are answered with."""
        table = self._tables[name]
        if table.actor is None and not table.is_unavailable:
            await self._open_tables.open(table)

    async def note_new(self) -> None:
        """Note that a new data folder has default/default, once that is open: what is missing later is missing."""
        if self._catalog.is_new:
            async with self._changing:
                await self._remember()

    async def stop(self) -> None:
        """Close all tables in order; what still comes is answered TABLE_UNAVAILABLE. Again: nothing more."""
        if self._open_tables.stopping:
            return
        self._open_tables.stop_opening()
        await self.watch.stop()
        if self._purging is not None:
            self._purging.cancel()
        async with self._changing:
            await asyncio.gather(*map(self._open_tables.end, self._tables.values()))
        ending = self.changes | ({self._purging} if self._purging is not None else set())
        await asyncio.gather(*ending, return_exceptions=True)
        if self._open_tables.lost is None:  # else it is another's by now
            await self._remember()
            await self._remember_clock(self._administration)
        for pool in (self._loads, self._administration):
            pool.shutdown()

    async def _remember(self) -> None:
        """Have the catalog know how far all logs reach; not with each table that closes, since all are written."""
        logs = {name: table.known for name, table in self._tables.items() if table.known is not None}
        try:
            await self._loop.run_in_executor(self._administration, self._catalog.remember, logs)
        except ReadOnly as error:
            self._reporter.warning(
                "how far the logs reach could not be noted; the next start knows less", error=str(error)
            )

    async def _purge(self) -> None:
        while True:
            is_clock_right = self._is_clock_right()
            if is_clock_right:
                await self._remember_clock(self._loads)
                await self._remove_dropped()
            await asyncio.sleep(_PURGE_SECONDS if is_clock_right else _DOUBT_SECONDS)

    async def _remove_dropped(self) -> None:
        keep_seconds = self._storage.dropped_keep_seconds
        try:
            removed = await self._loop.run_in_executor(
                self._loads, self._catalog.remove_dropped, keep_seconds, self._not_removed
            )
        except OSError as error:
            self._reporter.warning("dropped tables could not be removed", error=str(error))
        else:
            for dropped in removed:
                self._reporter.info("a dropped table's files are removed", table=str(dropped.name))
                await asyncio.sleep(0)  # there may be thousands

    def _is_clock_right(self) -> bool:
        return self._clock is None or self._clock.is_right()

    async def _remember_clock(self, pool: Executor) -> None:
        if self._clock is not None and self._clock.is_right():
            await self._loop.run_in_executor(pool, self._clock.remember)

    def _not_removed(self, dropped: Dropped, error: OSError) -> None:
        self._reporter.warning(
            "a dropped table's files could not be removed",
            table=str(dropped.name),
            path=str(dropped.folder),
            error=str(error),
        )

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
        """Dropped tables whose files are still there; none, with a line in the log, where the disk does not tell."""
        try:
            return await self._loop.run_in_executor(self._administration, self._catalog.dropped)
        except OSError as error:
            self._reporter.warning("dropped tables could not be listed", error=str(error))
            return []

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
                if self._effective(settings).needs_reopening(self._effective(table.settings)):
                    await self.watch.refuse_to_reopen(table)
                    await self._check_can_open(name)
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
                    stays = await self._change(partial(self._catalog.drop_table, name))
                    if stays is not None:
                        self._reporter.warning(
                            "a dropped table's files stay where they are",
                            table=str(name),
                            path=str(self._catalog.folder(name)),
                            error=str(stays),
                        )
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
        TableNotFound, what keeps the table from being opened, and ReadOnly, with the table as it was, where its files
        are not all there.
        """
        table = self._find(name)
        async with self._open_tables.holding(table):
            if self._tables.get(name) is not table:
                raise TableNotFound(f"no table {name}")
            await self.watch.refuse_to_reopen(table)
            await self._check_can_open(name)
            await self._open_tables.close(table)
            table.is_unavailable = False
            table.refuse(None)
            await self._open_tables.open(table)
            if table.refusal is not None:
                raise table.refusal()

    async def _check_can_open(self, name: TableName) -> None:
        """Raises Busy where the table could not be opened again if it were closed: better it serves as it does."""
        try:
            await self._loop.run_in_executor(self._administration, check_some_are_left)
        except OSError as error:
            limit = limit_of(error)
            if limit is None:
                raise
            raise Busy(f"table {name} is not reopened: no further {limit.title}; {limit.remedy}") from error

    def _find(self, name: TableName) -> Slot:
        if self._open_tables.stopping:
            raise TableUnavailable(STOPPING)
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
        table.known = self._catalog.known(name)
        self._tables[name] = table
        insort(self._names, name)
        self._dispatcher.add(name, table.mailbox)

    async def _check_catalog(self) -> None:
        # Where it is changed, so that no change of our own looks like another's.
        await self._loop.run_in_executor(self._administration, self._catalog.check)

    async def _change(self, change: Callable[[], T]) -> T:
        if self._open_tables.stopping:
            raise TableUnavailable(STOPPING)
        if (lost := self._open_tables.lost) is not None:
            raise ReadOnly(f"no table is created, changed or dropped: {lost}; {lost.advice}")
        return await self._loop.run_in_executor(self._administration, change)

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
