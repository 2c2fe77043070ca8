"""When a table is compacted, and what the actor's requests notice of it."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from kvsd.errors import ReadOnly, UnsupportedFormat
from kvsd.table.committer import State
from kvsd.table.compaction_input import Input
from kvsd.table.compactor import CompactionOptions
from kvsd.table.request import Compact, CompactionProgress, Delete, Get, Set
from kvsd.table.work import RESERVE_NAME
from kvsd.types import Fsync
from tests.table.driver import segments
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Inline, Serving, Stepped, serving


async def garbage(served: Serving, rounds: int = 8) -> dict[bytes, bytes]:
    """Some segments full of replaced values and deleted keys; what is alive at the end."""
    alive: dict[bytes, bytes] = {}
    for number in range(rounds * 6):
        key, value = b"k%d" % (number % 5), b"%d" % number * 30
        await served.ask(Set(key, value), Set(b"gone%d" % number, b"v"), Delete(b"gone%d" % number))
        alive[key] = value
    return alive


async def seal(served: Serving) -> None:
    """So that a compaction has not to begin with it."""
    assert served.store.log.seal()
    await served.ask(Get(b"k"))
    await served.idle()


async def check(served: Serving, alive: dict[bytes, bytes]) -> None:
    assert await served.ask(*map(Get, alive)) == list(alive.values())


async def compact(served: Serving, action: Any) -> CompactionProgress:
    (result,) = await served.ask(Compact(action))
    assert isinstance(result, CompactionProgress)
    return result


async def test_a_segment_that_seals_starts_a_compaction_where_there_is_garbage(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, compaction=CompactionOptions()) as served:
        alive = await garbage(served)
        await served.idle()
        assert ("info", "compacted") in served.reporter.events
        assert len(segments(tmp_path / "t")) < 5
        await check(served, alive)
    async with serving(medium, segment_bytes=2_000) as served:
        await check(served, alive)


async def test_on_demand_everything_is_compacted_and_progress_told(tmp_path: Path) -> None:
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000) as served:
        alive = await garbage(served)
        before = len(segments(tmp_path / "t"))
        progress = await compact(served, "start")
        assert (progress.state, progress.segments_done) == ("running", 0)
        await served.idle()
        progress = await compact(served, "status")
        assert progress.state == "idle"
        # `before` counts the one that is appended to: it is sealed first.
        assert progress.segments_done == progress.segments_total == before
        assert progress.bytes_done == progress.bytes_total > 0
        assert 0 < progress.reclaimed_bytes < progress.bytes_total
        assert len(segments(tmp_path / "t")) <= before / 2
        assert len(served.store.index) == len(alive)  # the tombstones of what was deleted went, too
        await check(served, alive)


async def test_a_paused_compaction_takes_no_step_and_goes_on_later(tmp_path: Path) -> None:
    worker = Stepped()
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000, compactions=worker) as served:
        alive = await garbage(served)
        await seal(served)
        await compact(served, "start")
        assert (await compact(served, "pause")).state == "paused"
        worker.run()()
        await served.settle()
        assert not worker.jobs
        await check(served, alive)
        assert (await compact(served, "resume")).state == "running"
        while worker.jobs:
            worker.run()()
            await served.settle()
        assert (await compact(served, "status")).state == "idle"
        await check(served, alive)


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_a_stop_at_any_step_leaves_nothing_behind_after_the_next_start(tmp_path: Path, steps: int) -> None:
    worker = Stepped()
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, compactions=worker) as served:
        alive = await garbage(served)
        await compact(served, "start")
        for _ in range(steps):
            if worker.jobs:
                worker.run()()
                await served.settle()
        served.actor.mailbox.put_nowait(None)
        await served.settle()
        for _ in range(3):
            if worker.jobs:
                worker.run()()
                await served.settle()
        assert not worker.jobs
    assert not list((tmp_path / "t").glob("*.tmp"))
    async with serving(medium, segment_bytes=2_000) as served:
        await check(served, alive)
        ids = [path.name[:10] for path in segments(tmp_path / "t")]
        assert len(ids) == len(set(ids))


async def test_a_throttled_compaction_waits_between_its_steps_and_a_stop_does_not_wait_for_it(tmp_path: Path) -> None:
    options = CompactionOptions(auto=False, bytes_per_second=1)
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000, compaction=options) as served:
        alive = await garbage(served)
        await compact(served, "start")
        await served.idle()
        progress = await compact(served, "status")
        assert progress.state == "running"
        assert 0 < progress.bytes_done < progress.bytes_total
        await check(served, alive)


async def test_too_little_room_is_told_and_the_table_serves_on(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000) as served:
        alive = await garbage(served)
        medium.room_bytes = 500
        await compact(served, "start")
        await served.idle()
        assert ("warning", "compaction failed") in served.reporter.events
        assert (await compact(served, "status")).state == "idle"
        await check(served, alive)
        await served.ask(Set(b"more", b"v"))
        medium.room_bytes = None
        await compact(served, "start")
        await served.idle()
        assert ("info", "compacted") in served.reporter.events


@pytest.mark.parametrize("call", [Call.WRITE, Call.SYNC, Call.RENAME, Call.SYNC_DIRECTORY, Call.UNLINK])
async def test_a_failing_disk_ends_the_compaction_and_not_the_table(tmp_path: Path, call: Call) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000) as served:
        alive = await garbage(served)
        await seal(served)
        medium.fail(errno.EIO, calls={call})
        await compact(served, "start")
        await served.idle()
        assert medium.failures == 1
        assert ("warning", "compaction failed") in served.reporter.events
        failed = await compact(served, "status")
        assert failed.state == ("stopped" if call in (Call.SYNC_DIRECTORY, Call.UNLINK) else "idle")
        assert "Input/output error" in failed.error
        if failed.state == "stopped":
            assert await compact(served, "start") == failed  # nothing is begun, and why is told again
        assert await served.ask(Set(b"more", b"v")) == [None]
        await check(served, alive)
    async with serving(medium, segment_bytes=2_000) as served:
        await check(served, alive | {b"more": b"v"})


async def test_a_damaged_segment_is_told_once_and_the_others_are_compacted(tmp_path: Path) -> None:
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000) as served:
        await garbage(served, 16)
        path = segments(tmp_path / "t")[0]
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.write_bytes(data)
        await compact(served, "start")
        await served.idle()
        assert served.reporter.events.count(("critical", "damaged entry")) == 1
        assert ("info", "compacted") in served.reporter.events
        assert sum(served.store.index.dead_bytes.values()) < 2_000  # its neighbours are compacted without it
        assert str(path) in (await compact(served, "status")).error
        await compact(served, "start")
        await served.idle()
        assert served.reporter.events.count(("critical", "damaged entry")) == 1


async def test_entries_of_a_kind_that_is_not_known_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000) as served:
        alive = await garbage(served)
        with monkeypatch.context() as later:

            def read(_: Input) -> None:
                raise UnsupportedFormat("a kind of a later version")

            later.setattr(Input, "read", read)
            await compact(served, "start")
            await served.idle()
        progress = await compact(served, "status")
        assert (progress.state, progress.error) == ("idle", "a kind of a later version")
        await check(served, alive)


async def test_a_log_whose_sync_fails_is_read_only_and_keeps_its_old_values(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, fsync=Fsync.NEVER) as served:
        await garbage(served)
        await served.ask(Set(b"k", b"unsynced"))
        before = segments(tmp_path / "t")
        active = served.store.log._active.fd
        sync = FaultyMedium.sync

        def failing(fd: int) -> None:
            if fd == active:
                raise OSError(errno.EIO, "Input/output error")
            sync(medium, fd)

        medium.sync = failing  # type: ignore[method-assign]
        await compact(served, "start")
        await served.idle()
        (refused,) = await served.ask(Set(b"k", b"v"))
        assert isinstance(refused, ReadOnly)
        assert segments(tmp_path / "t") == before
        (refused,) = await served.ask(Compact("start"))
        assert isinstance(refused, ReadOnly)


async def test_a_sync_whose_failure_another_job_was_told_of_does_not_count(tmp_path: Path) -> None:
    """For each descriptor a failure is told once: the compaction's own sync succeeds then, and has synced nothing."""
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, fsync=Fsync.NEVER) as served:
        await garbage(served)
    commits = Stepped()
    pools = {"commits": commits, "compactions": Inline()}
    async with serving(medium, segment_bytes=2_000, fsync=Fsync.INTERVAL, **pools) as served:
        request = served.request(Set(b"k0", b"unsynced"))
        await served.settle()
        commits.run(commits.names.index("Append"))()
        await request.future
        served.actor._committer.sync()
        await served.settle()
        medium.fail(errno.EIO, calls={Call.SYNC})
        tell = commits.run(commits.names.index("Sync"))
        before = segments(tmp_path / "t")
        await compact(served, "start")
        for _ in range(50):
            await served.settle()
        assert segments(tmp_path / "t") == before
        tell()
        for _ in range(5):
            await served.settle()
        while commits.jobs:
            commits.run()()
        await served.settle()
        assert served.actor.state is State.READ_ONLY
        assert segments(tmp_path / "t") == before
        assert (await compact(served, "status")).state == "idle"


