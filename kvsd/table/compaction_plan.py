"""Which sealed segments are worth a compaction, and which of them become one.

Owns: the choice of runs. Must not know when it is made, nor how a run is compacted; it reads nothing and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kvsd.table.segment import Segment
from kvsd.table.segment_header import MAX_GENERATION, OVERHEAD_BYTES

_MAX_RUN: Final = 16
"""Segments in one run: what is remembered of its dropped tombstones has a bound."""
_SMALL_SHARE: Final = 4
"""A segment is small if what is alive of it fits so many times into one."""
_SMALL_RUN: Final = 4
"""So many small neighbours are made one even without garbage: every restart leaves one."""


class Candidate(NamedTuple):
    """A sealed segment."""

    segment: Segment
    size_bytes: int
    dead_bytes: int
    is_refused: bool = False
    """It has been found damaged."""

    @property
    def live_bytes(self) -> int:
        return max(0, self.size_bytes - self.dead_bytes - OVERHEAD_BYTES)


def plan(
    candidates: Iterable[Candidate], *, segment_bytes: int, garbage_ratio: float, everything: bool = False
) -> list[list[Candidate]]:
    """Contiguous runs of `candidates`, all of them in the log's order, each worth to be made one segment.

    `everything`: whatever they hold, since tombstones are not counted as garbage, and go best in one go from the start.
    """

    def is_dead(candidate: Candidate) -> bool:
        dead_bytes = candidate.dead_bytes
        return everything or (dead_bytes > 0 and dead_bytes >= garbage_ratio * candidate.size_bytes)

    def may_join(candidate: Candidate) -> bool:
        if candidate.is_refused or candidate.segment.header.generation >= MAX_GENERATION:
            return False
        return is_dead(candidate) or candidate.live_bytes * _SMALL_SHARE <= segment_bytes

    runs: list[list[Candidate]] = []
    run: list[Candidate] = []
    live_bytes = 0
    for candidate in candidates:
        if not may_join(candidate):
            run = []
            continue
        live_bytes += candidate.live_bytes
        if not run or len(run) == _MAX_RUN or live_bytes + OVERHEAD_BYTES > segment_bytes:
            run = []
            runs.append(run)
            live_bytes = candidate.live_bytes
        run.append(candidate)
    return [run for run in runs if len(run) >= _SMALL_RUN or any(map(is_dead, run))]
