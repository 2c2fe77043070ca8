"""A table's actor at work on a recorded medium, and what a crash at each recorded operation may leave of its writes.

Owns: the actor's runs, from recovery to a clean or an unclean end, and the model of what they wrote. What survives a
crash must be the state after some write of the log's order: never one before the last write that was promised to be
durable, and none that was not yet asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from bisect import bisect_left
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvsd.errors import ReadOnly, TableUnavailable
from kvsd.table import index
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.compactor import CompactionOptions
from kvsd.table.log import Log, LogOptions
from kvsd.table.request import Delete, Operation, Origin, Request, Result, Set
from kvsd.table.segment import TEMPORARY
from kvsd.table.store import Store
from kvsd.table.workers import Pools
from kvsd.types import Fsync
from tests.table.driver import Table, ticking
from tests.table.medium import Call, FaultyMedium, PowerCut

State = dict[bytes, bytes]

NOT_YET: Final = 1 << 62


class Reports:
    """A structured logger that remembers."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(event)

    debug = warning = error = critical = info


@dataclass
class Run:
    """One run of the actor, or a part of it. Moments are counts of recorded operations."""

    begins: int
    """When its recovery was complete, or its writes were refused."""
    states: list[State]
    """As each write leaves them, in the log's order; the first is what recovery found."""
    asked: list[int] = field(default_factory=list)
    """When each write was asked for."""
    answered: list[tuple[int, int, int]] = field(default_factory=list)
    """When, up to which of the states, and the highest seq that could be seen then."""
    ends: int = NOT_YET


class Recording:
    """Requests to one table, run after run; then `allowed` and `seen` for a crash at any moment."""

    def __init__(self, medium: FaultyMedium, pool: ThreadPoolExecutor, options: LogOptions) -> None:
        self.medium = medium
        self.options = options
        self.runs = [Run(0, [{}])]
        self._pools = Pools(commits=pool, reads=pool, compactions=pool)
        self._actor: TableActor

    @property
    def moment(self) -> int:
        return len(self.medium.operations)

    @asynccontextmanager
    async def run(self, *, dies_at: int | None = None) -> AsyncIterator[Reports]:
        """An actor from recovery to its end: clean, or as if the process were killed in its `dies_at`-th call."""
        log = Log(self.medium.root / "t", self.options, self.medium)
        self._store = Store(log, cache_bytes=0)
        self._store.recover()
        self.runs.append(Run(self.moment, [self._found()]))
        assert self.runs[-1].states[0] in self.allowed(self.moment - 1), "a killed process lost an acknowledged write"
        reports = Reports()
        # What a loose log had promised is told by its newest file: an output would be taken for one.
        compaction = CompactionOptions(auto=self.options.fsync is Fsync.ALWAYS, garbage_ratio=0.2)
        self._actor = TableActor("t", self._store, self._pools, reports, fsync_interval_ms=1, compaction=compaction)
        task = asyncio.create_task(self._actor.run())
        if dies_at is not None:
            self.medium.cut_power(at=dies_at)
        yield reports
        await self._actor.mailbox.put(None)
        async with asyncio.timeout(20):
            with suppress(PowerCut):  # from the SEAL of the end
                await task
        self.medium.kill()
        self.runs[-1].ends = self.moment

    def _found(self) -> State:
        found = {}
        for key in list(self._store._index._locations):
            value = self._store.get(key)
            if value is not None:
                assert isinstance(value, bytes)  # this medium reads everything without waiting
                found[key] = value
        return found

    async def ask(self, *operations: Operation) -> list[Result]:
        """One Request. Checks what it returns, unless the table is gone or refuses writes.

        Refused writes must never be found from then on; only where nobody else writes can it be told which those are.
        """
        run = self.runs[-1]
        before = len(run.states) - 1
        expected: list[Result] = []
        upto = 0
        for operation in operations:
            state = run.states[-1]
            expected.append(None if isinstance(operation, Set) else state.get(operation.key))
            match operation:
                case Set(key, value):
                    state = state | {key: value}
                case Delete(key) if key in state:
                    state = {k: v for k, v in state.items() if k != key}
                case _:
                    continue  # the answer does not wait for the writes of others
            run.asked.append(self.moment)
            run.states.append(state)
            upto = len(run.states) - 1
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self._actor.mailbox.put_nowait(Request(operations, Origin(Budget(1 << 30)), future))
        async with asyncio.timeout(20):
            results = await future
        if any(isinstance(result, ReadOnly) for result in results):
            self.runs.append(Run(self.moment, [run.states[before]]))
        elif not isinstance(results[0], TableUnavailable):
            assert results == expected
            locations = [self._store._index.find(operation.key) for operation in operations]
            seen = max((index.seq_of(location) for location in locations if location is not None), default=0)
            run.answered.append((self.moment, upto, seen))
        return results

    # What a crash may leave

    def allowed(self, moment: int) -> list[State]:
        """The states that a crash after so many operations may leave."""
        run = next(run for run in reversed(self.runs) if run.begins <= moment)
        asked = bisect_left(run.asked, moment)
        promised = self._promised(run, moment)
        durable = [upto for answered, upto, _ in run.answered if answered <= promised]
        return run.states[max(durable, default=0) : asked + 1]

    def _promised(self, run: Run, moment: int) -> int:
        """What `run` had answered by then must survive a crash at `moment`."""
        if self.options.fsync is Fsync.ALWAYS:
            return moment
        # Sealed segments are synced, so a sync of the newest one covers all that was answered before it.
        newest = synced = 0
        for at, operation in enumerate(self.medium.operations[: min(run.ends, moment)]):
            if operation.call is Call.CREATE and operation.name.endswith(TEMPORARY):
                newest = operation.file
            elif operation.call is Call.SYNC and operation.file == newest and at >= run.begins:
                synced = at
        return synced

    def seen(self, moment: int) -> int:
        """The highest number that anybody may have seen by then."""
        return max((seq for run in self.runs for at, _, seq in run.answered if at <= moment), default=0)

    def check(self, moment: int, survivor: FaultyMedium) -> None:
        """A start on `survivor` succeeds, and finds what it must and nothing else."""
        table = Table(
            survivor,
            survivor.root,
            fsync=self.options.fsync,
            segment_bytes=self.options.segment_bytes,
            now_us=ticking(),
        )
        assert table.items() in self.allowed(moment)
        assert table.log.last_seq >= self.seen(moment)
        table.kill()
        assert not survivor.open_files


def cut_everywhere(recording: Recording, folder: Path, *, cuts: int, seed: int) -> None:
    """Recover from `cuts` of the states that a power cut after each operation may leave; from half of them with
    a second cut during the recovery."""
    for moment, disk in recording.medium.prefixes():
        for number in range(cuts):
            rng = random.Random(f"{seed} {moment} {number}")
            names = (folder / str(count) for count in itertools.count())
            try:
                survivor = disk.survivors(rng, next(names))
                if number % 2:
                    survivor.cut_power(at=rng.randint(1, 10))
                    try:
                        recording.check(moment, survivor)
                    except PowerCut:
                        survivor.kill()
                    survivor = survivor.disk().survivors(rng, next(names))
                recording.check(moment, survivor)
            except BaseException as error:
                last = recording.medium.operations[moment - 1]
                error.add_note(f"cut {number} of seed {seed} after operation {moment}: {last.call} {last.name}")
                raise
            shutil.rmtree(folder)
