"""The task that alone touches a table's Store: it takes Requests from the mailbox and answers their Futures.

Owns: the order of a table's operations, group commit, and what a failed disk means for the table. Must not know the
wire, users, or other tables.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, assert_never

from kvsd.errors import CorruptLog, ReadOnly, TableUnavailable
from kvsd.table.compaction import Job
from kvsd.table.compactor import CompactionOptions, Compactor
from kvsd.table.hint_writer import HintWriter
from kvsd.table.log import Read
from kvsd.table.operations import NeedsCommit, NeedsOrder, NeedsValue, Operations, deleted_anyway
from kvsd.table.request import Compact, Delete, Mailbox, Origin, Progress, Request, Status
from kvsd.table.segment import Stored
from kvsd.table.store import Commit, Store
from kvsd.table.work import Fill, is_disk_full
from kvsd.types import Fsync

T = TypeVar("T")

MAILBOX_REQUESTS: Final = 1_024
"""Requests that wait for their table; who brings one more waits too."""

_OPERATIONS_A_PASS: Final = 2_000
"""After so many the actor lets the event loop run: a few milliseconds."""

_ROOM_CHECK_SECONDS: Final = 1.0

_SWEEP_SECONDS: Final = 1.0
_SWEEP_KEYS: Final = 500
"""Logged at once, in a few milliseconds, when they have expired."""


class Reporter(Protocol):
    """The part of a structured logger that the actor uses; values and keys are never reported."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def critical(self, event: str, **fields: object) -> object: ...


class State(Enum):
    """What writes a table takes."""

    WRITABLE = "writable"
    FULL = "full"
    """The disk is full: deletes only, if those."""
    READ_ONLY = "read-only"
    """An append or a sync has failed; nobody knows what the medium holds. Until the table is reopened."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Worker threads. Apart, so that a slow cold read never delays a commit."""

    commits: Executor
    reads: Executor
    background: Executor | None = None
    """Of one thread, for hints; without it none are written."""
    compactions: Executor | None = None
    """Of one thread: one table after the other takes a step. Without it, they go to `reads`."""


