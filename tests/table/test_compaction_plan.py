"""Which segments are compacted: the choice of runs."""

from __future__ import annotations

from typing import Any, cast

from kvsd.table.compaction_plan import Candidate, plan
from kvsd.table.segment import Segment
from kvsd.table.segment_header import MAX_GENERATION, OVERHEAD_BYTES

SEGMENT_BYTES = 10_000


class Sealed:
    """As much of a segment as the choice looks at."""

    def __init__(self, generation: int = 0) -> None:
        self.header = self
        self.generation = generation


def candidate(live: int, dead: int, **more: Any) -> Candidate:
    segment = cast(Segment, Sealed(more.pop("generation", 0)))
    return Candidate(segment, OVERHEAD_BYTES + live + dead, dead, **more)


def chosen(*candidates: Candidate, ratio: float = 0.5, **more: Any) -> list[list[int]]:
    runs = plan(candidates, segment_bytes=SEGMENT_BYTES, garbage_ratio=ratio, **more)
    return [[candidates.index(found) for found in run] for run in runs]


FULL = candidate(9_000, 500)


def test_segments_with_enough_garbage_are_chosen_with_their_neighbours() -> None:
    assert chosen(FULL, candidate(4_000, 5_000), candidate(3_000, 6_000), FULL) == [[1, 2]]
    assert chosen(FULL, candidate(6_000, 3_000)) == []
    assert chosen(candidate(100, 0), candidate(1_000, 8_000), candidate(200, 0)) == [[0, 1, 2]]


def test_a_run_fits_into_one_segment() -> None:
    four = [candidate(4_500, 5_000 + number) for number in range(4)]
    assert chosen(*four) == [[0, 1], [2, 3]]


def test_small_neighbours_are_merged_once_there_are_four() -> None:
    small = [candidate(100 + number, 0) for number in range(4)]
    assert chosen(*small[:3], FULL) == []
    assert chosen(FULL, *small) == [[1, 2, 3, 4]]


def test_all_that_hold_garbage_are_chosen_on_demand_and_all_others_too_for_tombstones() -> None:
    assert chosen(FULL, candidate(9_000, 1), ratio=0) == [[0], [1]]
    assert chosen(candidate(9_000, 0), ratio=0) == []
    assert chosen(candidate(9_000, 0), ratio=0, everything=True) == [[0]]


def test_damaged_segments_and_the_last_generation_are_left_alone() -> None:
    assert chosen(candidate(1, 9_000, is_refused=True), candidate(1, 9_000, generation=MAX_GENERATION)) == []
