"""Versions, conditions, updates, batches, expiry and scans, as a table's actor answers them."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from kvsd.errors import Busy, Conflict, CorruptLog, InvalidValue, ReadOnly
from kvsd.table import actor as actor_module
from kvsd.table import updates
from kvsd.table.request import (
    ABSENT,
    MAX_REPLY_BYTES,
    Batch,
    Change,
    Check,
    Count,
    Delete,
    Describe,
    Exists,
    Fetch,
    Found,
    Get,
    Operation,
    Page,
    Scan,
    Set,
    Status,
    Update,
)
from kvsd.table.store import Write
from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS
from tests.table.driver import START_US, Clock, Table
from tests.table.history import recovered
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Serving, Stepped, serving

ALL = Scan(b"", None, 100, values=True)
COUNT = Count(b"", None)
DAY_US = 86_400_000_000


@pytest.fixture
def medium(tmp_path: Path) -> FaultyMedium:
    return FaultyMedium(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def version(table: Serving, key: bytes) -> int:
    (found,) = await table.ask(Fetch(key))
    assert isinstance(found, Found)
    return found.version


# Versions and conditions


async def test_an_entry_tells_its_version_time_and_expiry_from_memory_and_from_the_log(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        _, pending = await table.ask(Set(b"k", b"v", START_US * 2), Fetch(b"k"))
        assert isinstance(pending, Found)
        assert (pending.value, pending.version, pending.expires_us) == (b"v", 1, START_US * 2)
        assert START_US < pending.timestamp_us < START_US + 100
        for medium.reads_cached in (True, False):
            assert await table.ask(Fetch(b"k"), Fetch(b"none")) == [pending, None]


async def test_a_set_with_a_version_happens_only_where_that_is_the_version(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        assert await table.ask(Set(b"k", b"1", if_version=ABSENT)) == [None]
        first = await version(table, b"k")
        results = await table.ask(
            Set(b"k", b"no", if_version=ABSENT), Set(b"k", b"2", if_version=first), Set(b"k", b"no", if_version=first)
        )
        second = await version(table, b"k")
        assert [result and result.version for result in results] == [first, None, second]  # type: ignore[union-attr]
        assert all(isinstance(result, Conflict) for result in (results[0], results[2]))
        assert await table.ask(Get(b"k")) == [b"2"]
        assert "does not exist" in str((await table.ask(Set(b"none", b"", if_version=7)))[0])
    assert recovered(medium) == {b"k": b"2"}


async def test_a_delete_with_a_version_happens_only_where_that_is_the_version(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"1"))
        (conflict,) = await table.ask(Delete(b"k", if_version=99))
        assert isinstance(conflict, Conflict)
        assert conflict.version == 1
        assert await table.ask(Delete(b"k", if_version=1), Delete(b"k", if_version=ABSENT)) == [b"1", None]
        assert await table.ask(Set(b"k", b"2", if_version=ABSENT), Exists(b"k"), Exists(b"none")) == [None, 1, 0]


async def test_a_conflict_is_told_behind_the_sync_of_the_write_that_it_saw(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        table.request(Set(b"k", b"v"))
        await table.reached(gate)
        asked = [table.request(Set(b"k", b"w", if_version=ABSENT)), table.request(Exists(b"k"))]
        await table.settle()
        assert not any(request.future.done() for request in asked)
        gate.opened.set()
        await asyncio.gather(*(request.future for request in asked))


async def test_of_many_who_set_with_one_version_one_succeeds(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        requests = [table.request(Set(b"k", b"%d" % number, if_version=ABSENT)) for number in range(50)]
        results = [(await request.future)[0] for request in requests]
        assert results[0] is None
        assert all(isinstance(result, Conflict) for result in results[1:])


# Updates


async def test_a_hot_counter_counts_every_increment_and_shares_its_syncs(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        table.request(Set(b"other", b""))
        await table.reached(gate)
        syncs = medium.counts[Call.SYNC]
        requests = [table.request(Update(b"n", updates.increment(1))) for _ in range(100)]
        await table.settle()
        gate.opened.set()
        assert [(await request.future)[0] for request in requests] == list(range(1, 101))
        assert medium.counts[Call.SYNC] - syncs < 10
    assert recovered(medium)[b"n"] == b"100"


@pytest.mark.parametrize("cached", [True, False])
async def test_an_update_starts_from_the_value_wherever_that_is(medium: FaultyMedium, cached: bool) -> None:
    medium.reads_cached = cached
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"a"))
        append = updates.append(b"b", max_value_bytes=10)
        asked = (Update(b"k", append), Update(b"k", append), Update(b"k", updates.replace(b"c")), Get(b"k"))
        assert await table.ask(*asked) == [2, 3, b"abb", b"c"]
        refused = await table.ask(Update(b"k", updates.increment(1)), Get(b"k"))
        assert isinstance(refused[0], InvalidValue)
        assert refused[1] == b"c"


async def test_what_comes_behind_an_update_that_reads_the_disk_keeps_its_order(medium: FaultyMedium) -> None:
    """Requests of the same connection wait; those of others do not, and may change the key meanwhile."""
    reads = Stepped()
    medium.reads_cached = False
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"k", b"1"))
        update = table.request(Update(b"k", updates.increment(1)), Get(b"k"))
        behind = [table.request(Delete(b"k")), table.request(Get(b"k"))]
        other = table.request(Set(b"k", b"10"), origin=table.new_origin())
        await other.future
        assert not any(request.future.done() for request in [update, *behind])
        while not behind[1].future.done():
            if reads.jobs:
                reads.run()()
            await asyncio.sleep(0)
        assert update.future.result() == [11, b"11"]
        assert [request.future.result() for request in behind] == [[b"11"], [None]]


async def test_what_was_committed_before_an_update_blocks_is_not_done_again(medium: FaultyMedium) -> None:
    """The commit of somebody else fails while the update waits for its value."""
    reads = Stepped()
    medium.reads_cached = False
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"cold", b"1"))
        count, append = Update(b"n", updates.increment(1)), Update(b"cold", updates.append(b"x", max_value_bytes=9))
        first = table.request(count, append)
        assert await first.future == [1]  # cut, since the append needs the disk
        table.origin.is_cut = False
        rest = table.request(append)
        await table.settle()
        medium.fail(errno.ENOSPC, calls={Call.SYNC})
        other = table.request(Set(b"other", b""), origin=table.new_origin())
        await other.future
        found = table.request(Get(b"n"))
        while not (rest.future.done() and found.future.done()):
            if reads.jobs:
                reads.run()()
            await asyncio.sleep(0)
        assert await found.future == [b"1"]


async def test_updates_of_a_large_value_are_bounded_by_the_budget(medium: FaultyMedium) -> None:
    async with serving(medium, memory_bytes=1 << 20) as table:
        await table.ask(Set(b"k", bytes(400_000)))
        append = Update(b"k", updates.append(b"x", max_value_bytes=1 << 20))
        request = table.request(*[append] * 50)
        results = await request.future
        assert results[:2] == [400_001, 400_002]
        assert all(isinstance(result, Busy) for result in results[2:])
        table.budget.release(request.held_bytes)
        table.origin.is_cut = False


async def test_a_damaged_value_is_not_updated(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"to be damaged"))
        (path,) = (medium.root / "t").glob("*.seg")
        path.write_bytes(path.read_bytes().replace(b"to be damaged", b"two be damage"))
        result, other = await table.ask(Update(b"k", updates.increment(1)), Exists(b"k"))
        assert isinstance(result, CorruptLog)
        assert other == 1
        assert await table.ask(Fetch(b"none")) == [None]


async def test_what_waits_in_one_table_is_not_in_the_way_of_another(tmp_path: Path) -> None:
    first, second = FaultyMedium(tmp_path / "first"), FaultyMedium(tmp_path / "second")
    first.reads_cached = False
    reads = Stepped()
    async with serving(first, reads=reads) as one, serving(second) as other:
        await one.ask(Set(b"n", b"1"))
        blocked = one.request(Update(b"n", updates.increment(1)))
        await one.settle()
        elsewhere = other.request(Set(b"k", b"in the other table"), origin=one.origin)
        await elsewhere.future
        while not blocked.future.done():
            if reads.jobs:
                reads.run()()
            await asyncio.sleep(0)
        assert await one.ask(Get(b"k")) == [None]
        assert await other.ask(Get(b"k")) == [b"in the other table"]


# Batches


async def test_a_batch_happens_as_a_whole_or_not_at_all(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"a", b"1"), Set(b"gone", b"1"))
        batch = Batch((Check(b"a", 1), Check(b"none", ABSENT), Set(b"a", b"2"), Set(b"b", b"2"), Delete(b"gone")))
        assert await table.ask(batch) == [None]
        failing = Batch((Set(b"c", b"3"), Delete(b"a"), Check(b"b", 1)))
        (conflict,) = await table.ask(failing)
        assert isinstance(conflict, Conflict)
        assert await table.ask(Get(b"a"), Get(b"b"), Get(b"c"), Get(b"gone")) == [b"2", b"2", None, None]
    assert recovered(medium) == {b"a": b"2", b"b": b"2"}


async def test_of_two_steps_on_one_key_the_later_wins(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Batch((Set(b"a", b"1"), Delete(b"a"), Set(b"b", b"1"), Set(b"b", b"2"), Delete(b"absent"))))
        assert await table.ask(Get(b"a"), Get(b"b"), Get(b"absent")) == [None, b"2", None]
        assert await table.ask(Batch(()), Batch((Check(b"b", 99),))) != [None, None]
    assert recovered(medium) == {b"b": b"2"}


async def test_a_large_batch_has_its_checksums_from_a_worker_and_keeps_its_place(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 MiB take 8 ms, for which nobody else was served."""
    reads = Stepped()
    value = bytes(range(256)) * 8_000
    async with serving(medium, reads=reads, cache_bytes=1 << 24, memory_bytes=1 << 24) as table:
        await table.ask(Set(b"gone", b"1"), Set(b"a", b"1"))
        steps = (Check(b"none", ABSENT), Set(b"a", value), Delete(b"absent"), Delete(b"gone"), Set(b"b", b"2"))
        other = table.new_origin()
        batch, behind = table.request(Batch(steps)), table.request(Get(b"gone"), Get(b"a"))
        meanwhile = table.request(Get(b"a"), Set(b"other", b"1"), origin=other)
        assert await meanwhile.future == [b"1", None]
        assert not batch.future.done()
        reads.run()()
        assert await batch.future == [None]
        assert await behind.future == [None, value]
        table.budget.release(behind.held_bytes)
        refused = table.request(Batch((*steps, Check(b"b", 99))))
        await table.settle()
        reads.run()()
        assert isinstance((await refused.future)[0], Conflict)
    assert recovered(medium) == {b"a": value, b"b": b"2", b"other": b"1"}


