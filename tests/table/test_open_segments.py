"""More segments than descriptors: all is served, within the bound."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from kvsd.errors import Busy, CorruptLog, TableUnavailable
from kvsd.table import updates
from kvsd.table.open_segments import _SPARE, OpenSegments
from kvsd.table.request import Compact, Delete, Exists, Fetch, Found, Get, Operation, Page, Scan, Set, Update
from kvsd.table.segment import Segment
from tests.table.driver import segments
from tests.table.history import recovered
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Inline, Serving, serving

KEYS = [b"%d" % number for number in range(60)]
ALL = {key: key * 50 for key in KEYS}


@pytest.fixture
def medium(tmp_path: Path) -> FaultyMedium:
    return FaultyMedium(tmp_path)


async def fill(table: Serving) -> None:
    """Some thirty segments."""
    for key, value in ALL.items():
        await table.ask(Set(key, value))
    assert len(segments(table.medium.root / "t")) > 20


async def check(table: Serving, rounds: int = 1) -> None:
    rng = random.Random(1)
    for _ in range(rounds):
        for key in rng.sample(KEYS, len(KEYS)):
            assert await table.ask(Get(key)) == [ALL[key]]


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("reads_cached", [True, False])
async def test_a_table_of_more_segments_than_descriptors_opens_serves_and_compacts(
    medium: FaultyMedium, limit: int, reads_cached: bool
) -> None:
    medium.reads_cached = reads_cached
    shared = OpenSegments(limit)
    most = limit + 1  # and the one that is written
    async with serving(medium, segment_bytes=200, open_segments=shared) as table:
        await fill(table)
        await table.idle()
        assert len(medium.open_files) <= most
        await check(table, 2)
        await table.idle()
        assert len(medium.open_files) <= most
    for _ in range(2):
        async with serving(medium, segment_bytes=200, open_segments=shared) as table:
            assert len(medium.open_files) <= most + 1
            await check(table)
            page = (await table.ask(Scan(b"", None, 100, values=True)))[0]
            assert isinstance(page, Page)
            assert dict(page.items) == ALL
            await table.idle()
            assert len(medium.open_files) <= most
            await table.ask(*[Set(key, ALL[key]) for key in KEYS[::3]], Compact("start"))
            await table.idle()
            assert len(medium.open_files) <= most
            await check(table)
    assert len(shared) == 0
    assert recovered(medium) == ALL


async def test_many_reads_at_once_stay_within_the_bound(medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    read = FaultyMedium.read

    def counting(self: FaultyMedium, fd: int, size: int, offset: int) -> bytes:
        nonlocal most
        most = max(most, len(self.open_files))
        return read(self, fd, size, offset)

    async with serving(medium, segment_bytes=200, open_segments=OpenSegments(2)) as table:
        await fill(table)
        monkeypatch.setattr(FaultyMedium, "read", counting)
        for _ in range(3):
            assert await table.ask(*map(Get, KEYS)) == list(ALL.values())
        assert most <= 2 + _SPARE + 1 + 4  # those of four workers that read, and the one that is written


async def test_what_is_read_often_stays_open(medium: FaultyMedium) -> None:
    async with serving(medium, segment_bytes=200, open_segments=OpenSegments(3)) as table:
        await fill(table)
        await table.ask(Get(b"0"))
        first = table.store.log.sealed()[0]
        for key in KEYS[1:]:
            await table.ask(Get(b"0"), Get(key))
            assert first.is_open


OPERATIONS: list[Operation] = [
    Get(b"0"),
    Fetch(b"0"),
    Update(b"0", updates.append(b"x", max_value_bytes=1_000)),
    Scan(b"0", b"00", 10, values=True),
    Delete(b"0"),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_read_that_gets_no_descriptor_is_told_so_and_succeeds_later(
    medium: FaultyMedium, operation: Operation, number: int
) -> None:
    """It is no damage, and a delete is not said to have failed that was done."""
    async with serving(medium, segment_bytes=200, open_segments=OpenSegments(1)) as table:
        await fill(table)
        assert not table.store.log.sealed()[0].is_open
        medium.fail(number, calls={Call.OPEN}, forever=True)
        (answer,) = await table.ask(operation)
        assert "descriptors" in str(answer)
        if isinstance(operation, Delete):
            assert isinstance(answer, TableUnavailable)
            assert "The key was deleted" in str(answer)
            assert await table.ask(Get(b"0"), Exists(b"0")) == [None, 0]
        else:
            assert isinstance(answer, Busy)
        medium.heal()
        if not isinstance(operation, Delete):
            (answer,) = await table.ask(Fetch(b"0"))
            assert isinstance(answer, Found)
            assert answer.value == ALL[b"0"]
        assert ("critical", "damaged entry") not in table.reporter.events


@pytest.mark.parametrize("what", ["removed", "replaced by a copy", "replaced by another"])
async def test_a_parked_segment_that_is_not_there_any_more_is_not_read(medium: FaultyMedium, what: str) -> None:
    async with serving(medium, segment_bytes=200, open_segments=OpenSegments(1)) as table:
        await fill(table)
        first, second, *_ = segments(medium.root / "t")
        copy = first.with_name("copy")
        shutil.copy(first if what == "replaced by a copy" else second, copy)
        if what == "removed":
            first.unlink()
        else:
            copy.replace(first)
        (answer,) = await table.ask(Get(b"0"))
        assert isinstance(answer, CorruptLog)
        assert first.name in str(answer)
        assert await table.ask(Get(KEYS[-1])) == [ALL[KEYS[-1]]]


async def test_a_read_that_waits_to_open_an_input_of_a_compaction_still_finds_it(medium: FaultyMedium) -> None:
    """The read came first; the compaction has moved all over and would remove the file."""
    async with serving(medium, segment_bytes=450, open_segments=OpenSegments(1), compactions=Inline()) as table:
        await fill(table)
        await table.ask(*[Set(key, ALL[key]) for key in KEYS[1:]])
        gate = medium.hold(Call.OPEN)
        waiting = table.request(Get(b"0"))
        await table.reached(gate)
        del medium._gates[Call.OPEN]  # for all others
        table.request(Compact("start"))
        for _ in range(200):
            await table.settle()
        assert (medium.root / "t" / "0000000001-0001.seg").exists()
        gate.opened.set()
        assert await waiting.future == [ALL[b"0"]]
        table.budget.release(waiting.held_bytes)
        await table.idle()
        assert (await table.ask(Get(b"0"))) == [ALL[b"0"]]


def test_a_segment_is_read_from_memory_without_a_lock() -> None:
    """A read of the page cache does nothing but note that it was one."""
    names = Segment.read_cached.__code__.co_names
    assert "was_read" in names
    assert not {"_shared", "pin", "ensure_open", "acquire"} & set(names)
