"""Order, group commit, limits, and the containment of crashes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from pathlib import Path

import pytest

from kvsd.errors import Busy, CorruptLog, ReadOnly, TableUnavailable
from kvsd.table import store as store_module
from kvsd.table.committer import State
from kvsd.table.request import FREE_BYTES, MAX_OPERATIONS, MAX_REPLY_BYTES, Delete, Get, Set
from kvsd.table.store import Commit, Store
from kvsd.types import Fsync
from tests.table.history import recovered
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Inline, Stepped, serving


@pytest.fixture
def medium(tmp_path: Path) -> FaultyMedium:
    return FaultyMedium(tmp_path)


# Group commit and order


async def test_operations_of_a_request_see_each_other_in_order(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        get, delete = Get(b"k"), Delete(b"k")
        asked = (get, Set(b"k", b"1"), get, delete, get, delete, Set(b"k", b""), get)
        assert await table.ask(*asked) == [None, None, b"1", b"1", None, None, None, b""]
        assert len(table.actor) == 1
    assert recovered(medium) == {b"k": b""}


async def test_requests_that_come_during_a_sync_share_the_next_one(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        first = table.request(Set(b"first", b"v"))
        await table.reached(gate)
        writes = medium.counts[Call.WRITE]
        later = [table.request(Set(b"%d" % number, b"v")) for number in range(50)]
        await table.settle()
        assert not first.future.done()
        gate.opened.set()
        await asyncio.gather(first.future, *(request.future for request in later))
        # The second group, and perhaps a Fill.
        assert medium.counts[Call.WRITE] <= writes + 2
    assert len(recovered(medium)) == 51


async def test_large_values_are_not_all_read_in_one_pass(medium: FaultyMedium) -> None:
    """Else what many ask for is in memory at once, and the loop stands still for as long as it takes to read it."""
    async with serving(medium, memory_bytes=1 << 28) as table:
        await table.ask(Set(b"k", bytes(1 << 20)))
        requests = [table.request(Get(b"k"), origin=table.new_origin()) for _ in range(64)]
        longest = before = 0
        while before < len(requests):
            await asyncio.sleep(0)
            started = sum(bool(request.results) for request in requests)
            longest, before = max(longest, started - before), started
        assert longest < 20
        for request in requests:
            assert await request.future == [bytes(1 << 20)]
            table.budget.release(request.held_bytes)


@pytest.mark.parametrize("ending", ["ok", "read-only"])
async def test_a_group_takes_no_more_writes_than_the_loop_can_end_at_once(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """However long a sync takes and however many go on writing; reads go on, and nobody is forgotten or overtaken."""
    monkeypatch.setattr(store_module, "_GROUP_WRITES", 5)
    sizes: list[int] = []
    committed = Store.committed

    def count(store: Store, commit: Commit) -> None:
        sizes.append(len(commit.writes))
        committed(store, commit)

    monkeypatch.setattr(Store, "committed", count)
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        gate = medium.hold(Call.SYNC)
        requests = [
            table.request(*(Set(b"%d" % number, b"%d" % turn) for number in range(3)), origin=origin)
            for origin in [table.new_origin() for _ in range(6)]
            for turn in range(3)
        ]
        await table.reached(gate)
        await table.settle()
        assert await table.request(Get(b"k"), origin=table.new_origin()).future == [b"v"]
        if ending == "read-only":
            medium.fail(errno.EIO, calls={Call.SYNC})
        gate.opened.set()
        answers = [await request.future for request in requests]
        if ending == "ok":
            # What was cut comes back unfinished; its connection asks again.
            assert all(result is None for results in answers for result in results)
            assert sum(map(len, answers)) == sum(sizes[1:])
        else:
            assert all(isinstance(result, ReadOnly) for results in answers for result in results)
    assert max(sizes) <= 5


async def test_an_ok_comes_behind_the_sync_that_covers_it(medium: FaultyMedium) -> None:
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        first = table.request(Set(b"a", b"1"))
        await table.settle()
        second = table.request(Set(b"b", b"2"))
        await table.settle()
        commits.run()()
        await table.settle()
        assert first.future.done()
        assert not second.future.done()
        while not second.future.done():
            commits.run()()
            await table.settle()
        stopping = asyncio.ensure_future(table.stop())
        await table.settle()
        while commits.jobs:
            commits.run()()
            await table.settle()
        await stopping


async def test_a_read_waits_for_the_write_that_it_saw_and_for_no_other(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"old", b"1"), Set(b"both", b"1"))
        gate = medium.hold(Call.SYNC)
        write = table.request(Set(b"both", b"2"), Delete(b"old"))
        await table.reached(gate)
        waiting = [table.request(Get(b"both")), table.request(Get(b"old")), table.request(Delete(b"old"))]
        assert await table.ask(Get(b"other")) == [None]
        await table.settle()
        assert not any(request.future.done() for request in [write, *waiting])
        gate.opened.set()
        assert [await request.future for request in waiting] == [[b"2"], [None], [None]]


async def test_other_keys_are_served_during_a_sync(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"old", b"1"))
        gate = medium.hold(Call.SYNC)
        write = table.request(Set(b"new", b"1"))
        await table.reached(gate)
        assert await table.ask(Get(b"old")) == [b"1"]
        assert not write.future.done()
        gate.opened.set()
        await write.future


async def test_a_busy_mailbox_lets_the_loop_run(medium: FaultyMedium) -> None:
    async with serving(medium, commits=Inline()) as table:
        requests = [table.request(*[Get(b"k")] * 500) for _ in range(20)]
        turns = itertools.count()

        def turn() -> None:
            if not requests[-1].future.done():
                next(turns)
                table.loop.call_soon(turn)

        table.loop.call_soon(turn)
        await requests[-1].future
        assert next(turns) >= 3


async def test_a_vanished_client_cancels_its_wait_and_not_the_write(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        request = table.request(Set(b"k", b"v"))
        await table.reached(gate)
        request.future.cancel()
        gate.opened.set()
        assert await table.ask(Get(b"k")) == [b"v"]
        gone = table.request(Set(b"l", b"w"))
        gone.future.cancel()
        assert await table.ask(Get(b"l")) == [b"w"]
    assert recovered(medium) == {b"k": b"v", b"l": b"w"}


# Cuts and memory


async def test_a_request_is_cut_at_its_number_of_operations(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        cut = table.request(*[Get(b"k")] * (MAX_OPERATIONS + 1))
        behind = table.request(Set(b"k", b"v"))
        other = table.request(Get(b"k"), origin=table.new_origin())
        assert len(await cut.future) == MAX_OPERATIONS
        assert table.origin.is_cut
        assert await behind.future == []
        assert await other.future == [None]
        table.origin.is_cut = False
        assert await table.ask(Get(b"k")) == [None]
        assert len(await table.ask(*[Get(b"k")] * MAX_OPERATIONS)) == MAX_OPERATIONS
        assert not table.origin.is_cut


@pytest.mark.parametrize("cached", [True, False])
async def test_a_request_is_cut_at_its_bytes_of_reply(medium: FaultyMedium, cached: bool) -> None:
    medium.reads_cached = cached
    async with serving(medium, memory_bytes=8 << 20) as table:
        await table.ask(Set(b"k", bytes(300_000)))
        request = table.request(*[Get(b"k")] * 10)
        results = await request.future
        assert results == [bytes(300_000)] * 4
        assert sum(len(value) for value in results[:-1]) <= MAX_REPLY_BYTES  # type: ignore[arg-type]
        assert table.origin.is_cut
        assert table.budget.held_bytes == request.held_bytes == 1_200_000
        table.budget.release(request.held_bytes)


async def test_a_value_that_does_not_fit_the_budget_is_refused_and_small_ones_are_served(medium: FaultyMedium) -> None:
    async with serving(medium, memory_bytes=100_000) as table:
        await table.ask(Set(b"large", bytes(80_000)), Set(b"small", bytes(1_000)))
        held = table.request(Get(b"large"))
        await held.future
        assert held.held_bytes == 80_000
        refused, small = await table.ask(Get(b"large"), Get(b"small"))
        assert isinstance(refused, Busy)
        assert refused.retryable
        assert small == bytes(1_000)
        (refused,) = await table.ask(Delete(b"large"))
        assert isinstance(refused, Busy)
        table.budget.release(held.held_bytes)
        assert await table.ask(Delete(b"large")) == [bytes(80_000)]


async def test_a_cold_value_that_does_not_fit_the_budget_is_refused_and_its_pin_let_go(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    async with serving(medium, memory_bytes=50_000) as table:
        await table.ask(Set(b"large", bytes(80_000)))
        for operation in (Get(b"large"), Delete(b"large")):
            (refused,) = await table.ask(operation)
            assert isinstance(refused, Busy)


async def test_small_replies_cost_no_accounting(medium: FaultyMedium) -> None:
    async with serving(medium, memory_bytes=0) as table:
        await table.ask(Set(b"k", bytes(FREE_BYTES // 2)))
        found = await table.ask(Get(b"k"), Get(b"k"), Get(b"k"))
        assert found[:2] == [bytes(FREE_BYTES // 2)] * 2
        assert isinstance(found[2], Busy)


@pytest.mark.parametrize("cached", [True, False])
async def test_a_cancelled_read_gives_its_memory_back(medium: FaultyMedium, cached: bool) -> None:
    medium.reads_cached = cached
    async with serving(medium) as table:
        await table.ask(Set(b"k", bytes(100_000)))
        request = table.request(Get(b"k"))
        request.future.cancel()
        await table.ask(Get(b"none"))
    assert table.budget.held_bytes == 0


async def test_a_failed_commit_gives_the_memory_of_its_answers_back(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", bytes(100_000)))
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)
        request = table.request(Get(b"k"), Set(b"l", b"v"))
        old, refused = await request.future
        assert old == bytes(100_000)
        assert isinstance(refused, ReadOnly)
        assert table.budget.held_bytes == request.held_bytes == 100_000
        table.budget.release(request.held_bytes)


# Cold reads and damage


async def test_cold_reads_keep_their_places(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    async with serving(medium, cache_bytes=0) as table:
        await table.ask(Set(b"a", b"1"), Set(b"b", b"2"))
        asked = (Get(b"none"), Get(b"a"), Set(b"c", b"3"), Get(b"b"), Get(b"c"), Delete(b"a"), Get(b"a"))
        assert await table.ask(*asked) == [None, b"1", None, b"2", b"3", b"1", None]


async def test_a_cold_read_delays_neither_commits_nor_other_reads(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads, cache_bytes=1 << 20) as table:
        await table.ask(Set(b"cold", bytes(200_000)))  # too large for the cache
        cold = table.request(Get(b"cold"))
        await table.settle()
        assert await table.ask(Set(b"k", b"v"), Get(b"k")) == [None, b"v"]
        assert not cold.future.done()
        reads.run()()
        assert await cold.future == [bytes(200_000)]
        table.budget.release(cold.held_bytes)


async def test_a_cold_read_that_is_in_flight_while_the_log_closes_is_answered(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"k", b"v"))
        cold = table.request(Get(b"k"))
        stopping = asyncio.ensure_future(table.stop())
        await table.settle()
        reads.run()()
        await stopping
        assert cold.future.result() == [b"v"]


def damage(medium: FaultyMedium, value: bytes) -> None:
    for path in medium.root.glob("t/*.seg"):
        path.write_bytes(path.read_bytes().replace(value, value[::-1]))


@pytest.mark.parametrize("cached", [True, False])
async def test_damage_fails_its_own_key_alone_and_the_key_can_be_deleted(medium: FaultyMedium, cached: bool) -> None:
    medium.reads_cached = cached
    async with serving(medium) as table:
        await table.ask(Set(b"bad", b"to be damaged"), Set(b"good", b"untouched"))
        damage(medium, b"to be damaged")
        bad, good = await table.ask(Get(b"bad"), Get(b"good"))
        assert isinstance(bad, CorruptLog)
        assert b"damaged" not in str(bad).encode().replace(b"is damaged", b"")
        assert good == b"untouched"
        assert ("critical", "damaged entry") in table.reporter.events
        assert ("critical", "damaged entry") in table.reporter.events
        (told,) = await table.ask(Delete(b"bad"))
        assert isinstance(told, CorruptLog)
        assert "The key was deleted" in str(told)
        assert await table.ask(Get(b"bad"), Set(b"bad", b"anew"), Get(b"bad")) == [None, None, b"anew"]
    # At the next start it would be a hole in the log, which is for the user to judge.
    with pytest.raises(CorruptLog):
        recovered(medium)


async def test_a_failing_disk_fails_reads_one_by_one(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        medium.fail(errno.EIO, calls={Call.READ})
        (failed,) = await table.ask(Get(b"k"))
        assert isinstance(failed, CorruptLog)
        assert await table.ask(Get(b"k")) == [b"v"]


# Failures of the disk


@pytest.mark.parametrize("call", [Call.WRITE, Call.SYNC])
async def test_a_failed_append_turns_the_table_read_only_and_reads_go_on(medium: FaultyMedium, call: Call) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        await table.idle()
        medium.fail(errno.EIO, calls={call})
        (refused,) = await table.ask(Set(b"k", b"w"))
        assert isinstance(refused, ReadOnly)
        assert "may or may not" in str(refused)
        assert table.actor.state is State.READ_ONLY
        medium.heal()
        got, refused, not_deleted = await table.ask(Get(b"k"), Set(b"k", b"x"), Delete(b"k"))
        assert got == b"v"
        assert isinstance(refused, ReadOnly)
        assert isinstance(not_deleted, ReadOnly)
    # The write was not acknowledged: both are right.
    assert recovered(medium)[b"k"] in (b"v", b"w")


async def test_a_write_that_waits_behind_a_failed_one_is_refused_with_it(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        first = table.request(Set(b"k", b"v"))
        await table.reached(gate)
        second = table.request(Set(b"l", b"w"), Get(b"k"))
        await table.settle()
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)  # a Fill may sync beside the append
        gate.opened.set()
        assert isinstance((await first.future)[0], ReadOnly)
        refused, got = await second.future
        assert isinstance(refused, ReadOnly)
        assert got is None


async def test_a_request_that_waits_in_front_of_a_cut_one_is_answered_whole_when_its_commit_fails(
    medium: FaultyMedium,
) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        first = table.request(Set(b"k", b"v"))
        await table.reached(gate)
        cut = table.request(*[Get(b"none")] * (MAX_OPERATIONS + 1))
        await cut.future
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)  # a Fill may sync beside the append
        gate.opened.set()
        assert [type(result) for result in await first.future] == [ReadOnly]
        assert table.origin.is_cut


async def test_a_failed_fill_is_news_to_the_append_beside_it(medium: FaultyMedium) -> None:
    """The system tells each descriptor once of a failed write: a Fill must not take the news from an append."""
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        first = table.request(Set(b"k", bytes(20_000)))
        await table.settle()
        commits.run()()
        await first.future
        while commits.names != ["Fill"]:
            await table.settle()
        commits.run()()
        await table.settle()
        # Room for one more before the next Fill, which then runs beside the append.
        fill_and_append = table.request(Set(b"k", bytes(50_000)))
        await table.settle()
        assert commits.names == ["Append", "Fill"]
        medium.fail(errno.EIO, calls={Call.SYNC})
        tell_fill = commits.run(1)
        tell_append = commits.run(0)
        tell_append()
        await table.settle()
        tell_fill()
        (result,) = await fill_and_append.future
        assert isinstance(result, ReadOnly)


async def test_an_append_whose_sync_succeeds_after_a_failed_fill_is_not_acknowledged(medium: FaultyMedium) -> None:
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        request = table.request(Set(b"k", bytes(20_000)))
        await table.settle()
        commits.run()()
        await table.settle()
        commits.run()()
        await table.settle()
        request = table.request(Set(b"k", bytes(50_000)))
        await table.settle()
        assert commits.names == ["Append", "Fill"]
        tell_append = commits.run(0)
        medium.fail(errno.EIO, calls={Call.SYNC})
        commits.run(0)()
        await table.settle()
        assert table.actor.state is State.READ_ONLY
        tell_append()
        await table.settle()
        assert isinstance((await request.future)[0], ReadOnly)
        assert await table.ask(Get(b"k")) == [bytes(20_000)], "nor is it served"


# Crashes


@pytest.mark.parametrize("broken", ["get", "set", "delete", "take"])
async def test_a_crash_answers_everyone_and_ends_nothing_else(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        gate = medium.hold(Call.SYNC)
        waiting = table.request(Set(b"l", b"w"))
        await table.reached(gate)
        monkeypatch.setattr(table.store, broken, crash)
        current = table.request(Get(b"k"), Delete(b"k"), Set(b"m", b"x"))
        behind = table.request(Get(b"l"))
        gate.opened.set()
        for request in (waiting, current, behind):
            for result in await request.future:
                assert isinstance(result, TableUnavailable) or (request is not current and result in (None, b"w"))
        (later,) = await table.ask(Get(b"k"))
        assert isinstance(later, TableUnavailable)
        assert table.reporter.events.count(("critical", "the table's actor crashed")) == 1
    assert recovered(medium)[b"k"] == b"v"


async def test_a_crash_behind_a_commit_answers_those_who_waited(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium) as table:
        monkeypatch.setattr(table.store, "committed", lambda _: 1 / 0)
        (result,) = await table.ask(Set(b"k", b"v"))
        assert isinstance(result, TableUnavailable)
    assert recovered(medium) == {b"k": b"v"}


async def test_a_crash_at_the_very_end_does_not_hang_the_stop(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium) as table:
        monkeypatch.setattr(table.store, "take", lambda: 1 / 0)


async def test_a_crash_while_requests_are_answered_anew_answers_them_all(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        requests = [table.request(Set(b"k", b"v"), Get(b"l")), table.request(Set(b"m", b"v"))]
        await table.reached(gate)
        monkeypatch.setattr(table.store, "get", lambda _: 1 / 0)
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)  # a Fill may sync beside the append
        gate.opened.set()
        for request in requests:
            assert isinstance((await request.future)[0], TableUnavailable)


async def test_a_crash_answers_nobody_twice(medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cold delete that was executed anew, and refused then, no longer waits for its read."""
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"k", bytes(50_000)))
        gate = medium.hold(Call.SYNC)
        request = table.request(Delete(b"k"))
        await table.reached(gate)
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)  # a Fill may sync beside the append
        gate.opened.set()
        assert isinstance((await request.future)[0], ReadOnly)
        monkeypatch.setattr(table.store, "get", lambda _: 1 / 0)
        assert isinstance((await table.ask(Get(b"k")))[0], TableUnavailable)
        assert isinstance((await table.ask(Get(b"k")))[0], TableUnavailable)
        reads.run()()
        await table.settle()