async def test_on_a_full_disk_deletes_make_room_by_themselves(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, compaction=CompactionOptions()) as served:
        keys = [b"key%d" % number for number in range(20)]
        await served.ask(*(Set(key, bytes(900)) for key in keys))
        await served.idle()
        medium.room_bytes = 100
        (refused,) = await served.ask(Set(b"more", bytes(100_000)))
        assert isinstance(refused, ReadOnly)
        await served.idle()
        assert served.actor.state is State.FULL
        medium.room_bytes = 10_000
        await served.ask(*map(Delete, keys))
        await served.idle()
        assert ("info", "compacted") in served.reporter.events
        assert medium.room_bytes > 20_000


async def test_requests_are_served_between_the_steps(tmp_path: Path) -> None:
    worker = Stepped()
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000, compactions=worker) as served:
        alive = await garbage(served)
        await seal(served)
        await compact(served, "start")
        number = 0
        while worker.jobs:
            outcome = worker.run()
            key = b"k%d" % (number % 5)
            alive[key] = b"new%d" % number
            await asyncio.wait_for(served.ask(Set(key, alive[key])), 5)
            outcome()
            await served.settle()
            number += 1
        assert number > 10
        await check(served, alive)


async def test_on_demand_the_segment_that_is_appended_to_is_compacted_too(tmp_path: Path) -> None:
    async with serving(FaultyMedium(tmp_path)) as served:
        for _ in range(50):
            await served.ask(Set(b"k", bytes(1_000)))
        assert len(segments(tmp_path / "t")) == 1
        assert (await compact(served, "start")).state == "running"
        await served.idle()
        progress = await compact(served, "status")
        assert (progress.state, progress.segments_done, progress.error) == ("idle", 1, "")
        assert progress.reclaimed_bytes > 49_000
        await check(served, {b"k": bytes(1_000)})
        # Nothing is left to gain, so nothing is sealed either.
        before = segments(tmp_path / "t")
        assert (await compact(served, "start")).state == "idle"
        await served.idle()
        assert segments(tmp_path / "t") == before