async def test_a_batch_has_its_limits(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        most = Batch(tuple(Set(b"%d" % number, b"") for number in range(MAX_BATCH_STEPS)))
        for batch in (Batch((*most.steps, Check(b"k", 0))), Batch((Set(b"k", bytes(MAX_BATCH_BYTES)),))):
            assert isinstance((await table.ask(batch))[0], InvalidValue)
        assert await table.ask(most) == [None]
    assert len(recovered(medium)) == MAX_BATCH_STEPS


async def test_a_batch_never_spans_segments(medium: FaultyMedium) -> None:
    async with serving(medium, segment_bytes=2_000) as table:
        for number in range(9):
            await table.ask(Set(b"between", bytes(200)), Batch(tuple(Set(b"%d" % n, b"%d" % number) for n in range(9))))
    for path in (medium.root / "t").glob("*.seg"):
        values = {value for key, value in recovered_alone(path).items() if key != b"between"}
        assert len(values) <= len(recovered_alone(path))
    assert recovered(medium) == {b"between": bytes(200)} | {b"%d" % n: b"8" for n in range(9)}


def recovered_alone(path: Path) -> dict[bytes, bytes]:
    """The batches of one segment, each whole."""
    from kvsd.table.entry import HEADER, HEADER_BYTES, Header
    from kvsd.table.segment_header import SEGMENT_HEADER_BYTES

    data, at, found, open_steps = path.read_bytes(), SEGMENT_HEADER_BYTES, dict[bytes, bytes](), 0
    while at + HEADER_BYTES <= len(data) and any(data[at : at + 4]):
        header = Header._make(HEADER.unpack_from(data, at))
        assert header.batch_index == open_steps
        open_steps = 0 if header.batch_index == header.batch_count - 1 else open_steps + 1
        key_at = at + HEADER_BYTES
        found[data[key_at : key_at + header.key_bytes]] = data[key_at + header.key_bytes :][: header.value_bytes]
        at = key_at + header.key_bytes + header.value_bytes
    assert open_steps == 0
    return found


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_batch_that_the_disk_refuses_has_not_happened(medium: FaultyMedium, number: int) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"a", b"1"))
        medium.fail(number, calls={Call.SYNC})
        (result,) = await table.ask(Batch((Set(b"a", b"2"), Set(b"b", b"2"))))
        assert isinstance(result, ReadOnly)
        assert await table.ask(Get(b"a"), Get(b"b")) == [b"1", None]


