"""EIO at every call: what was acknowledged is there afterwards, whatever the failed call has lost."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from kvsd.table.entry import Record
from kvsd.table.index import Index
from kvsd.table.log import Log, LogOptions
from kvsd.table.progress import RecoveryProgress
from kvsd.table.recovery import recover
from tests.table.driver import Table, ticking
from tests.table.history import History, busy_minute, recovered
from tests.table.medium import COUNTED, Call, FaultyMedium

OPTIONS = {"segment_bytes": 1_500}


@pytest.mark.parametrize("forever", [False, True])
def test_a_failed_call_loses_nothing_acknowledged(tmp_path: Path, forever: bool) -> None:
    """Also where the power goes later: a failed sync may have dropped pages that can still be read."""
    for at in range(1, 1_000):
        medium = FaultyMedium(tmp_path / str(at))
        history = History(medium, **OPTIONS)
        medium.fail(errno.EIO, at=at, forever=forever)
        try:
            busy_minute(history, rounds=5, seed=at % 7)
        except OSError:
            medium.kill()
        if not medium.failures:
            assert at > 100
            return
        allowed = history.allowed(len(medium.operations))
        found = recovered(medium, **OPTIONS)
        assert found in allowed
        for seed in range(2):
            after = medium.disk(seed=seed).survivors(random.Random(at + seed), tmp_path / f"{at}-{seed}")
            # What was read after the restart has been read: it must stay.
            assert recovered(after, **OPTIONS) == found
    pytest.fail("the scenario never came to its end")


def test_a_failed_call_during_recovery_leaks_no_descriptor_and_changes_no_result(tmp_path: Path) -> None:
    for at in range(1, 100):
        medium = FaultyMedium(tmp_path / str(at))
        history = History(medium, **OPTIONS)
        busy_minute(history, rounds=3, seed=2)
        torn = history.open()
        torn.put(b"key", b"value")
        medium.kill()
        medium.fail(errno.EIO, at=at)
        expected = history.states[-1] | {b"key": b"value"}
        try:
            assert recovered(medium, **OPTIONS) == expected
        except OSError:
            assert not medium.open_files
        if not medium.failures:
            assert at > 10
            return
        medium.heal()
        assert recovered(medium, **OPTIONS) == expected
    pytest.fail("recovery never came to its end")


def test_a_recovery_that_is_abandoned_leaks_no_descriptor(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    table.stop()

    class Abandoned(Index):
        def replay(self, records: Iterable[Record]) -> None:
            next(iter(records))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(medium, table.directory, Abandoned(), RecoveryProgress(), loose=False, now_us=ticking())
    assert not medium.open_files


def test_numbers_of_a_failed_append_are_not_used_again(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"1")
    medium.fail(errno.ENOSPC, calls={Call.WRITE})
    table.set(b"k", b"2")
    failed = table.log.last_seq
    with pytest.raises(OSError, match="No space"):
        table.commit()
    table.put(b"k", b"3")
    assert table.log.last_seq > failed
    assert table.get(b"k") == b"3"
    table.kill()
    assert recovered(medium) == {b"k": b"3"}


def test_a_failed_roll_leaves_no_open_segment_behind(tmp_path: Path) -> None:
    for at in range(1, 100):
        medium = FaultyMedium(tmp_path / str(at))
        table = Table(medium, medium.root, segment_bytes=400)
        table.put(b"k", bytes(100))
        before = dict(medium.open_files)
        medium.fail(errno.EIO, at=at)
        for _ in range(6):
            table.set(b"k", bytes(100))
        try:
            table.commit()
        except OSError:
            assert medium.open_files == before
            table.kill()
            assert not medium.open_files
        else:
            return
    pytest.fail("the roll never came to its end")


def test_a_full_disk_keeps_no_table_from_being_read(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path)
    table.put(b"k", b"v")
    table.stop()
    medium.room_bytes = 0
    again = Table(medium, tmp_path)
    assert again.get(b"k") == b"v"
    again.kill()


def test_eio_of_the_reserve_is_told(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    medium.fail(errno.EIO, at=medium_calls_of_an_open(tmp_path / "probe") - 1)
    log = Log(tmp_path / "t", LogOptions(now_us=ticking()), medium)
    with pytest.raises(OSError, match="error"):
        log.recover(Index())
    assert not medium.open_files


def medium_calls_of_an_open(root: Path) -> int:
    medium = FaultyMedium(root)
    table = Table(medium, root)
    calls = sum(medium.counts[call] for call in COUNTED)
    table.kill()
    return calls