async def test_what_is_asked_for_during_another_compaction_has_the_log_sealed_too(tmp_path: Path) -> None:
    worker = Stepped()
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000, compactions=worker) as served:
        alive = await garbage(served)
        await seal(served)
        await compact(served, "start")
        assert worker.jobs
        await served.ask(Set(b"k", b"1"), Set(b"k", b"2"))
        sealed = len(segments(tmp_path / "t"))
        assert (await compact(served, "start")).state == "running"
        while worker.jobs:
            worker.run()()
            await served.settle()
        assert len(segments(tmp_path / "t")) < sealed
        assert sum(served.store.index.dead_bytes.values()) == 0
        await check(served, {**alive, b"k": b"2"})


async def test_a_log_that_cannot_be_sealed_keeps_nobody_waiting_for_a_compaction(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium) as served:
        await served.ask(Set(b"k", b"1"), Set(b"k", b"2"))
        medium.fail(errno.EIO, calls={Call.SYNC})
        await compact(served, "start")
        await served.idle()
        assert served.actor.state is State.READ_ONLY
        progress = await compact(served, "status")
        assert (progress.state, progress.error) == ("idle", "the table's log has failed")


async def test_a_pause_holds_also_what_waits_for_the_log_to_be_sealed(tmp_path: Path) -> None:
    async with serving(FaultyMedium(tmp_path)) as served:
        await served.ask(Set(b"k", b"1"), Set(b"k", b"2"))
        served.request(Compact("start"))
        served.request(Compact("pause"))
        await served.idle()
        assert (await compact(served, "status")).state == "paused"
        assert (await compact(served, "status")).segments_total == 0
        await compact(served, "resume")
        await served.idle()
        assert (await compact(served, "status")).segments_done == 1


