"""The task that alone touches a table's Store: it takes Requests from the mailbox and answers their Futures.

Owns: the order of a table's operations, who waits for what, and the sweep of what has expired. Must not know the wire,
users, or other tables.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, assert_never

from kvsd.errors import Busy, CorruptLog, ReadOnly, TableUnavailable
from kvsd.table.committer import Committer, Reporter, State
from kvsd.table.compaction import Job
from kvsd.table.compactor import CompactionOptions, Compactor
from kvsd.table.hint_writer import HintWriter
from kvsd.table.known import KnownLog
from kvsd.table.log import Read
from kvsd.table.look import Look
from kvsd.table.medium import LostFile
from kvsd.table.operations import NeedsChecksums, NeedsCommit, NeedsOrder, NeedsValue, Operations, deleted_anyway
from kvsd.table.request import Compact, CompactionProgress, Delete, Mailbox, Origin, Request, Status
from kvsd.table.segment import Stored
from kvsd.table.store import Commit, Store
from kvsd.table.workers import Pools, Workers

T = TypeVar("T")

_OPERATIONS_A_PASS: Final = 1_000
"""After so many, or as much work, the actor lets the event loop run: a few milliseconds."""

_REPLY_BYTES_AN_OPERATION: Final = 16 << 10
"""Reading so many bytes costs as much as a simple operation."""

_SWEEP_SECONDS: Final = 1.0
_SWEEP_KEYS: Final = 250
"""Logged at once, in a few milliseconds, when they have expired."""


class TableActor:
    """Serves one Store until `stop`. A crash is contained: from then on every Request is answered TABLE_UNAVAILABLE."""

    def __init__(
        self,
        name: str,
        store: Store,
        mailbox: Mailbox,
        pools: Pools,
        reporter: Reporter,
        *,
        fsync_interval_ms: int = 1_000,
        compaction: CompactionOptions | None = None,
        is_clock_right: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_clock_right` is asked before what has expired is removed for good."""
        self.name = name
        self.mailbox = mailbox
        """None ends the task, once all before it is answered."""
        self.unavailable: TableUnavailable | None = None
        self.lost: LostFile | None = None
        """The file that the last look has missed."""
        self._store = store
        self._is_clock_right = is_clock_right
        self._reporter = reporter
        self._workers = workers = Workers(pools, self._crash)
        self._committer = Committer(name, store, workers, reporter, self, interval_ms=fsync_interval_ms)
        self._loop = asyncio.get_running_loop()
        self._current: Request | None = None
        self._operations = Operations(store, self)
        self._hints = HintWriter(store.log.medium, pools.hints, self._hint_failed) if pools.hints else None
        self._compactor = Compactor(store, compaction or CompactionOptions(), self)
        self._waiting: defaultdict[int, list[Request]] = defaultdict(list)
        self._blocked: dict[Request, None] = {}
        """Those that cannot be decided to their end yet, in the order in which they came."""
        self._parked: dict[Origin, deque[Request]] = {}
        """Of each origin of a blocked Request, those that came behind it; here, since another table's are not ours."""
        self._sorting: asyncio.Task[None] | None = None
        self._sweep_timer: asyncio.Handle | None = None
        self._sweep_goes_on = False
        """The last one has taken as much as it may; the next one comes with the next commit."""
        self._reading: set[Request] = set()
        """Those that wait for cold reads, or to be executed anew."""
        self._stopping = False
        self.closed_at: KnownLog | None = None
        """The log's reach, once it has been closed, in order or not."""

    @property
    def state(self) -> State:
        return self._committer.state

    def __len__(self) -> int:
        """Keys that have a committed value."""
        return len(self._store)

    async def run(self) -> None:
        """Serve until the mailbox yields None; then commit what is staged, seal the log, and close it."""
        self._write_hints()
        self._compactor.consider()
        self._compactor.written()
        self._plan_sweep(_SWEEP_SECONDS)
        while not self._stopping:
            request = await self.mailbox.get()
            try:
                self._serve(request)
                if self._store.pending and not self._committer.is_committing and not self._stopping:
                    # What the ready sockets bring joins the group: sets of 50 connections cost 15 % less CPU.
                    await asyncio.sleep(0)
                    if not self.mailbox.empty():
                        self._serve(self.mailbox.get_nowait())
                self._committer.start()
            except Exception as error:
                self._crash(error)
            if not self.mailbox.empty():
                await asyncio.sleep(0)  # sockets and replies have their turn, even if the mailbox never empties
        self._compactor.stop()
        await self._workers.idle()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        last = await self._committer.finish()
        log = self._store.log
        self.closed_at = log.known_committed if last is None else log.known_at_end
        if self._hints is not None:
            if last is not None:
                await self._workers.call(partial(self._hints.add_last, *last))
            await self._workers.call(self._hints.stop)
        self._store.log.close()

    def _serve(self, request: Request | None) -> None:
        """Execute what the mailbox holds, up to a bound."""
        operations = 0
        while request is not None:
            self._current = request
            self._execute(request)
            self._current = None
            operations += len(request.results) + request.extra_work
            operations += request.reply_bytes // _REPLY_BYTES_AN_OPERATION
            if operations >= _OPERATIONS_A_PASS or self.mailbox.empty():
                break
            request = self.mailbox.get_nowait()
        self._stopping = request is None

    # Hints

    def _write_hints(self) -> None:
        """For the segments that were sealed since the last call."""
        if self._hints is not None:
            self._hints.add(self._store.log.take_unhinted())

    def _hint_failed(self, path: Path, error: Exception) -> None:
        """On the worker's thread."""
        if isinstance(error, CorruptLog):
            self.damaged(error)
        else:
            self._reporter.warning("a hint could not be written", table=self.name, path=str(path), error=str(error))

    def hurry(self, until: float) -> None:
        """The whole server stops: no hint that is not written by `until`, on the monotonic clock."""
        if self._hints is not None:
            self._hints.last_until = until

    # Files

    def look(self, limit: int | None = None) -> Look:
        """A look at its files, to be run by a worker; `expect_look` must follow."""
        return self._store.log.look(limit)

    def expect_look(self, look: Look, job: asyncio.Future[T]) -> None:
        """`job` runs `look`: the table is read-only once that has missed something. Its files stay open until then."""

        def looked(_: asyncio.Future[T]) -> None:
            self.lost = self._store.log.lost(look)
            if self.lost is not None:
                self.lose(self.lost)

        self._workers.watch(job, looked)

    def lose(self, lost: LostFile, *, is_told: bool = False) -> None:
        """Take no more writes, which nobody would find; what was opened before is still read."""
        if self.state is not State.READ_ONLY:
            self._committer.turn_read_only(lost, is_told=is_told)

    # Settings

    def set_cache_bytes(self, cache_bytes: int) -> None:
        """Of values that are kept in memory; what is too much by then goes in slices."""
        cache = self._store.cache
        cache.limit_bytes = cache_bytes

        async def trim() -> None:
            for _ in iter(cache.trim, False):
                await asyncio.sleep(0)

        if cache.used_bytes > cache_bytes:
            self._workers.watch(self._loop.create_task(trim()), lambda task: task.result())

    def set_compaction(self, options: CompactionOptions) -> None:
        """From now on the log is compacted so."""
        self._compactor.configure(options)

    # Compaction

    def compact(self, operation: Compact) -> CompactionProgress | ReadOnly:
        match operation.action:
            case "start":
                if not self.may_compact:
                    return self._committer.refuse_and_look_for_room()
                self._compactor.start()
            case "pause":
                self._compactor.pause()
            case "resume":
                self._compactor.resume()
            case "status":
                pass
            case _:
                assert_never(operation.action)
        return self._compactor.progress()

    @property
    def may_compact(self) -> bool:
        return self._committer.may_compact

    def run_step(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        def attempt() -> Exception | None:
            try:
                job()
            except Exception as error:
                return error
            return None

        self._workers.run(self._workers.pools.compactions, attempt, done)

    def run_log_sync(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        def synced(error: Exception | None) -> None:
            if error is None:
                self._workers.after_others(lambda: self.run_step(lambda: None, done))
            else:
                done(error)

        self.run_step(job, synced)

    def seal_log(self) -> bool:
        return self._committer.can_append and self._store.seal()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        def call() -> None:
            try:
                callback()
                self._committer.start()  # it may have had the log sealed
            except Exception as error:
                self._crash(error)

        return self._loop.call_later(seconds, call)

    def time(self) -> float:
        return self._loop.time()

    def log_failed(self, error: OSError) -> None:
        self._committer.turn_read_only(error)

    def compacted(self, progress: CompactionProgress) -> None:
        self._reporter.info("compacted", table=self.name, reclaimed_bytes=progress.reclaimed_bytes)
        self._write_hints()

    def compaction_failed(self, error: Exception, progress: CompactionProgress) -> None:
        if isinstance(error, CorruptLog):
            self.damaged(error)
        self._reporter.warning("compaction failed", table=self.name, error=str(error), state=progress.state)

    # Requests

    def _execute(self, request: Request, *, anew: bool = False) -> None:
        """Decide all operations of `request`, unless one before it of its origin cannot be decided yet.

        One that is executed `anew` came before whatever its origin has been cut at since.
        """
        origin = request.origin
        if origin in self._parked:
            self._parked[origin].append(request)
        elif self.unavailable is not None:
            request.results = [self.unavailable] * len(request.operations)
            self._conclude(request)
        elif anew or not origin.is_cut:
            self._decide(request)
        else:
            self._conclude(request)

    def _decide(self, request: Request) -> None:
        need = self._operations.run(request)
        if need is None:
            self._blocked.pop(request, None)
            self._conclude(request)
            return
        self._parked[request.origin] = deque()
        self._blocked[request] = None  # one that is blocked again keeps its place
        match need:
            case NeedsValue(read):
                self._warm(request, read)
            case NeedsCommit():
                pass  # `_go_on` comes with the end of each commit
            case NeedsOrder():
                self._sort_keys()
            case NeedsChecksums():
                self._compute(request, need)
            case _:
                assert_never(need)

    def _conclude(self, request: Request) -> None:
        """All is decided; `request` is resolved at once unless a result waits for the disk."""
        request.waits = 1
        if request.group > self._store.settled_group:
            request.waits += 1
            self._waiting[request.group].append(request)
        if request.reads:
            request.waits += 1
            self._start_reads(request)
        request.resolve()

    def _go_on(self, request: Request) -> None:
        """What `request` needed may be there: decide it, and then those that were parked behind it."""
        behind = self._parked.pop(request.origin)
        self._reading.update(behind)  # where a crash finds those whose turn has not come
        self._current = request
        self._decide(request)
        for parked in behind:
            self._reading.discard(parked)
            self._current = parked
            self._execute(parked)  # parks it again behind one that is blocked again
        self._current = None

    def _go_on_all(self) -> None:
        if self._store.is_group_full:
            self._committer.start()  # those that wait for room have their turn before who comes anew
        for request in list(self._blocked):
            if request in self._blocked and request.warming is None:
                self._go_on(request)
        self._committer.start()

    def _warm(self, request: Request, read: Read) -> None:
        """Fetch the value that an Update starts from."""
        request.warming = read

        def done(values: list[Stored | CorruptLog | Busy]) -> None:
            read.done()
            if request.warming is not read:
                return  # it was executed anew meanwhile
            request.warming = None
            found = values[0]
            match found:
                case CorruptLog():
                    request.warm = read.seq, self.damaged(found)
                case Busy():
                    request.warm = read.seq, found
                case Stored():
                    request.warm = read.seq, found.value
                case _:
                    assert_never(found)
            self._go_on(request)
            self._committer.start()

        self._workers.run(self._workers.pools.reads, lambda: _read_all([read]), done)

    def _compute(self, request: Request, need: NeedsChecksums) -> None:
        """The checksums of a large batch, on a worker: 16 MiB of them would keep all others waiting for 8 ms."""
        request.warming = need

        def done(checksums: list[int | None]) -> None:
            if request.warming is need:  # else it was executed anew meanwhile
                request.warming = None
                request.checksums = checksums
                self._go_on(request)
                self._committer.start()

        self._workers.run(self._workers.pools.reads, need.checksums, done)

    def _sort_keys(self) -> None:
        """Before the first scan: in slices, between which everything else goes on."""
        if self._sorting is not None:
            return

        async def sort() -> None:
            for _ in self._store.build_order():
                await asyncio.sleep(0)

        def sorted_all(task: asyncio.Future[None]) -> None:
            self._sorting = None
            task.result()
            self._go_on_all()

        self._sorting = self._loop.create_task(sort())
        self._workers.watch(self._sorting, sorted_all)

    def damaged(self, error: CorruptLog) -> CorruptLog:
        self._reporter.critical("damaged entry", table=self.name, path=error.path, offset=error.offset)
        return error

    def describe(self) -> Status:
        return self._store.describe(self.state.value)

    def free(self) -> Iterator[None]:
        """After `run`: let go of the table's memory, a little at each step."""
        return self._store.free()

    # Cold reads

    def _start_reads(self, request: Request) -> None:
        results = request.results
        # They refer to the request: in a cycle, values would outlive their reply.
        reads, request.reads = request.reads, []
        jobs = [read for _, read, _ in reads]

        def done(found: list[Stored | CorruptLog | Busy]) -> None:
            for (place, read, put), stored in zip(reads, found, strict=True):
                read.done()
                if isinstance(stored, CorruptLog | Busy):
                    if isinstance(stored, CorruptLog):
                        self.damaged(stored)
                    is_delete = isinstance(request.operations[place], Delete)
                    results[place] = deleted_anyway(stored) if is_delete else stored
                elif request.results is results:
                    put(stored)
            if request.results is results:  # else it was executed anew meanwhile
                self._reading.discard(request)
                request.resolve()

        self._reading.add(request)
        self._workers.run(self._workers.pools.reads, lambda: _read_all(jobs), done)

    # Expiry

    def _sweep(self) -> None:
        """Log what has expired, a bounded number for each commit."""
        self._sweep_timer = None
        self._sweep_goes_on = False
        if self.unavailable is None and self._is_clock_right() and self.refuse_write(is_deletion=True) is None:
            self._sweep_goes_on = self._store.sweep(_SWEEP_KEYS) == _SWEEP_KEYS
            self._committer.start()
        if not self._stopping:
            self._plan_sweep(_SWEEP_SECONDS)

    def _plan_sweep(self, seconds: float) -> None:
        if self._sweep_timer is None and self._store.has_expiries:
            self._sweep_timer = self._loop.call_later(seconds, self._sweep)

    # Commits

    def committed(self, commit: Commit) -> None:
        for request in self._waiting.pop(commit.group, ()):
            request.resolve()
        if self._blocked:
            self._go_on_all()
        if self._sweep_goes_on and self._sweep_timer is not None and not self._stopping:
            self._sweep_goes_on = False
            self._sweep_timer.cancel()
            self._sweep_timer = self._loop.call_soon(self._sweep)
        self._plan_sweep(_SWEEP_SECONDS)
        self._compactor.written()
        if self.state is State.FULL:
            self._compactor.consider()  # the deletes that it takes are to give room

    def log_sealed(self) -> None:
        self._write_hints()
        self._compactor.sealed()

    def writes_failed(self) -> None:
        """Requests that waited for a commit that will not come are executed as if they had come just now."""
        requests = [request for group in sorted(self._waiting) for request in self._waiting[group]]
        blocked, parked = self._unblock()
        requests += blocked
        self._waiting.clear()
        self._reading.update(requests, parked)  # where a crash finds those whose turn has not come
        for request in requests:
            self._reading.discard(request)
            self._current = request
            request.reset()
            self._execute(request, anew=True)
        for request in parked:
            self._reading.discard(request)
            self._current = request
            self._execute(request)
        self._current = None
        self._compactor.sealed()  # where it waited for that, it will not come

    def _unblock(self) -> tuple[list[Request], list[Request]]:
        """Those that are blocked, and those that are parked behind them, to be executed in this order."""
        blocked = list(self._blocked)
        parked: list[Request] = []
        for behind in self._parked.values():
            parked += behind
        self._parked.clear()
        self._blocked.clear()
        return blocked, parked

    def refuse_write(self, *, is_deletion: bool) -> ReadOnly | None:
        return self._committer.refuse_write(is_deletion=is_deletion)

    # Faults

    def _crash(self, error: Exception) -> None:
        """A fault of ours: fail loudly, once, and keep answering; the other tables go on."""
        if self.unavailable is None:
            self._reporter.critical("the table's actor crashed", table=self.name, exc_info=error)
            self.unavailable = TableUnavailable(
                f"table {self.name} is unavailable after an internal fault, which the server's log shows; "
                f"bring it back with `kvsd table reopen {self.name}`"
            )
        self._committer.halt()
        unanswered = {request for group in self._waiting.values() for request in group} | self._reading
        unanswered.update(*self._unblock())
        if self._current is not None:
            unanswered.add(self._current)
        self._current = None
        self._waiting.clear()
        self._reading.clear()
        for request in unanswered:
            request.reset()
            self._execute(request)


def _read_all(reads: list[Read]) -> list[Stored | CorruptLog | Busy]:
    """On a worker: each entry, or why it is not served."""
    found: list[Stored | CorruptLog | Busy] = []
    for read in reads:
        try:
            found.append(read.run())
        except (CorruptLog, Busy) as error:
            found.append(error)
    return found