def test_a_batch_that_is_cut_anywhere_is_gone_as_a_whole(medium: FaultyMedium, tmp_path: Path) -> None:
    table = Table(medium, medium.root)
    table.put(b"a", b"old")
    table.store.batch([Write(b"a", b"new"), Write(b"b", b"new"), Write(b"a", None), Write(b"c", b"")])
    table.commit()
    table.kill()
    (path,) = (medium.root / "t").glob("*.seg")
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    whole = 0
    for cut in range(192, end + 1):
        copy = tmp_path / f"copy-{cut}" / "t"
        copy.mkdir(parents=True)
        (copy / path.name).write_bytes(data[:cut])
        again = Table(FaultyMedium(copy.parent), copy.parent)
        found = again.items()
        assert found in ({}, {b"a": b"old"}, {b"b": b"new", b"c": b""})
        whole += found == {b"b": b"new", b"c": b""}
        again.kill()
    assert whole == 1


# Expiry


async def test_an_expired_key_is_invisible_at_once_and_swept_later(
    medium: FaultyMedium, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "_SWEEP_SECONDS", 0.001)
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"k", b"v", clock.now_us + 1_000), Set(b"stays", b"v"), ALL)
        assert await table.ask(Get(b"k"), Exists(b"k"), COUNT) == [b"v", 1, 2]
        clock.now_us += 1_000
        results = await table.ask(Get(b"k"), Exists(b"k"), Fetch(b"k"), Delete(b"k"), COUNT, ALL)
        assert results == [None, 0, None, None, 1, Page([(b"stays", b"v")], None)]
        while table.store.has_expiries:
            await asyncio.sleep(0)
        assert await table.ask(COUNT, ALL) == [1, Page([(b"stays", b"v")], None)]
        assert len(table.actor) == 1
    assert recovered(medium) == {b"stays": b"v"}


