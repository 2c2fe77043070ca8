"""A running TableActor on a faulty medium, with workers that a test can step."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.compactor import CompactionOptions
from kvsd.table.log import Log, LogOptions
from kvsd.table.open_segments import OpenSegments
from kvsd.table.request import Operation, Origin, Request, Result
from kvsd.table.store import Store
from kvsd.table.workers import Pools
from tests.table.driver import ticking
from tests.table.medium import FaultyMedium, Gate

SECONDS = 20
_ON_DEMAND = CompactionOptions(auto=False)


class Inline(Executor):
    """Runs each job at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Stepped(Executor):
    """Keeps the jobs until a test runs one; what it came to is told when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((future, fn))
        return future

    def run(self, index: int = 0) -> Callable[[], None]:
        """Run one job; the returned function tells its outcome."""
        future, job = self.jobs.pop(index)
        try:
            result = job()
        except Exception as error:
            outcome = error
            return lambda: future.set_exception(outcome)
        return lambda: future.set_result(result)

    @property
    def names(self) -> list[str]:
        return [getattr(job, "__self__", None).__class__.__name__ for _, job in self.jobs]


class Recorder:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(("info", event))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(("warning", event))

    def critical(self, event: str, **fields: object) -> None:
        self.events.append(("critical", event))


class Serving:
    """The actor, and what a door needs to ask it."""

    def __init__(
        self,
        medium: FaultyMedium,
        pools: Pools,
        *,
        cache_bytes: int,
        memory_bytes: int,
        interval_ms: int,
        compaction: CompactionOptions,
        is_clock_right: Callable[[], bool],
        open_segments: OpenSegments | None,
        **options: Any,
    ) -> None:
        self.medium = medium
        options.setdefault("now_us", ticking())
        self.store = Store(self._log(open_segments, **options), cache_bytes=cache_bytes)
        self.store.recover()
        self.reporter = Recorder()
        self.actor = TableActor(
            "default/default",
            self.store,
            asyncio.Queue(),
            pools,
            self.reporter,
            fsync_interval_ms=interval_ms,
            compaction=compaction,
            is_clock_right=is_clock_right,
        )
        self.budget = Budget(memory_bytes)
        self.origin = self.new_origin()
        self.loop = asyncio.get_running_loop()
        self.task = self.loop.create_task(self.actor.run())

    def _log(self, open_segments: OpenSegments | None, **options: Any) -> Log:
        return Log(self.medium.root / "t", LogOptions(**options), self.medium, open_segments=open_segments)

    def new_origin(self) -> Origin:
        return Origin(self.budget)

    def request(self, *operations: Operation, origin: Origin | None = None) -> Request:
        """Put into the mailbox; nothing of it has been executed yet."""
        request = Request(operations, origin or self.origin, self.loop.create_future())
        self.actor.mailbox.put_nowait(request)
        return request

    async def ask(self, *operations: Operation) -> list[Result]:
        """The results; what the reply holds is given back, and what was cut is asked for again, as a session does."""
        results: list[Result] = []
        while not results or len(results) < len(operations):
            request = self.request(*operations[len(results) :])
            results += await request.future
            self.budget.release(request.held_bytes)
            self.origin.is_cut = False
        return results

    async def settle(self) -> None:
        """Let the loop do all that it can do without a worker."""
        for _ in range(30):
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Wait until no worker has anything to do."""
        await self.settle()
        while self.actor._workers._jobs:
            await asyncio.wait(self.actor._workers._jobs)
            await self.settle()

    async def reached(self, gate: Gate) -> None:
        assert await asyncio.to_thread(gate.reached.wait, SECONDS)

    async def stop(self) -> None:
        if not self.task.done():
            await self.actor.mailbox.put(None)
        await self.task


@asynccontextmanager
async def serving(
    medium: FaultyMedium,
    *,
    commits: Executor | None = None,
    reads: Executor | None = None,
    compactions: Executor | None = None,
    hints: Executor | None = None,
    cache_bytes: int = 0,
    memory_bytes: int = 1 << 20,
    interval_ms: int = 1_000,
    compaction: CompactionOptions = _ON_DEMAND,
    is_clock_right: Callable[[], bool] = lambda: True,
    open_segments: OpenSegments | None = None,
    **options: Any,
) -> AsyncIterator[Serving]:
    """A table that is stopped at the end, within a bound; then nothing must be held or open any more."""
    threads = ThreadPoolExecutor(4)
    pools = Pools(commits=commits or threads, reads=reads or threads, compactions=compactions or threads, hints=hints)
    async with asyncio.timeout(SECONDS):
        served = Serving(
            medium,
            pools,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            interval_ms=interval_ms,
            compaction=compaction,
            is_clock_right=is_clock_right,
            open_segments=open_segments,
            **options,
        )
        try:
            yield served
            await served.stop()
            assert served.budget.held_bytes == 0
            assert not medium.open_files
        finally:
            served.task.cancel()
            threads.shutdown()
