"""Which tables are open, and what becomes of Requests for those that are not.

Owns: opening on first use, the cap of open tables, and closing in order. Must not know which tables there are, who
changes them, sessions, nor what is in a table.

A table's mailbox lasts as long as the table, and longer than its actors: whoever holds it may put Requests there at any
time. Behind it is an actor, or else `Slot.knock`, which opens the table or answers why it cannot be had. So there
is no moment in which a Request could be swallowed by a table that closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Final

from kvsd.errors import Busy, KvsdError, Loading, StorageError, TableUnavailable
from kvsd.server.loading import Loader
from kvsd.server.names import TableName
from kvsd.server.reporting import Reporter
from kvsd.server.slot import Slot
from kvsd.server.table_settings import Effective, TableSettings
from kvsd.table.actor import TableActor
from kvsd.table.limits import limit_of
from kvsd.table.medium import LostFile, Medium
from kvsd.table.open_segments import OpenSegments
from kvsd.table.progress import RecoveryAbandoned
from kvsd.table.workers import Pools

_PLACED_AT_ONCE: Final = 4
"""Tables that look for their place: each looks at all that are open, whenever one of these moves."""

PATIENCE_SECONDS: Final = 0.25
"""Requests wait for so long that their table opens, as small ones do; then they are answered LOADING."""

_HINTS_SECONDS: Final = 2.0
"""A stop spends no more on hints, which only save time at the next start."""

STOPPING: Final = "the server is stopping"

_RETRY_SECONDS: Final = 1.0
"""The time for which whoever asks for a table that met a limit is told so without another try."""


class OpenTables:
    """Opens and closes Slots; all on the event loop. Iterating yields those with an actor or on the way to one."""

    def __init__(
        self,
        folder: Callable[[TableName], Path],
        effective: Callable[[TableSettings], Effective],
        pools: Pools,
        loads: Executor,
        reporter: Reporter,
        *,
        max_open_tables: int,
        medium: Medium,
        patience_seconds: float,
        is_clock_right: Callable[[], bool],
        open_segments: OpenSegments,
    ) -> None:
        self.stopping = False
        """The server stops: nothing is opened any more."""
        self.lost: LostFile | None = None
        """The data folder is not where it was: nothing is opened meanwhile."""
        self._folder = folder
        self._effective = effective
        self._pools = pools
        self._loads = loads
        self._reporter = reporter
        self._max_open_tables = max_open_tables
        self._medium = medium
        self._patience_seconds = patience_seconds
        self._is_clock_right = is_clock_right
        self._open_segments = open_segments
        self._loop = asyncio.get_running_loop()
        self._open: dict[Slot, None] = {}
        """Those with an actor or on the way to one."""
        self._placed: set[Slot] = set()
        """Those of them that count for the cap; the others wait for a place."""
        self._loaders: set[Loader] = set()
        self._placing = asyncio.Semaphore(_PLACED_AT_ONCE)
        self._moved = asyncio.Event()
        """A place may be free, or be made so."""

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._open)

    def __len__(self) -> int:
        return len(self._open)

    def stop_opening(self) -> None:
        """From now on whoever wants a table is answered TABLE_UNAVAILABLE; `end` closes those that are open.

        Recoveries are given up: each would take as long as its log is.
        """
        self.stopping = True
        for loader in self._loaders:
            loader.abandon()
        until = time.monotonic() + _HINTS_SECONDS
        for table in self._open:
            if table.actor is not None:
                table.actor.hurry(until)

    def want(self, table: Slot) -> None:
        """Begin to open `table`, unless it is open or on the way to it; or refuse what waits, once the server stops."""
        if self.stopping:
            table.refuse(lambda: TableUnavailable(STOPPING))
        elif table.opening is None and table.actor is None:
            self._open[table] = None
            table.opening = self._loop.create_task(self._opening(table), name=f"open {table.name}")

    async def open(self, table: Slot) -> None:
        """Wait until `table` has an actor, or `refusal` says why not."""
        self.want(table)
        if table.opening is not None:
            await asyncio.wait([table.opening])

    async def _opening(self, table: Slot) -> None:
        loader: Loader | None = None
        patience = self._loop.call_later(
            self._patience_seconds,
            table.refuse,
            lambda: Loading(f"table {table.name} is being loaded, {loader or 0} %"),
        )
        error: KvsdError | None = None
        is_abandoned = False
        try:
            async with self._placing:
                await self._take_place(table)
            if self.lost is not None:
                raise TableUnavailable(f"table {table.name} cannot be opened: {self.lost}; {self.lost.advice}")
            effective = self._effective(table.settings)
            loader = Loader(
                table.name, self._folder(table.name), table.known, effective, self._medium, self._open_segments
            )
            self._loaders.add(loader)
            if self.stopping:
                loader.abandon()
            store = await self._loop.run_in_executor(self._loads, loader.run)
            actor = TableActor(
                str(table.name),
                store,
                table.mailbox,
                self._pools,
                self._reporter,
                fsync_interval_ms=effective.fsync_interval_ms,
                compaction=effective.compaction_options,
                is_clock_right=self._is_clock_right,
            )
        except RecoveryAbandoned:
            error, is_abandoned = TableUnavailable(STOPPING), True
        except (StorageError, TableUnavailable) as failure:
            error = failure
        except OSError as failure:
            limit = limit_of(failure)
            if limit is not None:
                error = Busy(f"table {table.name} cannot be opened now: no further {limit.title}; {limit.remedy}")
            else:
                error = TableUnavailable(
                    f"table {table.name} cannot be opened: {failure}; check the disk, then reopen it"
                )
        except Exception as fault:
            self._reporter.critical("internal fault while a table was opened", table=str(table.name), exc_info=fault)
            error = TableUnavailable(f"table {table.name} is unavailable after an internal fault; see the server's log")
        patience.cancel()
        if loader is not None:
            self._loaders.discard(loader)
        table.opening = None
        if error is not None:
            if not is_abandoned:
                report = self._reporter.warning if error.retryable else self._reporter.critical
                report("a table cannot be opened", table=str(table.name), error=str(error))
            self._give_up(table, error)
            return
        if store.log.is_new:
            folder = str(self._folder(table.name).absolute())
            self._reporter.info("a new log is begun", table=str(table.name), path=folder)
        if store.log.torn_tail:
            self._reporter.warning("an interrupted append was cut off and set aside", table=str(table.name))
        if store.log.is_settled:
            table.known = store.log.known
        table.refusal = None
        table.mailbox.on_put = None
        table.actor = actor
        table.running = self._loop.create_task(actor.run(), name=f"table {table.name}")
        table.running.add_done_callback(partial(self._ended, table))
        self._moved.set()

    async def _take_place(self, slot: Slot) -> None:
        """Wait until few enough tables are open, and close what was not used for longest, idle ones first.

        One that its disk has failed keeps its place beyond the cap: only `reopen` closes it.
        """
        while True:
            count = 0
            victim: Slot | None = None
            for other in self._placed:
                if other.actor is not None and not other.is_healthy:
                    continue
                count += 1
                if other.actor is None or other.closing or other.lock.locked():
                    continue
                if victim is None or _use_of(other) < _use_of(victim):
                    victim = other
            if count < self._max_open_tables:
                break
            if victim is not None:
                async with self.holding(victim):
                    await self.close(victim)
            else:
                self._moved.clear()
                await self._moved.wait()
        self._placed.add(slot)

    @contextlib.asynccontextmanager
    async def holding(self, table: Slot) -> AsyncIterator[None]:
        """The lock of `table`, whose end may be what an opening waits for."""
        try:
            async with table.lock:
                yield
        finally:
            self._moved.set()

    async def settled(self, table: Slot) -> None:
        """Wait until `table` is not on its way to be opened, which takes back what it refuses meanwhile."""
        while table.opening is not None:
            await asyncio.wait([table.opening])

    async def close(self, table: Slot) -> None:
        """Under its lock: answer all that waits, seal the log, and let go of its files."""
        await self.settled(table)
        if table.running is None:
            return
        running, actor = table.running, table.actor
        table.closing = True
        await table.mailbox.put(None)
        await asyncio.wait([running])
        table.closing = False
        if actor is not None and not self.stopping:
            for _ in actor.free():
                await asyncio.sleep(0)

    async def end(self, table: Slot) -> None:
        """Close `table` for good, after `stop_opening`."""
        async with self.holding(table):
            if table.refusal is None:
                table.refuse(lambda: TableUnavailable(STOPPING))
            await self.close(table)

    def _ended(self, table: Slot, running: asyncio.Task[None]) -> None:
        """The actor's task has ended, by `close` or by a fault of ours."""
        if running.cancelled():
            return  # the loop is being torn down
        if table.actor is not None and table.actor.closed_at is not None:
            table.known = table.actor.closed_at
        table.actor = table.running = None
        table.mailbox.on_put = table.knock
        error = running.exception()
        if error is not None:
            # Nothing acknowledged is lost: recovery settles what the actor could not.
            self._reporter.critical("a table was not closed in order", table=str(table.name), exc_info=error)
        if not table.closing:
            self._give_up(table, TableUnavailable(f"table {table.name} has ended; reopen it, or restart the server"))
            return
        self._leave(table)
        if not table.mailbox.empty():
            table.knock()

    def _leave(self, table: Slot) -> None:
        del self._open[table]
        self._placed.discard(table)
        self._moved.set()

    def _give_up(self, table: Slot, error: KvsdError) -> None:
        """Refuse what waits; a table that is merely busy is tried again when somebody asks for it after a moment."""
        self._leave(table)
        table.is_unavailable = not error.retryable
        table.refuse(lambda: error)
        if error.retryable:
            refusal = table.refusal

            def ask_again() -> None:
                if table.refusal is refusal:
                    table.refuse(None)

            self._loop.call_later(_RETRY_SECONDS, ask_again)


def _use_of(table: Slot) -> tuple[bool, int]:
    """Idle ones first, and of these those first that were not used for longest."""
    return not table.mailbox.empty(), table.mailbox.used_at
