"""A full disk, and calls that fail one by one under a serving table: nothing acknowledged is lost, and it recovers."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsd.errors import KvsdError, ReadOnly
from kvsd.table import committer as committer_module
from kvsd.table import updates
from kvsd.table.committer import State
from kvsd.table.request import Batch, Delete, Get, Operation, Result, Set, Update
from kvsd.table.work import RESERVE_BYTES, RESERVE_NAME, ROOM_BYTES
from kvsd.types import Fsync
from tests.table.driver import Table
from tests.table.history import recovered
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Inline, Serving, Stepped, serving


@pytest.fixture
def medium(tmp_path: Path) -> FaultyMedium:
    return FaultyMedium(tmp_path)


@pytest.fixture(autouse=True)
def _look_for_room_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "_ROOM_CHECK_SECONDS", 0.0)


async def write_until_it_resumes(table: Serving) -> None:
    for _ in range(10):
        if await table.ask(Set(b"again", b"v")) == [None]:
            await table.idle()
            return
        await table.idle()
    pytest.fail("writes never resumed")


async def test_a_full_disk_takes_no_values_still_deletes_and_resumes_when_there_is_room(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"a", b"1"), Set(b"b", b"2"))
        await table.idle()
        medium.room_bytes = 100
        (refused,) = await table.ask(Set(b"c", bytes(200_000)))
        assert isinstance(refused, ReadOnly)
        assert "disk is full" in str(refused)
        assert ("critical", "disk full") in table.reporter.events
        await table.idle()
        assert table.actor._committer._resumed
        assert table.actor.state is State.FULL
        assert not (medium.root / "t" / RESERVE_NAME).exists()
        assert await table.ask(Get(b"a"), Delete(b"a"), Get(b"a"), Get(b"c")) == [b"1", b"1", None, None]
        (refused,) = await table.ask(Set(b"c", b"3"))
        assert isinstance(refused, ReadOnly), "values could eat the room that deletes need"
        medium.room_bytes = 4 * ROOM_BYTES
        await write_until_it_resumes(table)
        assert table.actor.state is State.WRITABLE
        assert ("info", "the disk has room again; writes resume") in table.reporter.events
        assert (medium.root / "t" / RESERVE_NAME).stat().st_size == RESERVE_BYTES
    medium.heal()
    assert recovered(medium) == {b"b": b"2", b"again": b"v"}


async def test_a_disk_that_stays_full_keeps_serving_reads(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"a", b"1"))
        await table.idle()
        medium.fail(errno.ENOSPC, calls={Call.WRITE, Call.CREATE}, forever=True)
        for _ in range(20):
            got, refused, not_deleted = await table.ask(Get(b"a"), Set(b"b", b"2"), Delete(b"a"))
            assert got == b"1"
            assert isinstance(refused, ReadOnly)
            assert isinstance(not_deleted, ReadOnly)
            await table.idle()
        medium.heal()
        await write_until_it_resumes(table)
        await table.ask(Delete(b"a"))
    assert recovered(medium) == {b"again": b"v"}


async def test_a_quota_is_a_full_disk(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        medium.fail(errno.EDQUOT, calls={Call.WRITE})
        await table.ask(Set(b"a", b"1"))
        assert table.actor.state is State.FULL
        await write_until_it_resumes(table)


async def test_a_resume_waits_for_the_fill_whose_zeros_could_overwrite_its_seal(medium: FaultyMedium) -> None:
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        first = table.request(Set(b"k", bytes(20_000)))
        await table.settle()
        while commits.jobs:
            commits.run()()
            await table.settle()
        await first.future
        second = table.request(Set(b"k", bytes(50_000)))
        await table.settle()
        assert commits.names == ["Append", "Fill"]
        medium.fail(errno.ENOSPC, calls={Call.WRITE})
        commits.run(0)()
        await table.settle()
        assert commits.names == ["Fill"]
        commits.run()()
        await table.settle()
        assert commits.names == ["Resume"]
        commits.run()()
        await table.settle()
        assert table.actor._committer._resumed
        assert isinstance((await second.future)[0], ReadOnly)
        deleted = table.request(Delete(b"k"))
        await table.settle()
        while commits.jobs:
            commits.run()()
            await table.settle()
        assert (await deleted.future)[0] == bytes(20_000)
        table.budget.release(deleted.held_bytes)
        stopping = asyncio.ensure_future(table.stop())
        await table.settle()
        commits.run()()
        await stopping
    assert recovered(medium) == {}


async def test_a_delete_that_met_the_full_disk_is_done_in_the_room_that_was_made(medium: FaultyMedium) -> None:
    async with serving(medium, commits=Inline()) as table:
        await table.ask(Set(b"k", b"v"))
        await table.settle()
        medium.room_bytes = 0
        refused, old = await table.ask(Set(b"a", bytes(200_000)), Delete(b"k"))
        assert isinstance(refused, ReadOnly)
        assert old == b"v"
        medium.heal()
    assert recovered(medium) == {}


async def test_no_fill_follows_the_seal_of_a_resume_that_failed(medium: FaultyMedium) -> None:
    """A table that could not resume yet must not touch the segment which it has sealed."""
    commits = Stepped()
    async with serving(medium, commits=commits) as table:
        request = table.request(Set(b"k", b"v"))
        await table.settle()
        assert commits.names == ["Append", "Fill"]
        medium.fail(errno.ENOSPC, calls={Call.WRITE, Call.CREATE}, forever=True)
        while commits.jobs:
            commits.run()()
            await table.settle()
        assert isinstance((await request.future)[0], ReadOnly)
        assert await table.ask(Get(b"k")) == [None]
        assert commits.names == []
        medium.heal()
    assert recovered(medium) == {}


async def test_a_loose_table_whose_lost_sync_met_a_full_disk_does_not_go_on(medium: FaultyMedium) -> None:
    """What was answered and not synced may be gone: a SEAL over it would turn that into corruption."""
    commits = Stepped()
    async with serving(medium, commits=commits, fsync=Fsync.INTERVAL) as table:
        for value in (b"v", b"w"):
            table.request(Set(b"k", value))
            await table.settle()
            medium.fail(errno.ENOSPC, calls={Call.WRITE}, at=1 if value == b"w" else 100)
            while "Resume" not in commits.names and commits.jobs:
                commits.run()()
                await table.settle()
        medium.fail(errno.ENOSPC, calls={Call.SYNC})
        commits.run()()
        await table.settle()
        assert table.actor.state is State.READ_ONLY


async def test_a_loose_roll_whose_sync_met_a_full_disk_turns_read_only(medium: FaultyMedium) -> None:
    async with serving(medium, fsync=Fsync.NEVER, segment_bytes=400) as table:
        await table.ask(Set(b"k", bytes(100)))
        medium.fail(errno.ENOSPC, calls={Call.SYNC})
        await table.ask(Set(b"k", bytes(100)))
        assert table.actor.state is State.READ_ONLY


@pytest.mark.parametrize("resume_waits_for", ["Fill", "Resume"])
async def test_room_found_as_an_append_fails_does_not_make_a_table_writable_that_has_yet_to_resume(
    medium: FaultyMedium, resume_waits_for: str
) -> None:
    """It would take writes that are never answered, or that the resume drops: an acknowledged delete was undone."""
    long = b"a" * 60_000  # its tombstone uses up the zeros, so that a Fill goes along
    commits = Stepped()
    async with serving(medium, commits=commits) as table:

        async def step_until(*names: str) -> None:
            await table.settle()
            while commits.names != list(names):
                commits.run(len(commits.jobs) - 1)()
                await table.settle()

        requests = [table.request(Set(long, b"1"), Set(b"b", b"2"))]
        await step_until()
        medium.fail(errno.ENOSPC, calls={Call.WRITE})
        requests.append(table.request(Set(b"c", b"3")))
        await step_until("Reserve")
        requests.append(table.request(Delete(long)))
        await table.settle()
        assert commits.names == ["Reserve", "Append", "Fill"]
        tell_room = commits.run(0)
        if resume_waits_for == "Resume":
            commits.run(1)()
        medium.fail(errno.ENOSPC, calls={Call.WRITE})
        commits.run(0)()
        await table.settle()
        assert commits.names == [resume_waits_for]
        tell_room()
        await table.settle()
        requests.append(table.request(Delete(b"b"), Set(b"c", b"4")))
        await step_until()
        for _ in range(2):  # the first may have to find the room
            requests.append(table.request(Set(b"d", b"5")))
            await step_until()
        assert [request.future.done() for request in requests] == [True] * len(requests)
        assert requests[-1].future.result() == [None]
        shown = {key for key in (long, b"b", b"c", b"d") if table.store.get(key) is not None}
        stopping = asyncio.ensure_future(table.stop())
        await step_until()
        await stopping
    assert recovered(medium).keys() == shown


async def test_a_start_without_room_whose_disk_then_fails_still_serves_reads(medium: FaultyMedium) -> None:
    table = Table(medium, medium.root)
    table.put(b"k", b"v")
    table.kill()
    medium.unlink(medium.root / "t" / RESERVE_NAME)
    medium.room_bytes = 0
    async with serving(medium, commits=Inline()) as served:
        medium.fail(errno.EIO, calls={Call.WRITE})
        await served.ask(Set(b"k", b"w"))
        await served.settle()
        assert served.actor.state is State.READ_ONLY
        found, refused = await served.ask(Get(b"k"), Set(b"k", b"w"))
        assert found == b"v"
        assert isinstance(refused, ReadOnly)
    medium.heal()
    assert recovered(medium) == {b"k": b"v"}


async def test_a_full_reserve_leaves_the_table_full(medium: FaultyMedium) -> None:
    async with serving(medium) as table:
        await table.ask(Set(b"k", b"v"))
        await table.idle()
        medium.room_bytes = 10
        await table.ask(Set(b"k", bytes(200_000)))
        await table.idle()
        assert table.actor._committer._resumed
        medium.room_bytes = ROOM_BYTES - 1
        for _ in range(10):
            assert isinstance((await table.ask(Set(b"k", b"w")))[0], ReadOnly)
            await table.idle()
        medium.room_bytes = ROOM_BYTES * 2
        await write_until_it_resumes(table)


# Every call fails once, or for good


class Client:
    """One client that remembers what it was told, and when."""

    def __init__(self, table: Serving, known: dict[bytes, set[bytes | None]]) -> None:
        self.table = table
        self.known = known
        """What each key may hold: what was acknowledged, and what was refused since."""
        self.in_flight: list[tuple[int, int, dict[bytes, set[bytes | None]]]] = []
        """For each request: the recorded operations before and after it, and what keys may have held between."""

    async def ask(self, *operations: Operation) -> None:
        before = len(self.table.medium.operations)
        between = {key: set(values) for key, values in self.known.items()}
        for operation in operations:
            if not isinstance(operation, Get):
                between.setdefault(operation.key, {None}).add(_written(operation))
        for operation, result in zip(operations, await self.table.ask(*operations), strict=True):
            self._learn(operation, result)
        await self.table.settle()
        self.in_flight.append((before, len(self.table.medium.operations), between))

    def _learn(self, operation: Operation, result: Result) -> None:
        allowed = self.known.setdefault(operation.key, {None})
        match operation:
            case Get():
                assert result in allowed
            case _:
                value = _written(operation)
                if isinstance(result, KvsdError):
                    assert isinstance(result, ReadOnly)
                    if "may or may not be found" in str(result):
                        allowed.add(value)
                else:
                    self.known[operation.key] = {value}


def _written(operation: Operation) -> bytes | None:
    return operation.value if isinstance(operation, Set) else None


def operations(seed: int) -> Iterator[tuple[Operation, ...]]:
    rng = random.Random(seed)
    for _ in range(14):
        yield tuple(
            Delete(b"%d" % rng.randrange(3))
            if rng.random() < 0.25
            else Set(b"%d" % rng.randrange(3), rng.randbytes(rng.randrange(300)))
            for _ in range(rng.randrange(1, 4))
        )


def agrees(found: dict[bytes, bytes], known: dict[bytes, set[bytes | None]]) -> bool:
    return set(found) <= set(known) and all(found.get(key) in values for key, values in known.items())


async def one_failure(root: Path, number: int, at: int, *, forever: bool, fsync: Fsync = Fsync.ALWAYS) -> bool:
    """A table under which the `at`-th call fails; whether the table has noticed."""
    medium = FaultyMedium(root / "a")
    async with serving(medium, commits=Inline(), segment_bytes=1_200, fsync=fsync) as table:
        client = Client(table, {})
        medium.fail(number, at=at, forever=forever)
        for asked in operations(at % 5):
            await client.ask(*asked)
            await client.ask(*[Get(b"%d" % key) for key in range(3)])
        state = table.actor.state
        met = ("critical", "disk full") in table.reporter.events or state is State.READ_ONLY
        if number == errno.ENOSPC and state is not State.READ_ONLY:
            # Nothing was lost: it must come back.
            medium.heal()
            await write_until_it_resumes(table)
            client.known[b"again"] = {b"v"}
            for asked in operations(at):
                await client.ask(*asked)
    medium.heal()
    found = recovered(medium, fsync=fsync)
    assert agrees(found, client.known)
    rng = random.Random(at)
    if fsync is Fsync.ALWAYS:
        after = medium.disk(seed=at).survivors(rng, root / "b")
        assert recovered(after) == found
        # And where the power went at any moment on the way.
        for before, end, between in client.in_flight:
            if rng.random() < 0.2:
                after = medium.disk(rng.randint(before, end), seed=at).survivors(rng, root / f"c{before}-{end}")
                assert agrees(recovered(after), between)
                shutil.rmtree(after.root)
    return met


STEPS = range(1, 66)
"""The calls of the scenario."""


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(
    "steps", [STEPS[::5], pytest.param(STEPS, marks=[pytest.mark.slow, pytest.mark.timeout(300)])], ids=["some", "all"]
)
async def test_a_call_that_fails_under_a_serving_table_loses_nothing(
    tmp_path: Path, number: int, forever: bool, steps: range
) -> None:
    met = [await one_failure(tmp_path / str(at), number, at, forever=forever) for at in steps]
    assert sum(met) > len(steps) // 2


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.NEVER])
async def test_a_call_that_fails_under_a_loose_table_loses_nothing_without_a_power_cut(
    tmp_path: Path, fsync: Fsync
) -> None:
    for at in range(1, 40, 3):
        await one_failure(tmp_path / str(at), errno.ENOSPC, at, forever=False, fsync=fsync)


def killed(medium: FaultyMedium, root: Path) -> dict[bytes, bytes]:
    """What a start finds after a kill at this moment."""
    shutil.copytree(medium.root, root)
    return recovered(FaultyMedium(root))


WRITES = {
    "set": [Set(b"k", b"new" * 40_000)],
    "delete": [Set(b"a", bytes(200_000)), Delete(b"k")],
    "batch": [Batch((Set(b"a", bytes(200_000)), Delete(b"k")))],
    "update": [Update(b"k", updates.replace(b"new" * 40_000))],
    "roll": [Set(b"%d" % number, bytes(30_000)) for number in range(8)],
}


FIRST_FAILURES: dict[str, set[Call]] = {"write": {Call.WRITE}, "sync": {Call.SYNC}, "create": {Call.CREATE}}


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("first", FIRST_FAILURES)
async def test_a_write_is_plainly_refused_only_once_it_is_cut_off(
    tmp_path: Path, name: str, number: int, first: str
) -> None:
    """A file system may need room to cut a file: what it keeps then would come true at the next start."""
    medium = FaultyMedium(tmp_path / "a")
    async with serving(medium, commits=Inline(), segment_bytes=100_000) as table:
        await table.ask(Set(b"k", b"old"))
        await table.settle()
        medium.fail(number, calls=FIRST_FAILURES[first] | {Call.TRUNCATE}, forever=True)
        answers = await table.ask(*WRITES[name])
        refused = [str(answer) for answer in answers if isinstance(answer, KvsdError)]
        if first != "create" or name == "roll":
            assert refused
            assert all("may or may not be found later" in text for text in refused)
            assert table.actor.state is State.READ_ONLY
            before = killed(medium, tmp_path / "b")
            (later,) = await table.ask(Set(b"later", b"v"))
            assert isinstance(later, ReadOnly)
            assert killed(medium, tmp_path / "c") == before
        medium.heal()


NEEDS_A_DESCRIPTOR = frozenset({Call.OPEN, Call.CREATE, Call.SYNC_DIRECTORY})


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_table_without_further_descriptors_is_never_read_only(tmp_path: Path, number: int) -> None:
    """Wherever they run out: writes are refused by the limit's name, nothing refused comes true, and it goes on."""
    for at in range(1, 12):
        medium = FaultyMedium(tmp_path / f"{at}")
        async with serving(medium, commits=Inline(), segment_bytes=400) as table:
            await table.ask(Set(b"k", b"old"))
            await table.settle()
            medium.fail(number, at=at, calls=NEEDS_A_DESCRIPTOR, forever=True)
            asked = asyncio.ensure_future(table.ask(*[Set(b"%d" % key, bytes(150)) for key in range(4)]))
            await table.settle()
            if asked.done():
                assert all(answer is None or "further descriptors" in str(answer) for answer in asked.result())
                told = {b"%d" % key for key, answer in enumerate(asked.result()) if answer is None}
                assert killed(medium, tmp_path / f"{at}-killed").keys() == told | {b"k"}
            assert table.actor.state is not State.READ_ONLY
            medium.heal()
            await asked
            await write_until_it_resumes(table)
        assert recovered(medium)[b"again"] == b"v"


