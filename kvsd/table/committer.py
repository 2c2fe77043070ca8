"""The commit path: what brings the writes of a Store to the medium, in groups, and what a failed disk means for them.

Owns: one commit at a time, the syncs and zeros beside it, and the state of the table that its log leads to. Must not
know Requests, nor what was written.
"""

from __future__ import annotations

import asyncio
from enum import Enum
from pathlib import Path
from typing import Final, Protocol

from kvsd.errors import ReadOnly
from kvsd.table.limits import Limit, limit_of
from kvsd.table.medium import LostFile
from kvsd.table.store import Commit, Store
from kvsd.table.work import Fill
from kvsd.table.workers import Workers
from kvsd.types import Fsync

_ROOM_CHECK_SECONDS: Final = 1.0


class Reporter(Protocol):
    """The part of a structured logger that a table uses; values and keys are never reported."""

    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def critical(self, event: str, **fields: object) -> object: ...


class State(Enum):
    """What writes a table takes."""

    WRITABLE = "writable"
    FULL = "full"
    """The disk is full, or another limit of the system is reached: deletes only, if those."""
    READ_ONLY = "read-only"
    """An append or a sync has failed; nobody knows what the medium holds. Until the table is reopened."""


class Listener(Protocol):
    """Who waits for commits: the table's actor."""

    def committed(self, commit: Commit) -> None: ...
    def log_sealed(self) -> None:
        """A segment is complete."""

    def writes_failed(self) -> None:
        """What was written and not committed has not happened; nothing of it is in the log any more, or ever read."""