async def test_an_expiry_survives_a_restart_and_counts_on_from_there(medium: FaultyMedium, clock: Clock) -> None:
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"k", b"v", clock.now_us + 1_000), Set(b"l", b"v", clock.now_us + 2_000))
    clock.now_us += 1_500
    async with serving(medium, now_us=clock) as table:
        assert len(table.actor) == 1
        assert await table.ask(Get(b"k"), Get(b"l")) == [None, b"v"]


async def test_a_key_that_expired_is_written_anew_as_a_new_one(medium: FaultyMedium, clock: Clock) -> None:
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"k", b"1", clock.now_us + 10), Set(b"n", b"5", clock.now_us + 10))
        clock.now_us += 10
        assert await table.ask(Set(b"k", b"2", if_version=ABSENT), Update(b"n", updates.increment(1))) == [None, 1]
        clock.now_us += 10**9
        assert await table.ask(Get(b"k"), Get(b"n"), COUNT) == [b"2", b"1", 2]
    assert recovered(medium) == {b"k": b"2", b"n": b"1"}


@pytest.mark.parametrize("settle", [True, False])
async def test_a_plain_set_takes_the_expiry_away_and_an_update_keeps_it(
    medium: FaultyMedium, clock: Clock, settle: bool
) -> None:
    async with serving(medium, now_us=clock) as table:

        async def ask(*operations: object) -> list[object]:
            if settle:
                return [(await table.ask(operation))[0] for operation in operations]  # type: ignore[arg-type]
            return list(await table.ask(*operations))  # type: ignore[arg-type]

        at = clock.now_us + 1_000
        await ask(Set(b"plain", b"1", at), Set(b"plain", b"2"), Set(b"n", b"1", at), Update(b"n", updates.increment(1)))
        assert await ask(Set(b"p", b"1", at), Update(b"p", updates.persist), Update(b"q", updates.persist)) == [
            None,
            1,
            0,
        ]
        assert await ask(Set(b"e", b"1"), Update(b"e", updates.expire(at)), Update(b"q", updates.expire(at))) == [
            None,
            1,
            0,
        ]
        clock.now_us = at
        assert await ask(*map(Get, (b"plain", b"n", b"p", b"e"))) == [b"2", None, b"1", None]


