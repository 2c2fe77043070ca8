"""A disk that fills up: what was acknowledged is kept and read, deletes go on, and writes resume when there is room.

On a faulty medium at every operation, and on real small file systems where the tests may mount some.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kvsd.client.aio import Client
from kvsd.errors import ReadOnly, TableUnavailable
from kvsd.server import offline
from kvsd.server.directory import DataDirectory, folder_of
from kvsd.server.names import DEFAULT_TABLE
from kvsd.table.log import Log, LogOptions
from kvsd.table.request import Delete, Get, Result, Set
from kvsd.table.store import Store
from kvsd.table.work import RESERVE_NAME
from tests.crash.disk import DISK_BYTES, CannotMount, Disk, mounted
from tests.crash.faulty_server import serve_on
from tests.crash.ledger import Ledger
from tests.crash.process import ServerProcess
from tests.crash.recording import Recording, cut_everywhere
from tests.table.driver import Table, segments
from tests.table.history import recovered
from tests.table.medium import CHANGES, Call, FaultyMedium

KEYS = [b"key-%d" % number for number in range(6)]
VALUE_BYTES = 20_000


def some_sets(rng: random.Random) -> list[Set]:
    """Often more than a segment holds."""
    return [Set(rng.choice(KEYS), rng.randbytes(rng.choice((30, 700)))) for _ in range(rng.choice((1, 2, 9)))]


async def fill_up(recording: Recording, rng: random.Random) -> None:
    """Sets until they are refused; then reads and deletes, and sets again when there is room."""
    while True:
        results = await recording.ask(*some_sets(rng))
        if any(isinstance(result, ReadOnly) for result in results):
            break
    assert all(isinstance(result, ReadOnly) for result in results)
    assert "while the disk is full (No space left on device)" in str(results[0])
    await recording.ask(*map(Get, KEYS))
    for key in KEYS[:3]:
        assert not isinstance((await recording.ask(Delete(key)))[0], ReadOnly)
        await recording.ask(Get(key))
    await make_room(recording)
    await recording.ask(*some_sets(rng))


async def make_room(recording: Recording) -> None:
    recording.medium.room_bytes = None
    async with asyncio.timeout(20):
        while isinstance((await recording.ask(Set(KEYS[0], b"again")))[0], ReadOnly):
            await asyncio.sleep(0)


async def work_until_death(recording: Recording, rng: random.Random) -> None:
    async with recording.run(dies_at=rng.randint(5, 40)):
        results: list[Result] = []
        while not any(isinstance(result, TableUnavailable) for result in results):
            results = await recording.ask(*some_sets(rng))


async def start_without_room(recording: Recording, rng: random.Random) -> None:
    recording.medium.room_bytes = rng.choice((0, 0, 100, 1_000, 5_000))
    async with recording.run() as reports:
        await recording.ask(*map(Get, KEYS))
        assert isinstance((await recording.ask(Set(KEYS[0], bytes(50_000))))[0], ReadOnly)
        assert "disk full" in reports.events
        await recording.ask(*map(Get, KEYS))
        await make_room(recording)
        await recording.ask(*some_sets(rng))


async def fill_up_and_cut_everywhere(folder: Path, pool: ThreadPoolExecutor, *, seed: int, cuts: int) -> None:
    rng = random.Random(seed)
    recording = Recording(FaultyMedium(folder / "a"), pool, segment_bytes=2_048)
    for _ in range(2):
        async with recording.run() as reports:
            recording.medium.room_bytes = rng.randrange(2_000, 8_000)
            await fill_up(recording, rng)
        assert "disk full" in reports.events
        assert "the disk has room again; writes resume" in reports.events
        await work_until_death(recording, rng)
        await start_without_room(recording, rng)
    cut_everywhere(recording, folder / "b", cuts=cuts, seed=seed)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The actor looks for room whenever a write is refused."""
    monkeypatch.setattr("kvsd.table.committer._ROOM_CHECK_SECONDS", 0.0)


