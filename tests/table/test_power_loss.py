"""Power cuts at every operation of a busy minute, and in the recovery from them."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path

import pytest

from kvsd.types import Fsync
from tests.table.driver import Table
from tests.table.encoding import Written
from tests.table.history import History, busy_minute, recovered
from tests.table.medium import Disk, FaultyMedium

OPTIONS = {"segment_bytes": 1_500}
THOROUGH = int(os.environ.get("KVSD_TEST_EXAMPLES", "10"))


def cut_and_check(history: History, disk: Disk, count: int, rng: random.Random, root: Path, *, nested: int) -> None:
    """Recover from one state that a cut may leave, with `nested` more cuts during the recoveries."""
    names = itertools.count()
    after = disk.survivors(rng, root / str(next(names)))
    for _ in range(nested):
        after.cut_power(at=rng.randint(1, 12))
        try:
            recovered(after, **history.options)
        except Exception as error:
            assert "PowerCut" in repr(error)
        after.kill()
        after = after.disk().survivors(rng, root / str(next(names)))
    assert recovered(after, **history.options) in history.allowed(count)
    shutil.rmtree(root)


@pytest.mark.parametrize("seed", range(4))
def test_a_power_cut_after_any_operation_loses_nothing_acknowledged(tmp_path: Path, seed: int) -> None:
    history = History(FaultyMedium(tmp_path / "a"), **OPTIONS)
    busy_minute(history, rounds=8, seed=seed)
    rng = random.Random(seed)
    for count, disk in history.medium.prefixes():
        cut_and_check(history, disk, count, rng, tmp_path / "b", nested=0)


def test_power_cuts_during_the_recovery_from_power_cuts_lose_nothing_acknowledged(tmp_path: Path) -> None:
    history = History(FaultyMedium(tmp_path / "a"), **OPTIONS)
    busy_minute(history, rounds=8, seed=3)
    rng = random.Random(3)
    for count, disk in history.medium.prefixes():
        cut_and_check(history, disk, count, rng, tmp_path / "b", nested=2)


@pytest.mark.parametrize("seed", range(2))
def test_a_power_cut_while_hints_are_written_leaves_none_that_misleads(tmp_path: Path, seed: int) -> None:
    history = History(FaultyMedium(tmp_path / "a"), **OPTIONS)
    busy_minute(history, rounds=8, seed=seed, hints=True)
    assert any(operation.target.endswith(".hint") for operation in history.medium.operations)
    rng = random.Random(seed)
    for count, disk in history.medium.prefixes():
        cut_and_check(history, disk, count, rng, tmp_path / "b", nested=rng.randrange(2))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(100, 100 + THOROUGH))
def test_many_busy_minutes_survive_many_power_cuts(tmp_path: Path, seed: int) -> None:
    history = History(FaultyMedium(tmp_path / "a"), **OPTIONS)
    busy_minute(history, rounds=6, seed=seed, hints=seed % 2 == 0)
    rng = random.Random(seed)
    for count, disk in history.medium.prefixes():
        cut_and_check(history, disk, count, rng, tmp_path / "b", nested=rng.randrange(3))


@pytest.mark.parametrize("fsync", [Fsync.INTERVAL, Fsync.NEVER])
def test_loose_logs_lose_only_what_was_not_synced_and_are_never_refused(tmp_path: Path, fsync: Fsync) -> None:
    history = History(FaultyMedium(tmp_path / "a"), fsync=fsync, **OPTIONS)
    rng = random.Random(5)
    synced = [(0, 0)]
    for number in range(30):
        history.put(b"key-%d" % (number % 4), rng.randbytes(100))
        history.table.commit()
        if number % 5 == 4:
            history.table.sync()
            synced.append((len(history.medium.operations), len(history.states) - 1))
    history.table.kill()
    history.acknowledged = synced
    for count, disk in history.medium.prefixes():
        cut_and_check(history, disk, count, rng, tmp_path / "b", nested=rng.randrange(2))


def test_numbers_that_may_have_been_seen_stay_lost_when_recovery_itself_is_cut(tmp_path: Path) -> None:
    """The gap and the epoch must survive a crash between the sealing of the old segment and the new one's birth."""
    medium = FaultyMedium(tmp_path / "a")
    table = Table(medium, medium.root, fsync=Fsync.INTERVAL)
    table.put(b"k", b"v")
    seen = table.log.last_seq
    epoch = table.log._active.header.epoch
    medium.kill()
    for at in range(1, 40):
        after = medium.disk().survivors(Everything(), tmp_path / f"b{at}")
        after.cut_power(at=at)
        try:
            recovered(after, fsync=Fsync.INTERVAL)
        except Exception as error:
            assert "PowerCut" in repr(error)
            after.kill()
        else:
            break
        again = Table(after, after.root, fsync=Fsync.INTERVAL)
        assert again.log.last_seq >= seen + (1 << 32)
        assert again.log._active.header.epoch > epoch
        again.kill()
    else:
        pytest.fail("recovery never came to its end")


def test_a_torn_tail_is_set_aside_for_good_before_the_segment_is_replaced(tmp_path: Path) -> None:
    segment = Written()
    segment.add()
    torn = bytes(segment.data) + b"torn"
    path = segment.save(tmp_path / "a")
    path.write_bytes(torn)
    medium = FaultyMedium(tmp_path / "a")
    assert recovered(medium) == {b"k": b"v"}
    for count, disk in medium.prefixes():
        for seed in range(20):
            root = tmp_path / f"{count}-{seed}"
            disk.survivors(random.Random(seed), root)
            kept = [found.read_bytes() for found in (root / "t").iterdir() if found.name.startswith(path.name)]
            assert torn in kept


def test_a_new_table_whose_folders_an_earlier_run_made_is_durable(tmp_path: Path) -> None:
    """The run that made the folders may have died before it synced their names."""
    for at in range(1, 8):
        medium = FaultyMedium(tmp_path / str(at))
        root = medium.root / "namespaces" / "default"
        medium.cut_power(at=at)
        try:
            Table(medium, root)
        except Exception as error:
            assert "PowerCut" in repr(error)
        medium.kill()
        table = Table(medium, root)
        table.put(b"k", b"v")
        medium.kill()
        after = medium.disk().survivors(Nothing(), tmp_path / f"{at}-after")
        assert recovered(after, after.root / "namespaces" / "default") == {b"k": b"v"}


class Nothing(random.Random):
    """Lets nothing survive that was not synced."""

    def choice(self, seq: object) -> object:
        return 0.0


class Everything(random.Random):
    """Lets all survive that was written."""

    def choice(self, seq: object) -> object:
        return 1.0