async def test_a_sweep_is_bounded_and_comes_to_its_end(
    medium: FaultyMedium, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "_SWEEP_SECONDS", 0.001)
    monkeypatch.setattr(actor_module, "_SWEEP_KEYS", 10)
    async with serving(medium, now_us=clock) as table:
        for number in range(100):
            await table.ask(Set(b"%d" % number, b"", clock.now_us + 5))
        clock.now_us += 5
        assert len(table.actor) == 0
        while table.store.has_expiries:
            await asyncio.sleep(0)
        assert (await table.ask(COUNT))[0] == 0
    assert recovered(medium) == {}


async def test_a_sweep_goes_on_with_each_commit_and_does_not_wait_for_a_timer(
    medium: FaultyMedium, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "_SWEEP_SECONDS", 3_600.0)
    async with serving(medium, now_us=clock) as table:
        await table.ask(*[Set(b"%d" % number, b"", clock.now_us + 5) for number in range(1_000)])
        clock.now_us += 5
        table.request(Set(b"other", b""))  # its commit is under way when the first sweep comes
        await asyncio.sleep(0)
        table.actor._sweep()
        await table.idle()
        assert not table.store.has_expiries
    assert recovered(medium) == {b"other": b""}


async def test_what_has_expired_before_a_start_is_swept_without_any_write(
    medium: FaultyMedium, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "_SWEEP_SECONDS", 0.001)
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"k", b"v", clock.now_us + 5))
    clock.now_us += 5
    async with serving(medium, now_us=clock) as table, asyncio.timeout(20):
        while table.store.has_expiries:
            await asyncio.sleep(0)
        assert table.store.index.live == 0


async def test_nothing_is_swept_while_the_table_is_read_only(
    medium: FaultyMedium, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actor_module, "_SWEEP_SECONDS", 0.001)
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"k", b"v", clock.now_us + 5))
        medium.fail(errno.EIO, calls={Call.SYNC})
        await table.ask(Set(b"l", b"v"))
        clock.now_us += 5
        await table.settle()
        assert await table.ask(Get(b"k"), COUNT) == [None, 0]


