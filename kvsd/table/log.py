"""A table's append-only log, kept in local segments.

Owns: sequence numbers, timestamps, positions, when segments roll, and how far they are written, synced and filled.
Must not know what keys mean, nor asyncio: what blocks is handed out as a job of `work`, and its outcome reported back.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, assert_never
from zlib import crc32

from kvsd.table import recovery
from kvsd.table.entry import (
    DIGEST_MASK,
    HEADER_BYTES,
    Kind,
    encode_header,
    encode_seal,
    synced_to_of,
    with_synced_to,
)
from kvsd.table.known import KnownLog
from kvsd.table.limits import limit_of, telling_apart
from kvsd.table.look import Expected, Look
from kvsd.table.medium import LostFile, Medium
from kvsd.table.open_segments import OpenSegments
from kvsd.table.progress import RecoveryProgress
from kvsd.table.segment import FIRST_FILL_BYTES, Segment, Stored
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, SegmentHeader
from kvsd.table.settlement import Settlement
from kvsd.table.work import Append, Fill, Reserve, Resume, Run, Sync
from kvsd.types import Fsync, Key, Value

Position: TypeAlias = int
"""Opaque to everyone else; later entries have higher ones. Here: number of the segment << 32 | offset."""

MAX_FILL_BYTES: Final = 4 << 20
_OFFSET_MASK: Final = 0xFFFFFFFF


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass(frozen=True, slots=True)
class LogOptions:
    fsync: Fsync = Fsync.ALWAYS
    segment_bytes: int = 128 << 20
    now_us: Callable[[], int] = now_us


@dataclass(slots=True)
class _Tail:
    """Where the next entry of a segment goes, and what its SEAL will say."""

    header: SegmentHeader
    crc_seed: int
    position: Position
    """The position of offset 0."""
    end: int = SEGMENT_HEADER_BYTES
    synced_to: int = SEGMENT_HEADER_BYTES
    count: int = 0
    last_seq: int = 0
    digest: int = 0


class Read:
    """One entry to be read by a worker; its descriptor stays open until `done`."""

    __slots__ = ("_key", "_offset", "_segment", "seq", "value_bytes")

    def __init__(self, segment: Segment, offset: int, key: Key, seq: int, value_bytes: int) -> None:
        self._segment = segment
        self._offset = offset
        self._key = key
        self.seq = seq
        self.value_bytes = value_bytes
        segment.pin()

    def run(self) -> Stored:
        """Raises CorruptLog where the entry is damaged or cannot be read."""
        return self._segment.read(self._offset, self._key, self.seq, self.value_bytes)

    def done(self) -> None:
        self._segment.unpin()


class Log:
    """One table's log. `recover` comes before anything else."""

    def __init__(
        self,
        directory: Path,
        options: LogOptions,
        medium: Medium | None = None,
        known: KnownLog | None = None,
        *,
        open_segments: OpenSegments | None = None,
    ) -> None:
        """`known` is what must be found at the least; None: nothing is known, and a log may be begun. `open_segments`
        bounds the descriptors of all logs that share it."""
        self.directory = directory
        self.options = options
        self._known = known
        self.medium = medium or Medium()
        self._open_segments = OpenSegments() if open_segments is None else open_segments
        self.last_seq = 0
        self.torn_tail = False
        """Recovery has cut off an interrupted append, and set it aside."""
        self.is_new = False
        """Recovery has found none, and begun one."""
        self._last_timestamp_us = 0
        self._segments: dict[int, Segment] = {}
        self._settlement: Settlement | None = None
        self.unsettled_because: OSError | None = None
        """The limit that keeps the log from being appended to, where it was the last recovery that met one."""
        self._later: dict[str, None] = {}
        """Names of segments that a failed append or Resume may have created behind the active one."""
        self._runs: list[Run] = []
        self._syncs: set[Sync] = set()
        self._unhinted: list[Path] = []
        self._looked_to = 0
        """The number of the last segment that a `look` has been at."""
        self.progress = RecoveryProgress()
        """Of the recovery; any thread may look."""

    def recover(self, sink: recovery.Sink, *, restored: bool = False) -> None:
        """Give all intact entries to `sink` in order, settle the tail, and open a new active segment.

        With `restored` the log may be another, or an older one, than is known, and no number that may have been seen is
        given again. Raises CorruptLog or UnsupportedFormat, with every file as it was, or OSError from the disk; but a
        full disk leaves a log that can be read, and is not `is_settled`.
        """
        try:
            settlement, self._unhinted = recovery.recover(
                self.medium,
                self.directory,
                sink,
                self.progress,
                loose=self._is_loose,
                now_us=self.options.now_us,
                known=self._known,
                restored=restored,
            )
        except BaseException:
            self.close()
            raise
        self.torn_tail = settlement.torn
        self.is_new = settlement.begins
        self._segments = {segment.header.number: segment for segment in settlement.segments}
        self._settlement = settlement
        try:
            self._settle(settlement)
        except BaseException:
            self.close()
            raise
        *full, _ = settlement.segments  # the last is appended to, or yet to be settled
        for segment in full:
            segment.share(self._open_segments)
            segment.open_ahead()

    def _settle(self, settlement: Settlement) -> None:
        try:
            with telling_apart(self.medium, self.directory):
                settlement.run()
                self.resumed(settlement)
                self.reserve().run()
        except OSError as error:
            if limit_of(error) is None:
                raise
            if not self.is_settled:
                self.unsettled_because = error
                settlement.keep()

    @property
    def active_number(self) -> int:
        """Of the segment that is appended to."""
        return self._active.header.number

    @property
    def active_bytes(self) -> int:
        """The size of its entries; the zeros behind them are not counted."""
        return self._committed.end

    @property
    def known(self) -> KnownLog:
        """The least that is certain to be found from now on: all that is sealed, or not yet begun."""
        return KnownLog(self._active.header.table_id, self._active.header.base_seq)

    @property
    def known_at_end(self) -> KnownLog:
        """The same once the job of `finish` has run."""
        return KnownLog(self._active.header.table_id, self.last_seq)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def size_bytes(self) -> int:
        """All segments as they are on the disk, zeros ahead of the appends included."""
        return sum(segment.size_bytes for segment in self._segments.values())

    @property
    def is_settled(self) -> bool:
        """Whether the log can be appended to; else `resume` is to be tried when there is room."""
        return self._settlement is None

    @property
    def _is_loose(self) -> bool:
        return self.options.fsync is not Fsync.ALWAYS

    def _start(self, active: Segment) -> None:
        """Make `active`, which holds no entry yet, the segment that is appended to."""
        header = active.header
        self._active = active
        self._tail = _Tail(header, header.crc_seed, header.position(0))
        self._committed = copy.copy(self._tail)
        self._failed_to = self._tail.end
        """Where the entries of a failed append end in the active segment, and its SEAL may stand."""
        self._filled_to = active.size_bytes
        self._fill_bytes = FIRST_FILL_BYTES
        self._fill: Fill | None = None
        self._runs.clear()
        self._later.clear()
        self.last_seq = max(self.last_seq, header.base_seq)
        self._last_timestamp_us = max(self._last_timestamp_us, header.base_timestamp_us)

    def stage(
        self,
        kind: Kind,
        key: Key,
        value: Value,
        prev_seq: int,
        expires_us: int = 0,
        batch_index: int = 0,
        batch_count: int = 1,
    ) -> tuple[int, Position]:
        """Number and encode one entry for the next `take`; returns its seq and its position.

        The entries of a batch follow each other, after `make_room` for all of them.
        """
        tail = self._tail
        size = HEADER_BYTES + len(key) + len(value)
        if tail.end + size > self.options.segment_bytes and tail.count and not batch_index:
            tail = self._roll()
        elif not self._runs:
            self._runs.append(Run(tail.header, tail.end))
        offset = tail.end
        self.last_seq = seq = self.last_seq + 1
        header, header_crc = encode_header(
            tail.header.mark,
            tail.crc_seed ^ offset,
            crc32(value, crc32(key)),
            tail.synced_to,
            seq,
            self._next_timestamp_us(),
            expires_us,
            prev_seq,
            kind,
            len(key),
            len(value),
            batch_index,
            batch_count,
        )
        run = self._runs[-1]
        run.buffers += (header, key, value)
        tail.end = run.end = offset + size
        tail.count += 1
        tail.last_seq = seq
        tail.digest = tail.digest + header_crc & DIGEST_MASK
        return seq, tail.position | offset

    def make_room(self, size: int) -> None:
        """Have the next `size` bytes of entries, those of a batch, follow each other in one segment."""
        if self._tail.end + size > self.options.segment_bytes and self._tail.count:
            self._roll()

    @property
    def last_timestamp_us(self) -> int:
        """That of the entry that was staged last."""
        return self._last_timestamp_us

    def _next_timestamp_us(self) -> int:
        """Strictly rising, whatever the clock does."""
        now = self.options.now_us()
        self._last_timestamp_us = now if now > self._last_timestamp_us else self._last_timestamp_us + 1
        return self._last_timestamp_us

    def seal(self) -> bool:
        """Have the next `take` close the segment that is appended to; False where it holds nothing."""
        if not self._tail.count:
            return False
        self._roll()
        return True

    def _roll(self) -> _Tail:
        """Close the staged segment with a SEAL; what is staged from here goes to a new one."""
        if not self._runs:
            self._runs.append(Run(self._tail.header, self._tail.end))
        self._runs[-1].seal = self._seal_entry(self._tail)
        header = self._next_header(self._tail)
        self._runs.append(Run(header, SEGMENT_HEADER_BYTES))
        self._tail = _Tail(header, header.crc_seed, header.position(0))
        return self._tail

    def _seal_entry(self, tail: _Tail) -> bytes:
        self.last_seq += 1
        return encode_seal(
            mark=tail.header.mark,
            crc_seed=tail.crc_seed,
            offset=tail.end,
            count=tail.count,
            last_seq=tail.last_seq,
            digest=tail.digest,
            seq=self.last_seq,
            timestamp_us=self._next_timestamp_us(),
        )

    def _next_header(self, tail: _Tail) -> SegmentHeader:
        """The header behind a segment that has just been given its SEAL."""
        covered_through = self.last_seq if tail.count else tail.header.covered_from - 1
        return tail.header.successor(covered_through, self.last_seq, self._last_timestamp_us, loose=self._is_loose)

    def take(self) -> Append | None:
        """All that is staged as one job; None while there is nothing, or while a Fill is in its way.

        The next call must wait for this job's `committed` or `failed`.
        """
        if not self._runs:
            return None
        first = self._runs[0]
        if self._fill is not None and (first.seal is not None or first.end > self._fill.start):
            return None
        first.segment = self._active
        if first.buffers and first.seal is None:
            self._say_synced(first)
        self._filled_to = max(self._filled_to, first.end)
        append = Append(self.medium, self.directory, self._runs, sync=not self._is_loose)
        self._taken = copy.copy(self._tail)
        self._runs = []
        return append

    def _say_synced(self, run: Run) -> None:
        """Have the first entry say how far the segment is synced by now: it was staged while the group before it was
        on its way, and damage to that group could pass for an interrupted append. A SEAL says it anyway."""
        tail, header = self._tail, run.buffers[0]
        if synced_to_of(header) < tail.synced_to:
            run.buffers[0], change = with_synced_to(header, tail.crc_seed ^ run.offset, tail.synced_to)
            tail.digest = tail.digest + change & DIGEST_MASK

    def committed(self, append: Append) -> None:
        """`append` has run: its entries can be read, and count as synced if it synced."""
        for run in append.runs:
            segment = run.segment
            assert segment is not None
            segment.size_bytes = max(segment.size_bytes, run.end)
            if segment is not self._active:
                self._active.share(self._open_segments)
                self._segments[run.header.number] = self._active = segment
                self._filled_to = segment.size_bytes
                self._fill_bytes = FIRST_FILL_BYTES
            if run.seal is not None:
                segment.size_bytes = run.end + len(run.seal)
                self._unhinted.append(segment.path)
        self._open_segments.trim()
        self._committed = self._taken
        if append.sync:
            self._mark_synced(self._taken.header, self._taken.end)

    def _mark_synced(self, header: SegmentHeader, end: int) -> None:
        for tail in (self._committed, self._tail):
            if tail.header is header:
                tail.synced_to = max(tail.synced_to, end)

    def failed(self, append: Append) -> None:
        """`append` has failed; `abandon` must follow."""
        self._failed_to = append.runs[0].end
        self._later.update((run.header.name, None) for run in append.runs[1:])
        for run in append.runs:
            if run.segment is not None and run.segment is not self._active:
                run.segment.close()

    def abandon(self) -> None:
        """Forget all that is not committed. Its numbers are not used again."""
        if self.is_settled:  # else nothing was ever staged
            self._runs = []
            self._tail = copy.copy(self._committed)

    def resume(self) -> Resume | Settlement | None:
        """The job that makes a log writable whose last append, or recovery, met a full disk; then call `resumed`.

        None while a Fill is in its way: its zeros could overwrite the SEAL.
        """
        if self._settlement is not None:
            return self._settlement
        if self._fill is not None:
            return None
        tail = self._committed
        seal = self._seal_entry(tail)
        header = self._next_header(tail)
        later = list(self._later)
        self._later[header.name] = None
        sync = not self._is_loose
        return Resume(self._active, tail.end, self._failed_to, seal, header, later=later, sync=sync)

    def resumed(self, job: Resume | Settlement) -> None:
        match job:
            case Resume():
                assert job.created is not None
                active = job.created
                job.segment.size_bytes = job.end + len(job.seal_entry)
                self._unhinted.append(job.segment.path)
                self._segments[job.header.number] = active
                job.segment.share(self._open_segments)
            case Settlement():
                found, active = self._segments, job.segments[-1]
                self._segments = {segment.header.number: segment for segment in job.segments}
                for number, segment in found.items():
                    if self._segments.get(number) is not segment:
                        segment.close()
                self._settlement = None
                for segment in job.segments[:-1]:
                    segment.share(self._open_segments)
            case _:
                assert_never(job)
        self._start(active)

    def reserve(self) -> Reserve:
        return Reserve(self.medium, self.directory)

    def fill(self) -> Fill | None:
        """Zeros for the active segment, where it is time; then call `filled`, unless it raised."""
        room = self._filled_to - self._tail.end
        if (
            self._fill is not None
            or not self._fill_bytes
            or room > self._fill_bytes // 4
            or self._filled_to >= self.options.segment_bytes
            or self._tail.header is not self._active.header
            or self.options.fsync is Fsync.NEVER
        ):
            return None
        size = min(self._fill_bytes, self.options.segment_bytes - self._filled_to)
        self._fill = Fill(self._active, self._filled_to, size)
        return self._fill

    def filled(self, fill: Fill) -> None:
        if self._fill is fill:
            self._fill = None
        if fill.segment is not self._active:
            return
        if not fill.filled:
            self._fill_bytes = 0  # no room, or no descriptor: this segment does without
        else:
            self._filled_to = max(self._filled_to, fill.start + fill.size)
            fill.segment.size_bytes = max(fill.segment.size_bytes, fill.start + fill.size)
            self._fill_bytes = min(self._fill_bytes * 2, MAX_FILL_BYTES)

    def sync(self) -> Sync | None:
        """What is committed and not synced, under `fsync: interval` or `never`; then call `synced`."""
        if self._committed.synced_to == self._committed.end:
            return None
        sync = Sync(self._segments[self._committed.header.number], self._committed.end)
        sync.segment.pin()
        self._syncs.add(sync)
        return sync

    def synced(self, sync: Sync) -> None:
        self._syncs.discard(sync)
        sync.segment.unpin()
        self._mark_synced(sync.segment.header, sync.end)

    def sealed(self) -> list[Segment]:
        """The segments that nobody writes or syncs any more, from the log's start on without a gap."""
        segments: list[Segment] = []
        if self.is_settled:
            busy = {self._active, *(sync.segment for sync in self._syncs)}
            for _, segment in sorted(self._segments.items()):
                if segment in busy:
                    break
                segments.append(segment)
        return segments

    def adopt(self, segment: Segment) -> None:
        """Entries can be read from `segment` from now on; it holds what others held."""
        self._segments[segment.header.number] = segment
        segment.share(self._open_segments)
        self._open_segments.trim()
        self._unhinted.append(segment.path)

    def retire(self, segments: Iterable[Segment]) -> None:
        """Nothing is found in these any more; a Read that is under way still reads."""
        for segment in segments:
            del self._segments[segment.header.number]
            segment.close()
            if segment.path in self._unhinted:
                self._unhinted.remove(segment.path)

    def take_unhinted(self) -> list[Path]:
        """The sealed segments that want a hint and were not yet handed out."""
        if not self.is_settled:
            return []
        paths, self._unhinted = self._unhinted, []
        return paths

    def look(self, limit: int | None = None) -> Look:
        """The job that looks whether the folder, the active segment and `limit` others are where they were, all of
        them in turn; then call `lost`."""
        expected: list[Expected] = []
        if self.is_settled:  # else its last segment is about to be replaced
            others = sorted(number for number in self._segments if number != self.active_number)
            if limit is not None and len(others) > limit:
                others = ([number for number in others if number > self._looked_to] or others)[:limit]
            self._looked_to = others[-1] if others else 0
            expected = [Expected(self._segments[number], self._segments[number].size_bytes) for number in others]
            # The zeros behind are cut off by its SEAL.
            expected.append(Expected(self._active, self._committed.end))
        return Look(self.medium, self.directory, expected)

    def lost(self, look: Look) -> LostFile | None:
        """The file that `look` has missed, and this log has not taken away itself in the meantime."""
        look.done()
        if look.lost_folder is not None:
            return look.lost_folder
        for segment, error in look.lost:
            if self._segments.get(segment.header.number) is segment and not segment.is_withdrawn:
                return error
        return None

    def finish(self) -> Append:
        """The last job before `close`: the SEAL of a clean stop, after which nothing may be staged."""
        run = Run(self._tail.header, self._tail.end)
        run.segment = self._active
        run.seal = self._seal_entry(self._tail)
        return Append(self.medium, self.directory, [run], sync=True)

    def close(self) -> None:
        """Close all descriptors; those that a Read has pinned, when it is done. No other job may be under way."""
        while self._syncs:
            self._syncs.pop().segment.unpin()  # of one that has failed
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        if self._settlement is not None:
            for segment in self._settlement.segments:
                segment.close()
        self.medium.release_folder(self.directory)

    def read_cached(self, position: Position, key: Key, seq: int, value_bytes: int) -> Stored | None:
        """The entry at `position` if it can be had without waiting for the disk.

        Raises CorruptLog where the entry is damaged or is not that of `key` and `seq`.
        """
        return self._segments[position >> 32].read_cached(position & _OFFSET_MASK, key, seq, value_bytes)

    def read(self, position: Position, key: Key, seq: int, value_bytes: int) -> Read:
        """The same as a job for a worker."""
        return Read(self._segments[position >> 32], position & _OFFSET_MASK, key, seq, value_bytes)
