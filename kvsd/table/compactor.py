"""When a table is compacted, and at which pace.

Owns: what starts a compaction, and throttle, pause and progress. Must not know asyncio, which segments make a run
(that is the plan's), nor how a run is compacted: it draws the steps of a Compaction one by one, on the table's own
thread, and has its host run their jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

from kvsd.errors import CorruptLog, StorageError
from kvsd.table.compaction import Compaction, Job
from kvsd.table.compaction_plan import Candidate, plan
from kvsd.table.entry import HEADER_BYTES
from kvsd.table.request import CompactionProgress
from kvsd.table.store import Store

_RETRY_SECONDS: Final = 60.0
_FEW_TOMBSTONES: Final = 10_000
"""So many, or as many as there are keys, are kept; each takes the memory of a key, and 64 bytes of the log."""
_IDLE_SECONDS: Final = 5.0
"""After so long without a write, what would wait for the next full segment is looked at as well."""
_IDLE_BYTES: Final = 64 << 10
"""The least that there must be to gain then."""
_TOMBSTONE_BYTES: Final = HEADER_BYTES + 16


@dataclass(frozen=True, slots=True)
class CompactionOptions:
    auto: bool = True
    """Whether a segment that seals may start one; else only `start` does."""
    bytes_per_second: int = 0
    """Of the segments that are read; 0: as fast as it goes."""
    garbage_ratio: float = 0.5
    """The share of a segment that must be dead."""


class Cancellable(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None: ...


class Host(Protocol):
    """The table's actor."""

    @property
    def may_compact(self) -> bool:
        """Whether what is committed is known to be as durable as it was promised to be."""

    def run_step(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        """Have a worker run `job`, and tell what it raised."""

    def run_log_sync(self, job: Job, done: Callable[[Exception | None], None]) -> None:
        """The same, with all jobs of the table that ran beside it told before: one of them may have heard of a failure
        that concerned this one, since the system tells it once."""

    def seal_log(self) -> bool:
        """Have the segment sealed that is appended to; `sealed` is called then. False where that gains nothing, or
        cannot be done now."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable: ...
    def time(self) -> float: ...
    def log_failed(self, error: OSError) -> None:
        """A sync of the log's active segment has failed."""

    def compacted(self, progress: CompactionProgress) -> None: ...
    def compaction_failed(self, error: Exception, progress: CompactionProgress) -> None: ...


class _Abandoned(Exception):
    """The table stops, or its log has failed."""

    def __str__(self) -> str:
        return "the table was closed, or its log failed"


class Compactor:
    """For one table; all calls come from its own thread. What fails is told to the host, and the table serves on."""

    def __init__(self, store: Store, options: CompactionOptions, host: Host) -> None:
        self._store = store
        self._options = options
        self._host = host
        self._runs: list[list[Candidate]] = []
        """Of the plan that is carried out, those that are not begun."""
        self._compaction: Compaction | None = None
        self._steps: Generator[Job, None, None] | None = None
        self._is_running = False
        """A worker has a job."""
        self._is_failing = False
        """What was begun is being cleaned up."""
        self._paused = False
        self._stopping = False
        self._stuck = False
        """An output has its name, and its inputs theirs: the next start takes the one. Until then, no other run."""
        self._is_requested = False
        """`start` was called, and its plan is not begun."""
        self._is_sealing = False
        """It waits for the segment that is appended to."""
        self._is_for_tombstones = False
        """The plan that is carried out takes all segments, for the sake of tombstones."""
        self._tombstones_kept = 0
        """How many the last such plan has left: it is worth it again when there are twice as many."""
        self._error = ""
        self._timer: Cancellable | None = None
        self._due = 0.0
        """When the throttle lets the next step go."""
        self._seen_bytes = 0
        self._retry_at = 0.0
        self._refused: dict[int, float] = {}
        """Segments that could not be read, and when they are tried again; damage is not."""
        self._retry_timer: Cancellable | None = None
        self._look_timer: Cancellable | None = None
        self._seen_seq = 0
        """The log's last number at the last look: nothing was written since if it is the same."""
        self._is_idle = False
        """True while nothing is written: the next plan is to leave next to nothing that is not wanted."""
        self._tombstones_before = 0
        """The number when the plan was made, and …"""
        self._tombstones_dropped = 0
        """… how many of them it has dropped."""
        self._figures_are_old = False
        """Those of the progress are of what has ended; the next plan begins them anew."""
        self._segments_done = self._segments_total = 0
        self._bytes_done = self._bytes_total = self._reclaimed_bytes = 0

    def progress(self) -> CompactionProgress:
        if self._stuck:
            state = "stopped"
        elif self._paused:
            state = "paused"
        elif self._steps is not None or (self._is_requested and self._host.may_compact):
            state = "running"
        else:
            state = "idle"
        under_way = 0 if self._compaction is None else self._compaction.bytes_done
        return CompactionProgress(
            state=state,
            segments_done=self._segments_done,
            segments_total=self._segments_total,
            bytes_done=self._bytes_done + under_way,
            bytes_total=self._bytes_total,
            reclaimed_bytes=self._reclaimed_bytes,
            error=self._error,
        )

    def configure(self, options: CompactionOptions) -> None:
        """What is begun goes on at the new pace."""
        self._options = options
        self._due = 0.0
        if self._steps is None:
            self.consider()
        else:
            self._go_on()

    def sealed(self) -> None:
        """A segment has sealed, so there may be enough garbage now; or it cannot be sealed."""
        self._is_sealing = False
        self.consider()

    def consider(self) -> None:
        """Begin, if there is enough garbage, or `start` was called."""
        if self._steps is not None or self._paused or self._is_sealing:
            return
        if self._is_requested:
            self._is_requested = False
            self._begin(on_demand=True)
        elif self._options.auto and self._host.time() >= self._retry_at:
            self._begin(on_demand=False)

    def written(self) -> None:
        """Something was committed, or may have been before: once nothing more comes, what it leaves is looked at."""
        if self._look_timer is None and not self._stopping:
            self._look_timer = self._host.call_later(_IDLE_SECONDS, self._look)

    def _look(self) -> None:
        self._look_timer = None
        last_seq = self._store.log.last_seq
        if last_seq != self._seen_seq or self._steps is not None:
            self._seen_seq = last_seq
            self._is_idle = False
            self.written()
        elif self._options.auto and not self._paused and not self._is_sealing and self._host.time() >= self._retry_at:
            self._clear_up()

    def _clear_up(self) -> None:
        """While nobody writes: seal and compact where a good share of the log is garbage, tombstones included."""
        index, log = self._store.index, self._store.log
        gain = sum(index.dead_bytes.values()) + self._tombstones * _TOMBSTONE_BYTES
        size_bytes = log.active_bytes + sum(segment.size_bytes for segment in log.sealed())
        if gain < max(_IDLE_BYTES, self._options.garbage_ratio * size_bytes) or not self._host.may_compact:
            return
        self._is_idle = True
        if self._host.seal_log():
            self._is_sealing = True
        else:
            self.consider()

    def start(self) -> None:
        """Compact all that holds garbage, the segment included that is appended to; behind what is under way.

        Does nothing once it is stuck: what has failed then stays to be told.
        """
        if self._stuck:
            return
        self._error = ""
        self._is_requested = True
        self._paused = False
        if self._host.seal_log():
            self._is_sealing = True
        if self._steps is not None:
            self._go_on()
        else:
            self._reset_figures()
            self.consider()

    def pause(self) -> None:
        """No further step, until `resume` or `start`."""
        self._paused = True

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if self._steps is None:
                self.consider()
            else:
                self._go_on()

    def stop(self) -> None:
        """For good: what is begun ends with the step that is under way, and leaves nothing that counts."""
        self._stopping = True
        for timer in (self._look_timer, self._retry_timer):
            if timer is not None:
                timer.cancel()
        self._go_on()

    def _begin(self, *, on_demand: bool) -> None:
        """Make a plan, and carry it out; one that is made on demand takes all that holds garbage."""
        if self._stopping or self._stuck:
            return
        if not self._host.may_compact:
            if on_demand:
                self._error = "the table's log has failed"
            return
        index, log = self._store.index, self._store.log
        bearable = 0 if on_demand else max(_FEW_TOMBSTONES, index.live, 2 * self._tombstones_kept)
        if self._is_idle:
            bearable = min(bearable, index.live)
        self._is_idle = False
        self._tombstones_before, self._tombstones_dropped = self._tombstones, 0
        self._is_for_tombstones = self._tombstones > bearable
        now = self._host.time()
        self._refused = {number: until for number, until in self._refused.items() if now < until}
        candidates = [
            Candidate(
                segment,
                segment.size_bytes,
                index.dead_bytes.get(segment.header.number, 0),
                segment.header.number in self._refused,
            )
            for segment in log.sealed()
        ]
        self._runs = plan(
            candidates,
            segment_bytes=log.options.segment_bytes,
            garbage_ratio=0 if on_demand else self._options.garbage_ratio,
            everything=self._is_for_tombstones,
        )
        if self._runs:
            if not self._refused:
                self._error = ""
            if self._figures_are_old:
                self._reset_figures()
            self._segments_total += sum(map(len, self._runs))
            self._bytes_total += sum(candidate.size_bytes for run in self._runs for candidate in run)
        self._next_run()

    def _reset_figures(self) -> None:
        self._figures_are_old = False
        self._segments_done = self._segments_total = 0
        self._bytes_done = self._bytes_total = self._reclaimed_bytes = 0

    def _next_run(self) -> None:
        if self._runs:
            self._compaction = Compaction(self._store, [candidate.segment for candidate in self._runs[0]])
            self._steps = self._compaction.steps()
            self._seen_bytes = 0
            self._go_on()
        elif self._is_for_tombstones:
            self._is_for_tombstones = False
            # Those that came meanwhile have not been looked at: they count as new.
            self._tombstones_kept = min(self._tombstones, self._tombstones_before - self._tombstones_dropped)

    @property
    def _tombstones(self) -> int:
        index = self._store.index
        return len(index) - index.live

    # Steps

    def _go_on(self) -> None:
        """Take the next step now, if nobody else will, and it may be taken."""
        if self._steps is None or self._is_running:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_failing:
            if self._stopping or not self._host.may_compact:
                self._advance(_Abandoned())
                return
            if self._paused:
                return
        self._advance(None)

    def _advance(self, error: Exception | None) -> None:
        assert self._steps is not None
        try:
            if error is None:
                job = next(self._steps)
            else:
                self._is_failing = True
                job = self._steps.throw(error)
        except StopIteration:
            self._ended()
        except Exception as found:
            self._failed(found)
        else:
            self._is_running = True
            assert self._compaction is not None
            if self._compaction.is_syncing_log and not self._is_failing:
                self._host.run_log_sync(job, self._done)
            else:
                self._host.run_step(job, self._done)

    def _done(self, error: Exception | None) -> None:
        self._is_running = False
        assert self._compaction is not None
        if error is not None:
            if isinstance(error, OSError) and self._compaction.is_syncing_log and not self._is_failing:
                self._host.log_failed(error)
            self._advance(error)
            return
        delay = self._delay(self._compaction.bytes_done)
        if delay > 0 and not (self._is_failing or self._stopping):
            self._timer = self._host.call_later(delay, self._go_on)
        else:
            self._go_on()

    def _delay(self, bytes_done: int) -> float:
        """Seconds until the throttle lets the next step go."""
        if not self._options.bytes_per_second:
            return 0
        now = self._host.time()
        self._due = max(self._due, now) + (bytes_done - self._seen_bytes) / self._options.bytes_per_second
        self._seen_bytes = bytes_done
        return self._due - now

    def _clear(self) -> tuple[Compaction, list[Candidate]]:
        assert self._compaction is not None
        compaction, run = self._compaction, self._runs.pop(0)
        self._compaction = self._steps = None
        self._is_failing = False
        return compaction, run

    def _ended(self) -> None:
        compaction, run = self._clear()
        self._segments_done += len(run)
        self._bytes_done += sum(candidate.size_bytes for candidate in run)
        self._reclaimed_bytes += compaction.reclaimed_bytes
        self._tombstones_dropped += compaction.tombstones_dropped
        self._host.compacted(self.progress())
        self._proceed()

    def _failed(self, error: Exception) -> None:
        compaction, run = self._clear()
        self._is_for_tombstones = False
        self._error = str(error)
        self._stuck = self._stuck or compaction.output.is_published
        match error:
            case _Abandoned():
                self._runs.clear()
                return
            case CorruptLog(path=path):
                # What cannot be read today may be read again; what is damaged will stay so.
                until = self._try_later() if isinstance(error.__cause__, OSError) else inf
                for at, candidate in enumerate(run):
                    if str(candidate.segment.path) == path:
                        self._refused[candidate.segment.header.number] = until
                        self._runs[:0] = [list(part) for part in (run[:at], run[at + 1 :]) if part]
            case StorageError():
                self._refused.update((candidate.segment.header.number, inf) for candidate in run)
            case OSError():
                self._retry_at = self._try_later()
                self._runs.clear()
            case _:
                self._runs.clear()
                raise error
        self._host.compaction_failed(error, self.progress())
        if self._stuck:
            self._runs.clear()
        self._proceed()

    def _try_later(self) -> float:
        """Have another plan made after a while, without being asked; when that is."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._retry_timer = self._host.call_later(_RETRY_SECONDS, self._retry)
        return self._host.time() + _RETRY_SECONDS

    def _retry(self) -> None:
        self.consider()
        self.written()

    def _proceed(self) -> None:
        """After a run: with the next one of the plan, or else with another plan."""
        self._next_run()
        if self._steps is None:
            self.consider()
        self._figures_are_old = self._steps is None and not self._is_requested