@pytest.mark.usefixtures("miniature", "impatience")
async def test_a_crash_around_a_full_disk_loses_nothing_acknowledged(scratch: Path, pool: ThreadPoolExecutor) -> None:
    await fill_up_and_cut_everywhere(scratch, pool, seed=1, cuts=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("miniature", "impatience")
@pytest.mark.parametrize("seed", [2, 3])
async def test_many_crashes_around_a_full_disk_lose_nothing_acknowledged(
    scratch: Path, pool: ThreadPoolExecutor, seed: int
) -> None:
    await fill_up_and_cut_everywhere(scratch, pool, seed=seed, cuts=4)


def without_room(medium: FaultyMedium, *, room_bytes: int) -> Table:
    """A start that not even the reserve can help."""
    medium.unlink(medium.root / "t" / RESERVE_NAME)
    medium.room_bytes = room_bytes
    return Table(medium, medium.root)


def test_whatever_little_room_a_start_finds_the_log_is_settled_when_there_is_enough(scratch: Path) -> None:
    outcomes = []
    for room_bytes in range(0, 1_000, 40):
        medium = FaultyMedium(scratch / str(room_bytes))
        table = Table(medium, medium.root)
        table.put(b"k", b"v")
        table.kill()
        again = without_room(medium, room_bytes=room_bytes)
        outcomes.append(again.log.is_settled)
        if not again.log.is_settled:
            job = again.log.resume()
            with pytest.raises(OSError, match="No space left"):
                job.run()
            assert again.items() == {b"k": b"v"}
            medium.room_bytes = None
            job.run()
            again.log.resumed(job)
        medium.room_bytes = None
        again.put(b"l", b"w")
        assert again.items() == {b"k": b"v", b"l": b"w"}
        again.stop()
        assert not medium.open_files
        assert recovered(medium) == {b"k": b"v", b"l": b"w"}
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("seed", range(20))
def test_what_a_start_without_room_has_shown_survives_a_power_cut(scratch: Path, seed: int) -> None:
    """Also what the failed sync of an earlier run has marked clean and never written."""
    medium = FaultyMedium(scratch / "a")
    table = Table(medium, medium.root)
    table.put(b"k", bytes(600))
    table.set(b"k", bytes(900))
    medium.fail(errno.EIO, calls={Call.SYNC})
    with pytest.raises(OSError, match="error"):
        table.commit()
    medium.kill()
    again = without_room(medium, room_bytes=0)
    assert not again.log.is_settled
    shown = again.items()
    assert shown == {b"k": bytes(900)}
    assert recovered(medium.crash(seed, scratch / "b")) == shown


async def test_an_offline_write_to_a_full_disk_is_refused_in_clear_words(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = FaultyMedium(scratch / "data")
    monkeypatch.setattr("kvsd.server.offline.DataDirectory", partial(DataDirectory, medium=medium))
    assert offline.write(medium.root, [(b"k", b"v")]) == 1
    medium.room_bytes = 0
    for value in (bytes(40_000), b"small, but nothing is left"):
        with pytest.raises(OSError, match="No space left on device"):
            offline.write(medium.root, [(b"k", value)])
        assert not medium.open_files
        medium.room_bytes = 0
    medium.heal()
    assert offline.write(medium.root, []) == 0


def left_by_a_clean_stop(store: Store) -> None:
    store.log.finish().run()
    store.log.close()


def left_by_a_kill(store: Store) -> None:
    store.log.close()


def left_by_a_kill_in_an_append(store: Store) -> None:
    store.log.close()
    [segment] = segments(store.log.directory)
    size_bytes = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(size_bytes)
        file.write(b"torn")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["no room", "quota"])
@pytest.mark.parametrize("leave", [left_by_a_clean_stop, left_by_a_kill, left_by_a_kill_in_an_append])
@pytest.mark.parametrize("has_lock", [True, False], ids=["lock", "no lock file"])
async def test_reads_go_on_after_a_start_where_nothing_at_all_can_be_written(
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    leave: Callable[[Store], None],
    has_lock: bool,
) -> None:
    """Copy-on-write file systems need room to overwrite, to cut off and even to remove."""
    medium = FaultyMedium(scratch / "data")
    store = Store(Log(folder_of(medium.root, DEFAULT_TABLE), LogOptions(), medium), cache_bytes=0)
    store.recover()
    store.set(b"k", b"v")
    commit = store.take()
    assert commit is not None
    commit.append.run()
    store.committed(commit)
    leave(store)
    if has_lock:
        (medium.root / "lock").write_bytes(b"12345678901234\n")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    real_open = os.open

    def refuse_lock(path: str, flags: int, *rest: int, **at: int) -> int:
        if path == "lock" and not has_lock:
            raise OSError(number, os.strerror(number))
        return real_open(path, flags, *rest, **at)

    monkeypatch.setattr("kvsd.table.committer._ROOM_CHECK_SECONDS", 0.0)
    medium.fail(number, calls=CHANGES, forever=True)
    with monkeypatch.context() as patch:
        patch.setattr("kvsd.server.directory.os.pwrite", refuse)
        patch.setattr("kvsd.server.directory.os.open", refuse_lock)
        async with serve_on(medium, monkeypatch) as (server, client):
            assert await client.get("k") == b"v"
            with pytest.raises(ReadOnly):
                await client.set("l", "w")
            await server.tables.watch.look()
            assert await client.get("k") == b"v"
            medium.heal()
            async with asyncio.timeout(20):
                while True:
                    with contextlib.suppress(ReadOnly):
                        await client.set("l", "w")
                        break
            medium.fail(number, calls=CHANGES, forever=True)
    medium.heal()
    async with serve_on(medium, monkeypatch) as (_, client):
        assert [await client.get(key) for key in ("k", "l")] == [b"v", b"w"]


@pytest.fixture(params=["tmpfs", pytest.param("ext4", marks=pytest.mark.slow)])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    try:
        with mounted(tmp_path, request.param) as disk:
            yield disk
    except CannotMount as error:
        pytest.skip(f"the faulty medium has to do, {request.param} cannot be mounted: {error}")


async def write_until_refused(client: Client, ledger: Ledger) -> ReadOnly:
    for number in range(DISK_BYTES // VALUE_BYTES):
        try:
            await ledger.set(client, b"key-%d" % number, os.urandom(VALUE_BYTES))
        except ReadOnly as error:
            return error
    pytest.fail("more was acknowledged than the disk holds")


async def write_until_accepted(client: Client, ledger: Ledger) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(ReadOnly):
                return await ledger.set(client, b"again", b"there is room")
            await asyncio.sleep(0.02)  # the server looks at its disk once a second


async def test_a_server_survives_a_full_file_system(tmp_path: Path, disk: Disk) -> None:
    ledger = Ledger(refusals_are_final=True)
    with ServerProcess(tmp_path, root_dir=disk.path / "data") as server:
        server.start()
        disk.fill(leave_bytes=2 << 20)
        async with asyncio.timeout(60), server.connect() as client:
            error = await write_until_refused(client, ledger)
            assert "while the disk is full (No space left on device)" in str(error)
            assert "writes resume by themselves" in str(error)
            assert await ledger.verify(client, restarted=False) > 50
            for number in range(10):
                await ledger.delete(client, b"key-%d" % number)
            await ledger.verify(client, restarted=False)
            disk.empty()
            await write_until_accepted(client, ledger)
            disk.fill(leave_bytes=1 << 20)
            await write_until_refused(client, ledger)
        server.kill()
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            assert (server.ready.unavailable, server.ready.entries) == (0, await ledger.verify(client))
            disk.empty()
            await write_until_accepted(client, ledger)
        assert server.stop() == 0
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            assert (server.ready.unavailable, server.ready.entries) == (0, await ledger.verify(client))


async def start_on_full_disk(server: ServerProcess, disk: Disk) -> None:
    """Kill the server, and start it on a full disk; again where the disk has found room after all, as ext4 does."""
    for _ in range(6):
        server.kill()
        disk.fill()
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            if (await client.tables.info("default")).state == "full":
                return
    raise AssertionError("the disk has room, however often it is filled")


async def test_a_start_without_any_room_serves_reads_and_resumes_when_there_is_some(tmp_path: Path, disk: Disk) -> None:
    ledger = Ledger(refusals_are_final=True)
    with ServerProcess(tmp_path, root_dir=disk.path / "data") as server:
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            for number in range(10):
                await ledger.set(client, b"key-%d" % number, os.urandom(VALUE_BYTES))
        for _ in range(2):
            await start_on_full_disk(server, disk)
            async with asyncio.timeout(60), server.connect() as client:
                assert (server.ready.unavailable, server.ready.entries) == (0, await ledger.verify(client))
                with pytest.raises(ReadOnly, match="while the disk is full"):
                    await ledger.set(client, b"late", b"")
                with pytest.raises(ReadOnly, match="while the disk is full"):
                    await ledger.delete(client, b"key-0")
                await ledger.verify(client, restarted=False)
        disk.empty()
        async with asyncio.timeout(60), server.connect() as client:
            await write_until_accepted(client, ledger)
            await ledger.delete(client, b"key-0")
        assert server.stop() == 0
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            assert (server.ready.unavailable, server.ready.entries) == (0, await ledger.verify(client))