class TableActor:
    """Serves one Store until `stop`. A crash is contained: from then on every Request is answered TABLE_UNAVAILABLE."""

    def __init__(
        self,
        name: str,
        store: Store,
        pools: Pools,
        reporter: Reporter,
        *,
        fsync_interval_ms: int = 1_000,
        compaction: CompactionOptions | None = None,
    ) -> None:
        self.name = name
        self.mailbox: Mailbox = asyncio.Queue(MAILBOX_REQUESTS)
        """None ends the task, once all before it is answered."""
        self.state = State.WRITABLE
        self.unavailable: TableUnavailable | None = None
        self._store = store
        self._pools = pools
        self._reporter = reporter
        self._interval_seconds = fsync_interval_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._current: Request | None = None
        self._operations = Operations(store, self)
        self._hints = HintWriter(store.log.medium, pools.background, self._hint_failed) if pools.background else None
        self._compactor = Compactor(store, compaction or CompactionOptions(), self)
        self._waiting: defaultdict[int, list[Request]] = defaultdict(list)
        self._blocked: dict[Request, None] = {}
        """Those that cannot be decided to their end yet, in the order in which they came."""
        self._parked: dict[Origin, deque[Request]] = {}
        """Of each origin of a blocked Request, those that came behind it; here, since another table's are not ours."""
        self._sorting: asyncio.Task[None] | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._reading: set[Request] = set()
        """Those that wait for cold reads, or to be executed anew."""
        self._stopping = False
        self._jobs: set[asyncio.Future[Any]] = set()
        self._committing = False
        self._sync_timer: asyncio.TimerHandle | None = None
        self._resumed = True
        self._refusal = ""
        self._next_room_check = 0.0
        self._checking_room = False
        if not store.log.is_settled:
            self._turn_full("no room to begin a new segment")

    def __len__(self) -> int:
        """Keys that have a committed value."""
        return len(self._store)

    async def run(self) -> None:
        """Serve until the mailbox yields None; then commit what is staged, seal the log, and close it."""
        self._write_hints()
        self._compactor.consider()
        while not self._stopping:
            request = await self.mailbox.get()
            try:
                self._serve(request)
                if self._store.pending and not self._committing and not self._stopping:
                    # What the ready sockets bring joins the group: sets of 50 connections cost 15 % less CPU.
                    await asyncio.sleep(0)
                    if not self.mailbox.empty():
                        self._serve(self.mailbox.get_nowait())
                self._start_commit()
            except Exception as error:
                self._crash(error)
            if not self.mailbox.empty():
                await asyncio.sleep(0)  # sockets and replies have their turn, even if the mailbox never empties
        self._compactor.stop()
        while self._jobs:
            await asyncio.wait(self._jobs)
        for timer in (self._sync_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        if self.state is not State.READ_ONLY and self._resumed and self.unavailable is None:
            await self._finish()
        if self._hints is not None:
            await self._loop.run_in_executor(self._pools.commits, self._hints.stop)
        self._store.log.close()

    def _serve(self, request: Request | None) -> None:
        """Execute what the mailbox holds, up to a bound."""
        operations = 0
        while request is not None:
            self._current = request
            self._execute(request)
            self._current = None
            operations += len(request.operations)
            if operations >= _OPERATIONS_A_PASS or self.mailbox.empty():
                break
            request = self.mailbox.get_nowait()
        self._stopping = request is None

    async def _finish(self) -> None:
        append = self._store.log.finish()
        try:
            await self._loop.run_in_executor(self._pools.commits, append.run)
        except OSError as error:
            # Nothing is lost: recovery does at the next start what failed here.
            self._reporter.warning("the log could not be sealed", table=self.name, error=str(error))
            return
        if self._hints is not None:
            last = self._store.log.directory / append.runs[-1].header.name
            await self._loop.run_in_executor(self._pools.commits, self._hints.add_last, last, append.runs[-1].end)

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

    # Compaction

    def compact(self, operation: Compact) -> Progress | ReadOnly:
        match operation.action:
            case "start":
                if not self.may_compact:
                    return self._refuse_write()
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

    def set_compaction(self, options: CompactionOptions) -> None:
        """From now on the log is compacted so."""
        self._compactor.configure(options)

    @property
    def may_compact(self) -> bool:
        return self.state is not State.READ_ONLY and self.unavailable is None and self._store.log.is_settled

    def run_step(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        def attempt() -> Exception | None:
            try:
                job()
            except Exception as error:
                return error
            return None

        self._run(self._pools.compactions or self._pools.reads, attempt, done)

    def run_log_sync(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        def synced(error: Exception | None) -> None:
            beside = set(self._jobs)
            if error is not None or not beside:
                done(error)
                return

            def told(other: asyncio.Future[Any]) -> None:
                beside.discard(other)
                if not beside:
                    self.run_step(lambda: None, done)

            for other in list(beside):
                other.add_done_callback(told)

        self.run_step(job, synced)

    def seal_log(self) -> bool:
        return self._store.seal()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, callback)

    def time(self) -> float:
        return self._loop.time()

    def log_failed(self, error: OSError) -> None:
        self._turn_read_only(error)

    def compacted(self, progress: Progress) -> None:
        self._reporter.info("compacted", table=self.name, reclaimed_bytes=progress.reclaimed_bytes)
        self._write_hints()

    def compaction_failed(self, error: Exception, progress: Progress) -> None:
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
            self._conclude(request)
            return
        self._parked[request.origin] = deque()
        self._blocked[request] = None
        match need:
            case NeedsValue(read):
                self._warm(request, read)
            case NeedsCommit():
                pass  # `_go_on` comes with the end of each commit
            case NeedsOrder():
                self._sort_keys()
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
        del self._blocked[request]
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
        for request in list(self._blocked):
            if request in self._blocked and request.warming is None:
                self._go_on(request)
        self._start_commit()

    def _warm(self, request: Request, read: Read) -> None:
        """Fetch the value that an Update starts from."""
        request.warming = read

        def done(values: list[Stored | CorruptLog]) -> None:
            read.done()
            if request.warming is not read:
                return  # it was executed anew meanwhile
            request.warming = None
            found = values[0]
            request.warm = read.seq, self.damaged(found) if isinstance(found, CorruptLog) else found.value
            self._go_on(request)
            self._start_commit()

        self._run(self._pools.reads, lambda: _read_all([read]), done)

    def _sort_keys(self) -> None:
        """Before the first scan: in slices, between which everything else goes on."""
        if self._sorting is not None:
            return

        async def sort() -> None:
            for _ in self._store.build_order():
                await asyncio.sleep(0)

        def finished(task: asyncio.Task[None]) -> None:
            self._jobs.discard(task)
            self._sorting = None
            error = task.exception()
            if isinstance(error, Exception):
                self._crash(error)
            self._go_on_all()

        self._sorting = self._loop.create_task(sort())
        self._jobs.add(self._sorting)
        self._sorting.add_done_callback(finished)

    def damaged(self, error: CorruptLog) -> CorruptLog:
        self._reporter.critical("damaged entry", table=self.name, path=error.path, offset=error.offset)
        return error

    def describe(self) -> Status:
        return self._store.describe(self.state.value)

    # Cold reads

    def _start_reads(self, request: Request) -> None:
        results = request.results
        # They refer to the request: in a cycle, values would outlive their reply.
        reads, request.reads = request.reads, []
        jobs = [read for _, read, _ in reads]

        def done(found: list[Stored | CorruptLog]) -> None:
            for (place, read, put), stored in zip(reads, found, strict=True):
                read.done()
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
        self._run(self._pools.reads, lambda: _read_all(jobs), done)

    # Expiry

    def _sweep(self) -> None:
        """Log what has expired, a bounded number at a time."""
        self._sweep_timer = None
        swept = 0
        if self.refusal(is_deletion=True) is None and self.unavailable is None:
            swept = self._store.sweep(_SWEEP_KEYS)
            self._start_commit()
        if self._store.has_expiries and not self._stopping:
            self._sweep_timer = self._loop.call_later(0 if swept == _SWEEP_KEYS else _SWEEP_SECONDS, self._sweep)

    # Commits

    def _start_commit(self) -> None:
        """Bring the staged group to the medium, unless one is under way: then its end starts the next."""
        if self._committing or self.state is State.READ_ONLY or not self._resumed or self.unavailable is not None:
            return
        commit = self._store.take()
        if commit is not None:
            self._committing = True
            self._run(
                self._pools.commits,
                commit.append.run,
                lambda _: self._committed(commit),
                lambda error: self._commit_failed(commit, error),
            )
        fill = self._store.log.fill()
        if fill is not None:
            self._run(self._pools.commits, fill.run, lambda _: self._filled(fill), self._turn_read_only)

    def _committed(self, commit: Commit) -> None:
        self._committing = False
        if self.state is State.READ_ONLY:
            self._store.failed(commit)  # the failed sync of a Fill may have been the one that concerned this append
            return
        self._store.committed(commit)
        self._write_hints()
        if len(commit.append.runs) > 1:
            self._compactor.sealed()
        elif self.state is State.FULL:
            self._compactor.consider()  # the deletes that it takes are to give room
        for request in self._waiting.pop(commit.group, ()):
            request.resolve()
        if self._blocked:
            self._go_on_all()
        if self._sweep_timer is None and self._store.has_expiries:
            self._sweep_timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        if self._store.log.options.fsync is Fsync.INTERVAL and self._sync_timer is None:
            self._sync_timer = self._loop.call_later(self._interval_seconds, self._sync)
        self._start_commit()

    def _filled(self, fill: Fill) -> None:
        self._store.log.filled(fill)
        if self._resumed:
            self._start_commit()
        elif self.state is State.FULL and not self._committing:
            self._start_resume()

    def _sync(self) -> None:
        self._sync_timer = None
        if self.state is State.READ_ONLY or self.unavailable is not None:
            return
        sync = self._store.log.sync()
        if sync is not None:
            self._run(self._pools.commits, sync.run, lambda _: self._store.log.synced(sync), self._turn_read_only)

    # Failures of the disk

    def _commit_failed(self, commit: Commit, error: OSError) -> None:
        self._committing = False
        self._store.failed(commit)
        may_resume = is_disk_full(error) and not commit.append.may_have_lost_committed
        if may_resume and self.state is not State.READ_ONLY:
            self._turn_full(str(error.strerror))
            self._start_resume()
        else:
            self._turn_read_only(error)

    def _turn_full(self, why: str) -> None:
        """Nothing is appended before a resume has succeeded; deletes only, until there is room for values."""
        self.state = State.FULL
        self._resumed = False
        self._refusal = (
            f"table {self.name} takes no values while the disk is full ({why}). "
            "Delete keys or make room: writes resume by themselves"
        )
        self._reporter.critical("disk full", table=self.name, error=why)

    def _turn_read_only(self, error: OSError) -> None:
        """What the medium holds is unknown: nothing more is appended until recovery has looked."""
        self.state = State.READ_ONLY
        self._store.abandon()
        self._refusal = (
            f"table {self.name} is read-only since its log failed: {error}. A write that was under way was not "
            f"acknowledged and may or may not be found later. Check the disk, then `kvsd table reopen {self.name}`"
        )
        self._reporter.critical("the log failed; the table is read-only", table=self.name, error=str(error))
        self._answer_anew()

    def _answer_anew(self) -> None:
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

    def _unblock(self) -> tuple[list[Request], list[Request]]:
        """Those that are blocked, and those that are parked behind them, to be executed in this order."""
        blocked = list(self._blocked)
        parked: list[Request] = []
        for behind in self._parked.values():
            parked += behind
        self._parked.clear()
        self._blocked.clear()
        return blocked, parked

    def refusal(self, *, is_deletion: bool) -> ReadOnly | None:
        """Why nothing can be written now, or only deletions; None where all can."""
        if self.state is State.WRITABLE or (is_deletion and self.state is State.FULL and self._resumed):
            return None
        return self._refuse_write()

    def _refuse_write(self) -> ReadOnly:
        if self.state is State.FULL and not self._checking_room and self._loop.time() >= self._next_room_check:
            self._next_room_check = self._loop.time() + _ROOM_CHECK_SECONDS
            if self._resumed:
                self._check_room()
            elif not self._committing:
                self._start_resume()
        return ReadOnly(self._refusal)

    def _check_room(self) -> None:
        """Room for a reserve is room for values."""

        def found(_: None) -> None:
            self._checking_room = False
            if self.state is State.FULL and self._resumed:  # the disk may have been full again meanwhile
                self.state = State.WRITABLE
                self._reporter.info("the disk has room again; writes resume", table=self.name)

        def not_found(_: OSError) -> None:
            self._checking_room = False

        self._checking_room = True
        self._run(self._pools.commits, self._store.log.reserve().run, found, not_found)

    def _start_resume(self) -> None:
        """Those who waited for the failed commit are answered at the end: until then the log may hold a part of what
        they are refused, and a crash would bring it to light."""
        resume = self._store.log.resume()
        if resume is None:
            return  # the end of the Fill comes back here

        def resumed(_: None) -> None:
            self._committing = False
            self._store.log.resumed(resume)
            self._write_hints()
            self._resumed = True
            self._answer_anew()
            self._start_commit()
            self._compactor.sealed()

        def failed(error: OSError) -> None:
            self._committing = False
            if not is_disk_full(error) or resume.may_have_lost_committed:
                self._turn_read_only(error)
            else:
                self._answer_anew()

        self._committing = True
        self._run(self._pools.commits, resume.run, resumed, failed)

    # Workers

    def _run(
        self,
        pool: Executor,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[OSError], None] | None = None,
    ) -> None:
        """Run `job` on a worker, shielded from everybody's cancellation; `done` or `failed` follows on the loop."""

        def finished(future: asyncio.Future[T]) -> None:
            self._jobs.discard(future)
            try:
                try:
                    result = future.result()
                except OSError as error:
                    if failed is None:
                        raise
                    failed(error)
                else:
                    done(result)
            except Exception as error:
                self._crash(error)

        future = self._loop.run_in_executor(pool, job)
        self._jobs.add(future)
        future.add_done_callback(finished)

    def _crash(self, error: Exception) -> None:
        """A fault of ours: fail loudly, once, and keep answering; the other tables go on."""
        if self.unavailable is None:
            self._reporter.critical("the table's actor crashed", table=self.name, exc_info=error)
            self.unavailable = TableUnavailable(
                f"table {self.name} is unavailable after an internal fault, which the server's log shows; "
                "restart the server to bring it back"
            )
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


def _read_all(reads: list[Read]) -> list[Stored | CorruptLog]:
    """On a worker: each entry, or why it is not served."""
    found: list[Stored | CorruptLog] = []
    for read in reads:
        try:
            found.append(read.run())
        except CorruptLog as error:
            found.append(error)
    return found