async def test_a_crash_answers_a_request_whose_cold_read_is_in_flight(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"k", bytes(50_000)))
        cold = table.request(Get(b"k"))
        await table.settle()
        monkeypatch.setattr(table.store, "get", lambda _: 1 / 0)
        await table.ask(Get(b"k"))
        assert isinstance((await cold.future)[0], TableUnavailable)
        reads.run()()
        await table.settle()


async def test_a_fault_of_a_worker_is_contained_too(medium: FaultyMedium) -> None:
    medium.reads_cached = False
    reads = Stepped()
    async with serving(medium, reads=reads) as table:
        await table.ask(Set(b"k", b"v"))
        cold = table.request(Get(b"k"))
        await table.settle()
        future, _ = reads.jobs.pop()
        future.set_exception(OSError(errno.EMFILE, "unexpected here"))
        assert isinstance((await cold.future)[0], TableUnavailable)
        for segment in table.store.log._segments.values():
            segment.unpin()  # what the job would have done


# Stopping, and the looser kinds of syncing


async def test_a_stop_commits_what_is_in_flight_and_staged(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        gate = medium.hold(Call.SYNC)
        first = table.request(Set(b"a", b"1"))
        await table.reached(gate)
        second = table.request(Set(b"b", b"2"))
        stopping = asyncio.ensure_future(table.stop())
        await table.settle()
        assert not stopping.done()
        gate.opened.set()
        await stopping
        assert [first.future.result(), second.future.result()] == [[None], [None]]
    again = medium.disk().survivors(NothingUnsynced(), medium.root.parent / "after")
    assert recovered(again) == {b"a": b"1", b"b": b"2"}


async def test_a_seal_that_fails_at_the_stop_loses_nothing(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        await table.idle()
        medium.fail(errno.EIO, calls={Call.TRUNCATE})
    assert ("warning", "the log could not be sealed") in table.reporter.events
    assert recovered(medium) == {b"k": b"v"}


async def test_an_interval_table_answers_before_the_sync_and_syncs_by_its_timer(medium: FaultyMedium) -> None:
    async with serving(medium, fsync=Fsync.INTERVAL, interval_ms=1) as table:
        gate = medium.hold(Call.SYNC)
        # The first Fill syncs, too; the timer's is what comes without one.
        assert await table.ask(Set(b"k", b"v")) == [None]
        await table.reached(gate)
        gate.opened.set()
        while table.store.log.sync() is not None:
            await asyncio.sleep(0)
    assert recovered(medium) == {b"k": b"v"}


async def test_a_failed_interval_sync_turns_the_table_read_only(medium: FaultyMedium) -> None:
    async with serving(medium, fsync=Fsync.INTERVAL, interval_ms=1) as table:
        medium.fail(errno.EIO, calls={Call.SYNC}, forever=True)
        await table.ask(Set(b"k", b"v"))
        while table.actor.state is not State.READ_ONLY:
            await asyncio.sleep(0)
        assert isinstance((await table.ask(Set(b"k", b"w")))[0], ReadOnly)
        await table.idle()  # a Fill on a descriptor of its own may fail behind the sync
        syncs = len(medium.operations)
        table.actor._committer.sync()
        await table.settle()
        assert len(medium.operations) == syncs, "never tried again on the same descriptor"


async def test_a_table_that_never_syncs_answers_at_once(medium: FaultyMedium) -> None:
    async with serving(medium, fsync=Fsync.NEVER) as table:
        syncs = medium.counts[Call.SYNC]
        await table.ask(*[Set(b"%d" % number, b"v") for number in range(10)])
        assert medium.counts[Call.SYNC] == syncs
        assert table.actor._committer._sync_timer is None
    assert len(recovered(medium)) == 10


class NothingUnsynced(random.Random):
    """Lets nothing survive that was not synced."""

    def choice(self, seq: object) -> object:
        return 0.0


async def test_who_waits_for_room_in_a_group_keeps_its_place_before_those_that_come_later(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_GROUP_WRITES", 10)
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        busy = table.new_origin()
        sets = [Set(b"%d" % number, b"v") for number in range(10)]
        for _ in range(4):
            table.request(*sets, origin=busy)
        patient = table.request(Set(b"patient", b"v"), origin=table.new_origin())
        for _ in range(6):
            table.request(*sets, origin=busy)
            await table.settle()
            if commits.names:
                commits.run()()
            await table.settle()
        assert patient.future.done()
        stopping = asyncio.create_task(table.stop())
        while not stopping.done():
            await table.settle()
            while commits.names:
                commits.run()()