async def test_tombstones_that_outnumber_the_keys_go_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a queue: nothing of what was deleted may stay in memory for good."""
    monkeypatch.setattr("kvsd.table.compactor._FEW_TOMBSTONES", 20)
    async with serving(FaultyMedium(tmp_path), segment_bytes=4_000, compaction=CompactionOptions()) as served:
        for number in range(600):
            await served.ask(Set(b"job%d" % number, b"v"))
            if number >= 15:
                await served.ask(Delete(b"job%d" % (number - 15)))
        await served.idle()
        assert len(served.store) == 15
        assert len(served.store.index) < 150
        assert ("warning", "compaction failed") not in served.reporter.events


async def test_tombstones_that_cannot_go_are_not_rewritten_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvsd.table.compactor._FEW_TOMBSTONES", 10)
    monkeypatch.setattr("kvsd.table.compaction.Compaction._nothing_older", lambda _: False)
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000) as served:
        for number in range(40):
            await served.ask(Set(b"k%d" % number, b"v"))
        await seal(served)
        for number in range(40):
            await served.ask(Delete(b"k%d" % number))
        compactor = CompactionOptions()
    async with serving(served.medium, segment_bytes=2_000, compaction=compactor) as served:
        await served.idle()
        runs = served.reporter.events.count(("info", "compacted"))
        for number in range(60):
            await served.ask(Set(b"other%d" % number, b"v" * 100))
        await served.idle()
        assert len(served.store.index) == len(served.store) + 40
        assert served.reporter.events.count(("info", "compacted")) <= runs + 2


async def test_two_who_ask_at_once_both_get_the_log_sealed(tmp_path: Path) -> None:
    async with serving(FaultyMedium(tmp_path)) as served:
        await served.ask(*(Set(b"k", bytes(100)) for _ in range(50)))
        first, second = served.request(Compact("start")), served.request(Compact("start"))
        for (progress,) in (await first.future, await second.future):
            assert isinstance(progress, CompactionProgress)
            assert progress.state == "running"
        await served.idle()
        assert sum(served.store.index.dead_bytes.values()) == 0


@pytest.mark.parametrize("is_full_before", [True, False], ids=["full before", "full then"])
async def test_on_a_full_disk_a_compaction_does_not_wait_for_somebodys_write(
    tmp_path: Path, is_full_before: bool
) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium) as served:
        await served.ask(*(Set(b"k", bytes(100)) for _ in range(50)))
        medium.fail(errno.ENOSPC, calls={Call.WRITE, Call.CREATE}, forever=True)
        if is_full_before:
            await served.ask(Set(b"a", b"1"))
            await served.idle()
            assert served.actor.state is State.FULL
            medium.heal()
        await compact(served, "start")
        await served.idle()
        assert served.actor.state is State.FULL
        medium.heal()
        assert (await compact(served, "status")).state == "idle"


async def test_figures_add_up_over_the_plans_that_follow_each_other(tmp_path: Path) -> None:
    """Who waits would else take the next plan for another table."""
    worker = Stepped()
    async with serving(FaultyMedium(tmp_path), segment_bytes=2_000, compactions=worker) as served:
        await garbage(served)
        await seal(served)
        total = (await compact(served, "start")).segments_total
        await served.ask(Set(b"k", b"1"), Set(b"k", b"2"))
        assert (await compact(served, "start")).segments_total == total
        seen = []
        while worker.jobs:
            worker.run()()
            await served.settle()
            seen.append((await compact(served, "status")).segments_total)
        assert seen == sorted(seen)
        progress = await compact(served, "status")
        assert progress.segments_done == progress.segments_total > total
        assert (await compact(served, "start")).segments_total == 0


async def test_a_passing_failure_does_not_put_tombstones_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvsd.table.compactor._FEW_TOMBSTONES", 20)
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=4_000) as served:
        for number in range(100):
            await served.ask(Set(b"k%d" % number, b"v"))
        for number in range(100):
            await served.ask(Delete(b"k%d" % number))
        medium.room_bytes = 0
        served.actor.set_compaction(CompactionOptions(garbage_ratio=1.0))
        await served.idle()
        assert ("warning", "compaction failed") in served.reporter.events
        assert len(served.store.index) == 100
        medium.room_bytes = None
        served.actor._compactor._retry_at = 0.0  # a minute passes
        served.actor.set_compaction(CompactionOptions(garbage_ratio=1.0))
        await served.idle()
        assert len(served.store.index) < 50


# What nobody asks for


def folder_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in (root / "t").iterdir() if path.name != RESERVE_NAME)


@pytest.mark.parametrize("segment_bytes", [30_000, 100_000, 128 << 20])
@pytest.mark.parametrize("steps_between", [0, 1, 7, 10_000])
async def test_an_emptied_table_ends_at_next_to_nothing_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_bytes: int, steps_between: int
) -> None:
    """Also of what was deleted while a plan was carried out, and of what stands in the segment that is appended to."""
    monkeypatch.setattr("kvsd.table.compactor._IDLE_SECONDS", 0)
    monkeypatch.setattr("kvsd.table.compactor._IDLE_BYTES", 1_000)
    monkeypatch.setattr("kvsd.table.compactor._FEW_TOMBSTONES", 300)
    worker = Stepped()
    options: dict[str, Any] = {"segment_bytes": segment_bytes, "compaction": CompactionOptions()}
    async with serving(FaultyMedium(tmp_path), compactions=worker, **options) as served:
        keys = [b"key%d" % number for number in range(1_000)]
        for write in (lambda key: Set(key, bytes(100)), Delete):
            for start in range(0, len(keys), 50):
                await served.ask(*map(write, keys[start : start + 50]))
                for _ in range(steps_between):
                    if worker.jobs:
                        worker.run()()
                        await served.settle()

        while len(served.store.index) > 12 or folder_bytes(tmp_path) >= 70_000 or worker.jobs:
            if worker.jobs:
                worker.run()()
            await served.settle()
        plans = served.reporter.events.count(("info", "compacted"))
        for _ in range(20):
            await served.settle()
            assert not worker.jobs
        assert served.reporter.events.count(("info", "compacted")) == plans, "it goes on for ever"
        await served.ask(Set(b"k", b"v"))
        await check(served, {b"k": b"v"})


async def test_an_idle_table_with_little_to_gain_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvsd.table.compactor._IDLE_SECONDS", 0)
    options: dict[str, Any] = {"segment_bytes": 30_000, "compaction": CompactionOptions()}
    async with serving(FaultyMedium(tmp_path), **options) as served:
        for number in range(200):
            await served.ask(Set(b"k%d" % number, bytes(1_000)))
        await served.ask(*[Delete(b"k%d" % number) for number in range(60)])
        for _ in range(20):
            await served.idle()
        assert ("info", "compacted") not in served.reporter.events


@pytest.mark.parametrize("steps", range(0, 40, 3))
async def test_an_input_that_somebody_removes_does_not_stop_the_compaction_of_others(
    tmp_path: Path, steps: int
) -> None:
    worker = Stepped()
    medium = FaultyMedium(tmp_path)
    async with serving(medium, segment_bytes=2_000, compactions=worker) as served:
        alive = await garbage(served)
        await seal(served)
        await compact(served, "start")
        for _ in range(steps):
            if worker.jobs:
                worker.run()()
                await served.settle()
        removed = segments(tmp_path / "t")[1]
        medium.unlink(removed)
        while worker.jobs:
            worker.run()()
            await served.settle()
        progress = await compact(served, "status")
        assert (progress.state, progress.error) == ("idle", "")
        await check(served, alive)
        assert not [path for path in (tmp_path / "t").glob("*.hint") if path.stem == removed.stem]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT])
async def test_a_segment_that_cannot_be_read_leaves_the_others_to_be_compacted_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    options: dict[str, Any] = {"segment_bytes": 2_000, "compactions": Inline()}
    async with serving(FaultyMedium(tmp_path), **options) as served:
        alive = await garbage(served)
        await seal(served)
        bad = served.store.log.sealed()[2]
        read = Input._read

        def fails(self: Input) -> None:
            if self.segment is bad:
                raise OSError(number, "cannot be read")
            read(self)

        with monkeypatch.context() as patch:
            patch.setattr(Input, "_read", fails)
            await compact(served, "start")
            await served.idle()
            progress = await compact(served, "status")
            assert progress.state == "idle"
            assert str(bad.path) in progress.error
            assert served.store.log.sealed().index(bad) == 1, "what is before it was not made one"
            await check(served, alive)
        now = served.loop.time()
        monkeypatch.setattr(served.actor, "time", lambda: now + 61)  # a minute passes
        await compact(served, "start")
        await served.idle()
        assert bad not in served.store.log.sealed()
        assert (await compact(served, "status")).error == ""
        await check(served, alive)
