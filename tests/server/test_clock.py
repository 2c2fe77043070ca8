"""What expires by a clock that is wrong is not removed."""

from __future__ import annotations

import time as system_time
from pathlib import Path

import pytest

from kvsd import aio
from kvsd.server import Server
from kvsd.server.clock import HOLD_SECONDS, WallClock
from tests.conftest import Start
from tests.server.peers import Reports
from tests.table.medium import Call, FaultyMedium

HOUR = HOLD_SECONDS
DAY = 24 * HOUR
START = 1_700_000_000.0


class Time:
    """A wall clock that can be set, beside a steady one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wall = START
        self.steady = 5_000.0
        self.reports = Reports()

    def clock(self, *, is_new: bool = False) -> WallClock:
        return WallClock(self.root, self.reports, is_new=is_new, wall=lambda: self.wall, steady=lambda: self.steady)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.fixture
def time(tmp_path: Path) -> Time:
    return Time(tmp_path)


def test_a_new_folder_believes_its_clock(time: Time) -> None:
    assert time.clock(is_new=True).is_right()
    assert time.reports.lines == []


@pytest.mark.parametrize("ahead", [2 * HOUR, DAY, 30 * DAY])
def test_a_start_far_ahead_of_the_last_run_believes_its_clock_after_an_hour(time: Time, ahead: float) -> None:
    time.clock(is_new=True).remember()
    time.wall += ahead
    clock = time.clock()
    assert not clock.is_right()
    assert "expired keys and dropped tables are kept for 60 minutes" in time.reports.lines[0][1]
    time.passes(HOUR - 1)
    assert not clock.is_right()
    time.passes(1)
    assert clock.is_right()


@pytest.mark.parametrize("later", [-30 * DAY, -HOUR, 0, HOUR - 1])
def test_a_start_soon_after_the_last_run_or_behind_it_believes_its_clock(time: Time, later: float) -> None:
    time.clock(is_new=True).remember()
    time.wall += later
    assert time.clock().is_right()


def test_starts_with_a_wrong_clock_do_not_vouch_for_each_other(time: Time) -> None:
    time.clock(is_new=True).remember()
    time.wall += 30 * DAY
    for _ in range(5):
        assert not time.clock().is_right()
        time.passes(HOUR / 2)


@pytest.mark.parametrize("jump", [61, HOUR, DAY, -61, -DAY])
def test_a_clock_that_jumps_is_believed_when_it_is_back_or_after_an_hour(time: Time, jump: float) -> None:
    clock = time.clock(is_new=True)
    time.passes(10 * DAY)
    assert clock.is_right()
    time.wall += jump
    assert not clock.is_right()
    assert "the clock has jumped" in time.reports.lines[0][1]
    time.passes(1)
    assert not clock.is_right()
    assert len(time.reports.lines) == 1
    time.wall -= jump
    assert clock.is_right(), "it was right before"
    time.wall += jump
    assert not clock.is_right()
    time.passes(HOUR)
    assert clock.is_right()


def test_each_jump_begins_the_hour_anew(time: Time) -> None:
    clock = time.clock(is_new=True)
    for _ in range(5):
        time.wall += DAY
        assert not clock.is_right()
        time.passes(HOUR - 1)
        assert not clock.is_right()


def test_what_is_corrected_little_by_little_is_no_jump(time: Time) -> None:
    clock = time.clock(is_new=True)
    for _ in range(100):
        time.passes(HOUR)
        time.wall += 5
        assert clock.is_right()
    assert time.reports.lines == []


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 40, None])
def test_a_folder_that_does_not_say_is_looked_at_for_an_hour(time: Time, content: bytes | None) -> None:
    if content is not None:
        (time.root / "clock").write_bytes(content)
    assert not time.clock().is_right()


def test_a_note_that_fails_is_told_and_nothing_else(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    reports = Reports()
    clock = WallClock(tmp_path, reports, medium, is_new=True)
    medium.fail(5, calls={Call.WRITE})
    clock.remember()
    assert reports.take("the clock could not be noted")
    clock.remember()
    assert WallClock(tmp_path, reports, medium).is_right()


async def test_a_server_whose_clock_is_a_month_ahead_keeps_what_was_dropped_and_what_has_expired(
    start: Start, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once more at the next start; all is there when the clock is right again."""
    monkeypatch.setattr("kvsd.table.actor._SWEEP_SECONDS", 0.0)
    real = system_time.time_ns

    async def started() -> tuple[Server, aio.Client]:
        server = await start(tls=False)
        db = await aio.connect(
            host=server.host, port=server.port, username="kvsduser", password="secret", disable_tls=True
        )
        return server, db

    async def ended(server: Server, db: aio.Client) -> None:
        await db.close()
        await server.stop()

    server, db = await started()
    await db.set("k", b"v", ttl=7 * DAY)
    await db.tables.create("t")
    await db.tables.drop("t")
    await ended(server, db)
    assert reports.count("the clock is far ahead of the last run") == 0
    for _ in range(2):
        monkeypatch.setattr(system_time, "time_ns", lambda: real() + int(30 * DAY * 1e9))
        server, db = await started()
        assert await db.get("k") is None
        for _ in range(20):
            await db.ping()
        assert len(await db.tables.dropped()) == 1
        await ended(server, db)
    assert sum("the clock is far ahead of the last run" in line[1] for line in reports.lines) == 2
    monkeypatch.setattr(system_time, "time_ns", real)
    server, db = await started()
    assert await db.get("k") == b"v"
    assert len(await db.tables.dropped()) == 1
    await ended(server, db)