async def test_a_clock_that_is_ahead_for_a_moment_costs_no_key(medium: FaultyMedium, clock: Clock) -> None:
    """What has expired by it is absent as long as it is ahead, and all there when it is set back."""
    is_right = True
    async with serving(medium, now_us=clock, is_clock_right=lambda: is_right) as table:
        keys = [b"a", b"b", b"c"]
        later = START_US + DAY_US
        await table.ask(*[Set(key, key, expires_us=later) for key in keys])
        await table.idle()  # a Fill makes the log longer
        seen = (*map(Get, keys), Scan(b"", None, 10, values=False), Count(b"", None), Exists(b"a"), Describe())
        before = await table.ask(*seen)
        is_right = False
        clock.now_us += 2 * DAY_US
        found = await table.ask(*seen)
        assert found[:3] == [None] * 3
        assert isinstance(found[3], Page)
        assert (found[3].items, found[4], found[5]) == ([], 0, 0)
        table.actor._sweep()
        await table.idle()
        clock.now_us = START_US + 1
        is_right = True
        table.actor._sweep()
        await table.idle()
        assert await table.ask(*seen) == before
    assert recovered(medium, now_us=clock) == {key: key for key in keys}


@pytest.mark.parametrize(
    "write",
    [
        Delete(b"k"),
        Batch((Delete(b"k"),)),
        Set(b"k", b"w"),
        Batch((Set(b"k", b"w"),)),
        Update(b"k", updates.increment(1)),
    ],
    ids=["delete", "batch delete", "set", "batch set", "update"],
)
async def test_what_is_written_while_the_clock_is_ahead_stays_written(
    medium: FaultyMedium, clock: Clock, write: Operation
) -> None:
    """A key that was absent by the clock, and deleted, must not come back with the right time."""
    async with serving(medium, now_us=clock, is_clock_right=lambda: False) as table:
        await table.ask(Set(b"k", b"v", expires_us=START_US + DAY_US), Set(b"other", b"v"))
        clock.now_us += 2 * DAY_US
        (result,) = await table.ask(write)
        assert result in (None, 1)
        (after,) = await table.ask(Get(b"k"))
        clock.now_us = START_US + 1
        assert await table.ask(Get(b"k")) == [after]
        assert after != b"v"
    assert recovered(medium, now_us=clock).get(b"k") == after


# Scans


async def test_a_scan_gives_the_keys_in_order_page_by_page(medium: FaultyMedium) -> None:
    keys = [b"%03d" % number for number in range(250)]
    async with serving(medium) as table:
        for key in reversed(keys):
            await table.ask(Set(key, key * 2))
        found: list[tuple[bytes, bytes | None]] = []
        start: bytes | None = b""
        while start is not None:
            (page,) = await table.ask(Scan(start, None, 60, values=True))
            assert isinstance(page, Page)
            assert len(page.items) <= 60
            found += page.items
            start = page.next
        assert found == [(key, key * 2) for key in keys]
        (page,) = await table.ask(Scan(b"01", b"02", 100, values=False))
        assert page == Page([(key, None) for key in keys if key.startswith(b"01")], None)
        assert await table.ask(COUNT, Count(b"01", b"02"), Count(b"2", None), Count(b"9", b"1")) == [250, 10, 50, 0]


async def test_a_scan_sees_the_writes_before_it(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        first = await table.ask(Set(b"b", b"1"), Set(b"a", b"1"), ALL, Delete(b"a"), Set(b"c", b"1"), ALL, COUNT)
        assert first[2] == Page([(b"a", b"1"), (b"b", b"1")], None)
        assert first[5:] == [Page([(b"b", b"1"), (b"c", b"1")], None), 2]


async def test_a_scan_waits_for_the_sync_and_others_go_on(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"old", b"1"))
        gate = medium.hold(Call.SYNC)
        write = table.request(Set(b"new", b"1"))
        await table.reached(gate)
        scan, behind = table.request(ALL), table.request(Get(b"old"))
        other = table.request(Get(b"old"), origin=table.new_origin())
        await table.settle()
        assert other.future.done()
        assert not scan.future.done()
        assert not behind.future.done()  # replies leave in order anyhow
        gate.opened.set()
        assert await scan.future == [Page([(b"new", b"1"), (b"old", b"1")], None)]
        await asyncio.gather(write.future, behind.future)