async def test_a_stop_answers_those_who_wait_for_a_descriptor(medium: FaultyMedium) -> None:
    async with serving(medium, commits=Inline(), segment_bytes=400) as table:
        await table.ask(Set(b"k", b"old"))
        await table.settle()
        medium.fail(errno.EMFILE, calls={Call.SYNC_DIRECTORY}, forever=True)
        asked = asyncio.ensure_future(table.ask(*[Set(b"%d" % key, bytes(150)) for key in range(4)]))
        await table.settle()
        assert not asked.done()
        await table.stop()
        assert all("may or may not be found later" in str(answer) for answer in await asked)
    medium.heal()


async def test_inodes_that_run_out_are_told_by_their_name(
    medium: FaultyMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(medium, commits=Inline(), segment_bytes=400) as table:
        monkeypatch.setattr(FaultyMedium, "has_no_inodes", lambda *_: True)
        medium.fail(errno.ENOSPC, calls={Call.CREATE}, forever=True)
        answers = await table.ask(*[Set(b"%d" % key, bytes(150)) for key in range(4)])
        assert "no further inodes" in str(answers[-1])
        assert table.actor.state is State.FULL
        medium.heal()
        await write_until_it_resumes(table)
        assert ("info", "there are inodes again; writes resume") in table.reporter.events


def test_the_seal_of_a_failed_roll_is_cut_off_before_what_it_vouches_for(tmp_path: Path) -> None:
    """Else a power cut could leave the SEAL behind a hole, which is what damage looks like."""
    medium = FaultyMedium(tmp_path / "a")
    table = Table(medium, medium.root, segment_bytes=5_000)
    table.put(b"k", b"v")
    for number in range(8):
        table.set(b"%d" % number, b"x" * 700)
    medium.fail(errno.ENOSPC, calls={Call.CREATE})
    with pytest.raises(OSError, match="No space"):
        table.commit()
    start = len(medium.operations)
    resume = table.log.resume()
    assert resume is not None
    resume.run()
    for count in range(start, len(medium.operations) + 1):
        for seed in range(10):
            after = medium.disk(count).survivors(random.Random(seed), tmp_path / f"{count}-{seed}")
            assert recovered(after)[b"k"] == b"v"
    table.kill()
    medium.kill()


@pytest.mark.parametrize(
    "cuts", [3, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(600)])], ids=["some", "all"]
)
async def test_what_a_failed_roll_left_is_gone_before_its_predecessor_is_cut(tmp_path: Path, cuts: int) -> None:
    """Several segments may be born before the one that fails: none of them may outlive the Resume."""
    for at in range(1, 60):
        medium = FaultyMedium(tmp_path / str(at))
        async with serving(medium, commits=Inline(), segment_bytes=400) as table:
            await table.ask(Set(b"k", b"v"))
            await table.settle()
            start = len(medium.operations)
            medium.fail(errno.ENOSPC, at=at)
            failed = (await table.ask(*[Set(b"%d" % number, bytes(150)) for number in range(4)])) != [None] * 4
            await table.settle()
            for _ in range(3):
                await table.ask(Delete(b"none"), Set(b"again", b"v"))
                await table.settle()
        rng = random.Random(at)
        moments = range(start, len(medium.operations) + 1)
        for cut in rng.sample(moments, min(cuts, len(moments))):
            after = medium.disk(cut).survivors(rng, tmp_path / f"{at}-{cut}")
            assert recovered(after)[b"k"] == b"v"
            shutil.rmtree(after.root)
        if not failed:
            return
    pytest.fail("the roll never came to its end")
