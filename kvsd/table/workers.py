"""Jobs on worker threads, whose ends are told on the event loop.

Owns: the jobs of one table that are under way. Must not know what a job does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pools:
    """Worker threads. Apart, so that a slow cold read never delays a commit."""

    commits: Executor
    reads: Executor
    compactions: Executor
    """Of one thread: one table after the other takes a step."""
    hints: Executor | None = None
    """Of one thread; without it none are written."""


class Workers:
    """One table's use of the pools. What a job, or whoever is told of its end, raises unforeseen goes to `on_fault`."""

    def __init__(self, pools: Pools, on_fault: Callable[[Exception], None]) -> None:
        self.pools = pools
        self._on_fault = on_fault
        self._loop = asyncio.get_running_loop()
        self._jobs: set[asyncio.Future[Any]] = set()

    def run(
        self,
        pool: Executor,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[OSError], None] | None = None,
    ) -> None:
        """Run `job` on a worker, shielded from everybody's cancellation; `done` or `failed` follows on the loop."""

        def ended(future: asyncio.Future[T]) -> None:
            try:
                result = future.result()
            except OSError as error:
                if failed is None:
                    raise
                failed(error)
            else:
                done(result)

        self.watch(self._loop.run_in_executor(pool, job), ended)

    def watch(self, job: asyncio.Future[T], ended: Callable[[asyncio.Future[T]], None]) -> None:
        """Count `job` among those under way, and call `ended` at its end."""

        def finished(future: asyncio.Future[T]) -> None:
            self._jobs.discard(future)
            try:
                ended(future)
            except Exception as error:
                self._on_fault(error)

        self._jobs.add(job)
        job.add_done_callback(finished)

    async def call(self, job: Callable[[], None]) -> None:
        """Run `job` among the commits, and wait for it. Raises what it raises."""
        await self._loop.run_in_executor(self.pools.commits, job)

    def after_others(self, then: Callable[[], None]) -> None:
        """Call `then` once all that is under way now has ended, and its end been told."""
        others = set(self._jobs)
        if not others:
            then()

        def ended(other: asyncio.Future[Any]) -> None:
            others.discard(other)
            if not others:
                then()

        for other in list(others):
            other.add_done_callback(ended)

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._jobs:
            await asyncio.wait(self._jobs)