async def test_a_page_ends_where_its_values_grow_too_large(medium: FaultyMedium) -> None:
    size = MAX_REPLY_BYTES // 3
    async with serving(medium, memory_bytes=64 << 20) as table:
        for number in range(8):
            await table.ask(Set(b"%d" % number, bytes(size)))
        (page,) = await table.ask(ALL)
        assert isinstance(page, Page)
        assert (len(page.items), page.next) == (3, b"3")


@pytest.mark.parametrize("cached", [True, False])
async def test_a_scan_reads_values_from_the_disk_and_tells_damage(medium: FaultyMedium, cached: bool) -> None:
    medium.reads_cached = cached
    async with serving(medium) as table:
        await table.ask(*(Set(b"%d" % number, b"value %d" % number) for number in range(5)))
        assert await table.ask(ALL) == [Page([(b"%d" % n, b"value %d" % n) for n in range(5)], None)]
        (path,) = (medium.root / "t").glob("*.seg")
        path.write_bytes(path.read_bytes().replace(b"value 3", b"VALUE 3"))
        damaged, keys = await table.ask(ALL, Scan(b"", None, 10, values=False))
        assert isinstance(damaged, CorruptLog)
        assert isinstance(keys, Page)
        assert len(keys.items) == 5


async def test_a_scan_behind_a_write_that_fails_sees_that_it_has_not_happened(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"old", b"1"))
        medium.fail(errno.EIO, calls={Call.SYNC})
        refused, page, count = await table.ask(Set(b"new", b"1"), ALL, COUNT)
        assert isinstance(refused, ReadOnly)
        assert (page, count) == (Page([(b"old", b"1")], None), 1)


async def test_keys_that_come_and_go_while_they_are_sorted_are_in_their_places(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium) as table:
        await table.ask(*(Set(b"%04d" % number, b"") for number in range(900)))
        scan = table.request(COUNT, origin=table.new_origin())
        results = await table.ask(Set(b"new", b""), Delete(b"0005"), COUNT)
        assert results[-1] == 900
        assert (await scan.future)[0] in (900, 901, 899)
        (page,) = await table.ask(Scan(b"0004", b"0007", 9, values=False))
        assert page == Page([(b"0004", None), (b"0006", None)], None)


async def test_a_crash_answers_those_that_wait_for_a_commit_or_a_value(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"1"))
        gate = medium.hold(Call.SYNC)
        write = table.request(Set(b"l", b"1"))
        await table.reached(gate)
        scan, parked = table.request(ALL), table.request(Get(b"k"))
        await table.settle()

        def broken(_: object) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(table.store, "committed", broken)
        gate.opened.set()
        for request in (write, scan, parked):
            assert "unavailable" in str((await request.future)[0])


async def test_a_crash_while_a_blocked_request_goes_on_answers_those_behind_it(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"n", b"1"))

        def broken(value: bytes | None, expires_us: int) -> Change:
            raise RuntimeError("a fault of ours")

        asked = [table.request(Update(b"n", broken)), table.request(Get(b"none")), table.request(Exists(b"n"))]
        await table.settle()
        reads.run()()
        for request in asked:
            assert "unavailable" in str((await request.future)[0])


async def test_a_table_describes_itself(medium: FaultyMedium, clock: Clock) -> None:
    async with serving(medium, now_us=clock) as table:
        await table.ask(Set(b"a", b"1"), Set(b"a", b"22"), Set(b"b", b"1", clock.now_us + 9))
        (status,) = await table.ask(Describe())
        assert isinstance(status, Status)
        assert (status.state, status.keys, status.keys_with_expiry) == ("writable", 2, 1)
        assert (status.last_seq, status.segments, status.dead_bytes) == (3, 1, 66)
        assert status.log_bytes >= 192 + 3 * 65
