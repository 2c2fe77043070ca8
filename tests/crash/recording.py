"""A table's actor at work on a recorded medium, and what a crash at each recorded operation may leave of its writes.

Owns: the actor's runs, from recovery to a clean or an unclean end, and the model of what they wrote. What survives a
crash must be the state after some write of the log's order: never one before the last write that was promised to be
durable, and none that was not yet asked for. A batch is one write. So is each key that the sweep logs as expired.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvsd.errors import Conflict, ReadOnly, TableUnavailable
from kvsd.table import index
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.compactor import CompactionOptions
from kvsd.table.log import Log, LogOptions
from kvsd.table.request import Batch, Check, Delete, Get, Operation, Origin, Request, Result, Set, Update
from kvsd.table.segment import Stored
from kvsd.table.segment_header import TEMPORARY
from kvsd.table.store import Store
from kvsd.table.workers import Pools
from kvsd.types import Fsync
from tests.table.driver import Clock, Table
from tests.table.medium import Call, FaultyMedium, PowerCut

State = dict[bytes, tuple[bytes, int]]
"""What the log says, whatever the time: values, and when they expire."""

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
    newest: dict[bytes, int] = field(default_factory=dict)
    """The state that the newest write of a key led to; 0 none."""
    ends: int = NOT_YET

    def write(self, moment: int, changes: dict[bytes, tuple[bytes, int] | None]) -> int:
        """One write, of whatever size; None deletes. Returns the number of the state."""
        after = self.states[-1] | changes
        self.states.append({key: held for key, held in after.items() if held is not None})
        self.asked.append(moment)
        self.newest |= dict.fromkeys(changes, len(self.asked))
        return len(self.asked)


class SweptStore(Store):
    """Tells which keys it sweeps."""

    swept: Callable[[list[bytes]], None]

    def sweep(self, limit: int) -> int:
        staged = len(self._writes)
        count = super().sweep(limit)
        self.swept([key for key, _ in self._writes[staged:]])
        return count


def found(store: Store) -> State:
    """All that the log holds, each value read from its segment."""
    state = {}
    for key in store.index.keys:
        stored = store._stored(key, lambda _: True)
        assert stored is None or isinstance(stored, Stored)  # this medium reads everything without waiting
        if stored is not None:
            state[key] = stored.value, store.index.expiries.times.get(key, 0)
    return state


class Recording:
    """Requests to one table, run after run; then `allowed` and `seen` for a crash at any moment."""

    def __init__(
        self, medium: FaultyMedium, pool: ThreadPoolExecutor, *, fsync: Fsync = Fsync.ALWAYS, segment_bytes: int
    ) -> None:
        self.medium = medium
        self.clock = Clock()
        """Stands still between the calls of `advance`, which alone makes keys expire."""
        self.options = LogOptions(fsync, segment_bytes, self.clock)
        self.runs = [Run(0, [{}])]
        self.tally: Counter[str] = Counter()
        """What has happened, by its kind."""
        self._pool = pool
        self._actor: TableActor

    @property
    def moment(self) -> int:
        return len(self.medium.operations)

    @asynccontextmanager
    async def run(self, *, dies_at: int | None = None) -> AsyncIterator[Reports]:
        """An actor from recovery to its end: clean, or as if the process were killed in its `dies_at`-th call."""
        log = Log(self.medium.root / "t", self.options, self.medium)
        self._store = SweptStore(log, cache_bytes=0)
        self._store.swept = self._note_swept
        self._store.recover()
        self.runs.append(Run(self.moment, [found(self._store)]))
        assert self.runs[-1].states[0] in self.allowed(self.moment - 1), "a killed process lost an acknowledged write"
        reports = Reports()
        # What a loose log had promised is told by its newest file: an output would be taken for one.
        compaction = CompactionOptions(auto=self.options.fsync is Fsync.ALWAYS, garbage_ratio=0.5)
        with ThreadPoolExecutor(1) as hints:
            pools = Pools(commits=self._pool, reads=self._pool, compactions=self._pool, hints=hints)
            self._actor = TableActor(
                "t", self._store, asyncio.Queue(), pools, reports, fsync_interval_ms=1, compaction=compaction
            )
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

    # What is asked

    async def ask(self, *operations: Operation) -> list[Result]:
        """One Request. Checks what it returns, unless the table is gone or refuses writes.

        Refused writes must never be found from then on; only where nobody else writes can it be told which those are.
        What has a condition comes alone, right after `version`.
        """
        run = self.runs[-1]
        before = len(run.states) - 1
        expectations = [self._expect(operation) for operation in operations]
        future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        self._actor.mailbox.put_nowait(Request(operations, Origin(Budget(1 << 30)), future))
        async with asyncio.timeout(20):
            results = await future
        if any(isinstance(result, ReadOnly) for result in results):
            self.runs.append(Run(self.moment, [run.states[before]]))
        elif not isinstance(results[0], TableUnavailable):
            for result, (expected, _) in zip(results, expectations, strict=True):
                assert _told(result) == _told(expected)
            locations = [self._store.index.find(key) for operation in operations for key in _keys(operation)]
            seen = max((index.seq_of(location) for location in locations if location is not None), default=0)
            run.answered.append((self.moment, max(upto for _, upto in expectations), seen))
        return results

    async def version(self, key: bytes) -> int:
        """That of `key` once all that was asked is decided; it holds until the caller waits for anything."""
        async with asyncio.timeout(20):
            while not self._actor.mailbox.empty():
                await asyncio.sleep(0)
        return self._store.version(key)

    async def advance(self, seconds: int, *, sweep: bool) -> None:
        """So much time passes, then perhaps the sweep comes by; returns when what it logged is committed."""
        await self.version(b"")
        self.clock.now_us += seconds * 1_000_000
        if sweep and self._actor._sweep_timer is not None:
            self._actor._sweep_timer.cancel()
            first = len(self.runs[-1].states)
            self._actor._sweep()
            swept = [key for key, number in self.runs[-1].newest.items() if number >= first]
            if swept:
                await self.ask(*map(Get, swept))

    def _note_swept(self, keys: list[bytes]) -> None:
        for key in keys:
            assert self._has_expired(key)
            self.runs[-1].write(self.moment, {key: None})
        self.tally["swept"] += len(keys)
        assert all(key in self._store.pending for key in self.runs[-1].states[-1] if self._has_expired(key))

    def _expect(self, operation: Operation) -> tuple[Result, int]:
        """The result, and up to which of the states all must be durable once somebody has it."""
        run = self.runs[-1]
        match operation:
            case Get(key):
                return self._held(key)[0], run.newest.get(key, 0)
            case Set(key, value, expires_us, if_version):
                return self._conflict(key, if_version) or (None, self._write({key: (value, expires_us)}))
            case Delete(key, if_version):
                old = self._held(key)[0]
                unchanged = old, run.newest.get(key, 0)
                conflict = self._conflict(key, if_version)
                if conflict is None and self._has_expired(key):
                    return None, run.write(self.moment, {key: None})  # else a clock that is set back would revive it
                return conflict or (unchanged if old is None else (old, self._write({key: None})))
            case Update(key, change):
                made = change(*self._held(key))
                if made.is_kept:
                    return made.result, run.newest.get(key, 0)
                assert made.value is not None
                return made.result, self._write({key: (made.value, made.expires_us)})
            case Batch(steps):
                return self._expect_batch(steps)
            case _:
                raise NotImplementedError(operation)

    def _expect_batch(self, steps: tuple[Set | Delete | Check, ...]) -> tuple[Result, int]:
        for step in steps:
            conflict = self._conflict(step.key, step.if_version)
            if conflict is not None:
                return conflict
        changes: dict[bytes, tuple[bytes, int] | None] = {}
        for step in steps:
            match step:
                case Set(key, value, expires_us):
                    changes[key] = value, expires_us
                case Delete(key) if key in changes or self._held(key)[0] is not None or self._has_expired(key):
                    changes[key] = None
                case _:
                    pass
        if changes:
            self.tally["batch"] += len(changes) > 1
            return None, self._write(changes)
        return None, max(self.runs[-1].newest.get(step.key, 0) for step in steps)

    def _conflict(self, key: bytes, if_version: int | None) -> tuple[Conflict, int] | None:
        if if_version is None:
            return None
        assert self._actor.mailbox.empty(), "the version may change before this is decided"
        version = self._store.version(key)
        self.tally["condition held" if version == if_version else "conflict"] += 1
        return None if version == if_version else (Conflict("", version), self.runs[-1].newest.get(key, 0))

    def _write(self, changes: dict[bytes, tuple[bytes, int] | None]) -> int:
        for key in changes:
            if self._has_expired(key):
                self.tally["logged before it was written anew"] += 1
                self.runs[-1].write(self.moment, {key: None})
        return self.runs[-1].write(self.moment, changes)

    def _held(self, key: bytes) -> tuple[bytes | None, int]:
        """What can be seen of `key` when all that was asked is decided."""
        return (None, 0) if self._has_expired(key) else self.runs[-1].states[-1].get(key, (None, 0))

    def _has_expired(self, key: bytes) -> bool:
        _, expires_us = self.runs[-1].states[-1].get(key, (None, 0))
        return 0 < expires_us <= self.clock.now_us

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
            if operation.call is Call.CREATE and operation.name.endswith(f".seg{TEMPORARY}"):
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
        )
        assert found(table.store) in self.allowed(moment)
        assert table.log.last_seq >= self.seen(moment)
        table.kill()
        assert not survivor.open_files


def _keys(operation: Operation) -> list[bytes]:
    match operation:
        case Get(key) | Set(key) | Delete(key) | Update(key):
            return [key]
        case Batch(steps):
            return [step.key for step in steps]
        case _:
            raise NotImplementedError(operation)


def _told(result: Result) -> object:
    """What of `result` can be foretold."""
    return ("conflict", result.version) if isinstance(result, Conflict) else result


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