class Committer:
    """The commits of one Store. A failed sync is never tried again; what met a limit is, once there is room."""

    def __init__(
        self, name: str, store: Store, workers: Workers, reporter: Reporter, listener: Listener, *, interval_ms: int
    ) -> None:
        self.state = State.WRITABLE
        self.is_committing = False
        """A commit is under way, or a resume in its place."""
        self._name = name
        self._store = store
        self._workers = workers
        self._reporter = reporter
        self._listener = listener
        self._interval_seconds = interval_ms / 1000
        self._loop = asyncio.get_running_loop()
        self._sync_timer: asyncio.TimerHandle | None = None
        self._halted = False
        self._resumed = True
        self._may_hold_refused = False
        """The log may hold a part of a commit that met a limit: whoever waits for it must not be refused yet."""
        self._resume_timer: asyncio.TimerHandle | None = None
        """Until the next try, while nothing could be cut off."""
        self._resume_error = OSError()
        self._limit = Limit.ROOM
        self._refusal = ""
        self._next_room_check = 0.0
        self._checking_room = False
        if store.log.unsettled_because is not None:
            self._turn_full(store.log.unsettled_because)

    @property
    def can_append(self) -> bool:
        """Whether what is written reaches the log."""
        return self.state is not State.READ_ONLY and self._resumed and not self._halted

    @property
    def may_compact(self) -> bool:
        """Whether what is committed is known to be as durable as it was promised to be."""
        return self.state is not State.READ_ONLY and not self._halted and self._store.log.is_settled

    def start(self) -> None:
        """Bring the staged group to the medium, unless one is under way: then its end starts the next."""
        if self.is_committing or not self.can_append:
            return
        commit = self._store.take()
        if commit is not None:
            self.is_committing = True
            self._workers.run(
                self._workers.pools.commits,
                commit.append.run,
                lambda _: self._committed(commit),
                lambda error: self._failed(commit, error),
            )
        fill = self._store.log.fill()
        if fill is not None:
            self._workers.run(self._workers.pools.commits, fill.run, lambda _: self._filled(fill), self.turn_read_only)

    def halt(self) -> None:
        """Nothing is begun any more."""
        self._cancel_resume()
        self._halted = True
        if self._sync_timer is not None:
            self._sync_timer.cancel()

    def _cancel_resume(self) -> None:
        if self._resume_timer is not None:
            self._resume_timer.cancel()
            self._resume_timer = None

    def _committed(self, commit: Commit) -> None:
        self.is_committing = False
        if self.state is State.READ_ONLY:
            self._store.failed(commit)  # the failed sync of a Fill may have been the one that concerned this append
            return
        self._store.committed(commit)
        self._listener.committed(commit)
        if len(commit.append.runs) > 1:
            self._listener.log_sealed()
        if self._store.log.options.fsync is Fsync.INTERVAL and self._sync_timer is None and not self._halted:
            self._sync_timer = self._loop.call_later(self._interval_seconds, self.sync)
        self.start()

    def _filled(self, fill: Fill) -> None:
        self._store.log.filled(fill)
        if self._resumed:
            self.start()
        elif self.state is State.FULL and not self.is_committing:
            self._start_resume()

    def sync(self) -> None:
        """What `fsync: interval` owes."""
        self._sync_timer = None
        if self.state is State.READ_ONLY or self._halted:
            return
        sync = self._store.log.sync()
        if sync is not None:
            self._workers.run(
                self._workers.pools.commits, sync.run, lambda _: self._store.log.synced(sync), self.turn_read_only
            )

    async def finish(self) -> tuple[Path, int] | None:
        """The SEAL of a clean stop, once nothing is under way: the path and the size of the segment that got it.

        None where there can be none. Nothing is lost then: recovery does at the next start what was not done here.
        """
        if self._resume_timer is not None:
            self.turn_read_only(self._resume_error)
        can_append = self.can_append
        self.halt()
        if not can_append:
            return None
        append = self._store.log.finish()
        try:
            await self._workers.call(append.run)
        except OSError as error:
            self._reporter.warning("the log could not be sealed", table=self._name, error=str(error))
            return None
        [run] = append.runs
        return self._store.log.directory / run.header.name, run.end

    # Failures of the disk

    def _failed(self, commit: Commit, error: OSError) -> None:
        self.is_committing = False
        self._store.failed(commit)
        may_resume = limit_of(error) is not None and not commit.append.may_have_lost_committed
        if may_resume and self.state is not State.READ_ONLY:
            self._may_hold_refused = True
            self._turn_full(error)
            self._start_resume()
        else:
            self.turn_read_only(error)

    def _turn_full(self, error: OSError) -> None:
        """Nothing is appended before a resume has succeeded; deletes only, until there is room for values."""
        self.state = State.FULL
        self._resumed = False
        self._limit = limit = limit_of(error) or Limit.ROOM
        why = error.strerror or str(error)
        if limit.is_of_disk:
            self._refusal = (
                f"table {self._name} takes no values while the disk is full ({why}). "
                "Delete keys or make room: writes resume by themselves"
            )
            self._reporter.critical("disk full", table=self._name, limit=limit.title, error=why)
        else:
            self._refusal = (
                f"table {self._name} takes no values while there are no further {limit.title} ({why}); "
                f"{limit.remedy}: writes resume by themselves"
            )
            self._reporter.critical("a limit is reached", table=self._name, limit=limit.title, error=why)

    def turn_read_only(self, error: OSError, *, is_told: bool = False) -> None:
        """Append nothing more until recovery has looked: what the medium holds is unknown.

        With `is_told` the log has a line about it already.
        """
        self.state = State.READ_ONLY
        self._cancel_resume()
        self._store.abandon()
        if isinstance(error, LostFile):
            self._refusal = f"table {self._name} is read-only: {error}; {error.advice}"
            if not is_told:
                self._reporter.critical(
                    "a file is gone from under the server; the table is read-only",
                    table=self._name,
                    path=str(error.path),
                    found=error.what,
                    advice=error.advice,
                )
        else:
            self._refusal = (
                f"table {self._name} is read-only since its log failed: {error}. A write that was under way was not "
                f"acknowledged and may or may not be found later. Check the disk, then `kvsd table reopen {self._name}`"
            )
            self._reporter.critical("the log failed; the table is read-only", table=self._name, error=str(error))
        self._listener.writes_failed()

    def refuse_write(self, *, is_deletion: bool) -> ReadOnly | None:
        """Why it cannot be written now, as `refuse_and_look_for_room` says; None where it can."""
        if self.state is State.WRITABLE or (is_deletion and self.state is State.FULL and self._resumed):
            return None
        return self.refuse_and_look_for_room()

    def refuse_and_look_for_room(self) -> ReadOnly:
        """The reason; and, at a limit, a look whether there is room by now: so writes resume by themselves."""
        if self.state is State.FULL and not self._checking_room and self._loop.time() >= self._next_room_check:
            self._next_room_check = self._loop.time() + _ROOM_CHECK_SECONDS
            if self._resumed:
                self._check_room()
            elif not self.is_committing:
                self._start_resume()
        return ReadOnly(self._refusal)

    def _check_room(self) -> None:
        """Room for a reserve is room for values."""

        def found(_: None) -> None:
            self._checking_room = False
            if self.state is State.FULL and self._resumed:  # the disk may have been full again meanwhile
                self.state = State.WRITABLE
                again = "the disk has room again" if self._limit.is_of_disk else f"there are {self._limit.title} again"
                self._reporter.info(f"{again}; writes resume", table=self._name)

        def not_found(_: OSError) -> None:
            self._checking_room = False

        self._checking_room = True
        self._workers.run(self._workers.pools.commits, self._store.log.reserve().run, found, not_found)

    def _start_resume(self) -> None:
        """Those who waited for the failed commit are answered once what it has written is cut off: until then the log
        may hold a part of what they are refused, and a crash would bring it to light."""
        self._cancel_resume()
        resume = self._store.log.resume()
        if resume is None:
            return  # the end of the Fill comes back here

        def resumed(_: None) -> None:
            self.is_committing = False
            self._store.log.resumed(resume)
            self._resumed = True
            self._may_hold_refused = False
            self._listener.writes_failed()
            self.start()
            self._listener.log_sealed()

        def failed(error: OSError) -> None:
            self.is_committing = False
            limit = limit_of(error)
            if limit is None or resume.may_have_lost_committed:
                self.turn_read_only(error)
            elif resume.is_cut or not self._may_hold_refused:
                self._may_hold_refused = False
                self._listener.writes_failed()
            elif limit.is_of_descriptors and not self._halted:
                # Soon there is one again; nothing is wrong with the disk. Who waits is answered then, or at the end.
                self._resume_error = error
                self._resume_timer = self._loop.call_later(_ROOM_CHECK_SECONDS, self._start_resume)
            else:
                # A disk so full that nothing can be cut off: they must not be told that it has not happened.
                self.turn_read_only(error)

        self.is_committing = True
        self._workers.run(self._workers.pools.commits, resume.run, resumed, failed)
