"""A look, once a second, at whether the data folder and the files of the open tables are where they were.

Owns: when that is, and what it costs with many tables. Must not know what is in the files. What was removed, moved,
replaced or cut from outside makes tables read-only: an OK would be for what nobody finds again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from kvsd.errors import ReadOnly
from kvsd.server.open_tables import OpenTables
from kvsd.server.reporting import Reporter
from kvsd.server.slot import Slot
from kvsd.table.look import Look
from kvsd.table.medium import LostFile
from kvsd.table.threads import Threads

_PAUSE_SECONDS: Final = 1.0
_SEGMENTS: Final = 500
"""Sealed segments that one look is at, of all tables together, at 10 µs each; the next one goes on with others. Folders
and the segments that are written are looked at each time."""


class Watch:
    """Over `tables`; `check_root` and `check_catalog` raise LostFile. From `start` to `stop` it looks by itself."""

    def __init__(
        self,
        tables: OpenTables,
        check_root: Callable[[], None],
        check_catalog: Callable[[], Awaitable[None]],
        reporter: Reporter,
    ) -> None:
        self._tables = tables
        self._check_root = check_root
        self._check_catalog = check_catalog
        self._is_catalog_lost = False
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._executor = Threads(1, "kvsd-watch")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._loop.create_task(self._run(), name="watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._executor.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self.look()
            except Exception as fault:
                self._reporter.critical("internal fault while files were looked at", exc_info=fault)

    async def look(self) -> None:
        """One look, to its end: what is missing then has made its table read-only, and the log says so."""
        healthy = [table for table in self._tables if table.is_healthy and not table.closing]
        await self._look(healthy, limit=max(1, _SEGMENTS // max(1, len(healthy))))
        if self._tables.lost is None:
            await self._look_at_catalog()

    async def refuse_to_reopen(self, table: Slot) -> None:
        """Raises ReadOnly while files that `table` has lost are not back: it would be opened without what they held."""
        await self._look([table] if table.actor is not None and not table.closing else [], limit=None)
        lost = self._tables.lost or (table.actor.lost if table.actor is not None else None)
        if lost is not None:
            raise ReadOnly(f"table {table.name} is not reopened, since keys would be missing: {lost}; {lost.advice}")

    async def _look(self, tables: list[Slot], limit: int | None) -> None:
        looks = [(table.actor, table.actor.look(limit)) for table in tables if table.actor is not None]
        job = self._loop.run_in_executor(self._executor, self._run_all, [look for _, look in looks])
        for actor, look in looks:
            actor.expect_look(look, job)
        # The worker goes on if this is cancelled, and the tables must wait for it.
        self._judge_root(await asyncio.shield(job))

    def _run_all(self, looks: list[Look]) -> LostFile | None:
        """Look on the worker. What the file system does not answer says nothing about the files."""
        try:
            self._check_root()
        except LostFile as error:
            return error
        except OSError:
            return None
        for look in looks:
            with contextlib.suppress(OSError):
                look.run()
        return None

    async def _look_at_catalog(self) -> None:
        try:
            await self._check_catalog()
        except LostFile as lost:
            if not self._is_catalog_lost:
                self._is_catalog_lost = True
                self._reporter.critical(
                    "the catalog of tables is not the server's own any more",
                    path=str(lost.path),
                    found=lost.what,
                    advice=lost.advice,
                )
        except OSError:
            pass  # that says nothing about the file
        else:
            self._is_catalog_lost = False

    def _judge_root(self, lost: LostFile | None) -> None:
        """Tell all tables whether the root is `lost`, with one line in the log."""
        if lost is not None and self._tables.lost is None:
            self._reporter.critical(
                "the data folder is gone from under the server; all tables are read-only",
                path=str(lost.path),
                found=lost.what,
                advice=lost.advice,
            )
        self._tables.lost = lost
        if lost is not None:
            for table in self._tables:
                if table.actor is not None:
                    table.actor.lose(lost, is_told=True)
