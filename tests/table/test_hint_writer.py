"""Hints in the background: nobody waits for them, and a failure costs only time."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.hint_writer import QUICK_BYTES, HintWriter
from kvsd.table.request import Set
from kvsd.table.segment_header import SUFFIX
from tests.table.driver import Table, segments
from tests.table.encoding import HEADER, Written
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import serving


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def sealed(root: Path) -> Path:
    written = Written(HEADER)
    for _ in range(1_000):
        written.add()
    written.seal()
    return written.save(root)


def run_all(pool: ThreadPoolExecutor) -> None:
    pool.submit(lambda: None).result(20)


def test_what_was_sealed_gets_a_hint(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = sealed(tmp_path)
    failures: list[Exception] = []
    writer = HintWriter(FaultyMedium(tmp_path), pool, lambda _, error: failures.append(error))
    writer.add([path, path.with_name("0000000009-0000.seg")])  # the second was compacted away meanwhile
    run_all(pool)
    assert hint.path_of(path).exists()
    assert not failures
    writer.stop()


def test_failures_and_damage_are_told(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = sealed(tmp_path)
    medium = FaultyMedium(tmp_path)
    failures: list[Exception] = []
    writer = HintWriter(medium, pool, lambda _, error: failures.append(error))
    medium.fail(errno.EIO, calls={Call.SYNC})
    writer.add([path])
    run_all(pool)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    writer.add([path])
    run_all(pool)
    assert [type(error) for error in failures] == [OSError, CorruptLog]
    assert list(path.parent.iterdir()) == [path]
    writer.stop()


def test_a_stop_waits_for_no_hint(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = sealed(tmp_path)
    medium = FaultyMedium(tmp_path)
    gate = medium.hold(Call.CREATE)
    writer = HintWriter(medium, pool, lambda _, error: pytest.fail(str(error)))
    writer.add([path, path])
    assert gate.reached.wait(20)
    stopped = threading.Thread(target=writer.stop)
    stopped.start()
    while not writer._stopping.is_set():
        pass
    gate.opened.set()
    stopped.join(20)
    assert not stopped.is_alive()
    assert list(path.parent.iterdir()) == [path]
    assert not medium.open_files


def test_a_clean_stop_makes_only_a_quick_hint(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    path = sealed(tmp_path)
    writer = HintWriter(FaultyMedium(tmp_path), pool, lambda _, error: pytest.fail(str(error)))
    writer.add_last(path, QUICK_BYTES + 1)
    assert not hint.path_of(path).exists()
    writer.add_last(path, QUICK_BYTES)
    assert hint.path_of(path).exists()


def test_a_stop_of_many_tables_does_not_wait_for_each_ones_hint(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    table = Table(FaultyMedium(tmp_path), tmp_path)
    for number in range(1_000):
        table.set(b"%d" % number, b"")
    table.commit()
    table.stop()
    path = max(segments(tmp_path / "t"))
    writer = HintWriter(FaultyMedium(tmp_path), pool, lambda _, error: pytest.fail(str(error)))
    writer.last_until = time.monotonic()
    writer.add_last(path, QUICK_BYTES)
    assert not hint.path_of(path).exists()
    assert not list((tmp_path / "t").glob("*.tmp"))
    assert len(Table(FaultyMedium(tmp_path), tmp_path).items()) == 1_000


async def test_a_table_that_was_stopped_starts_from_hints_alone(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    medium = FaultyMedium(tmp_path)
    async with serving(medium, hints=pool, segment_bytes=2_000) as served:
        for number in range(40):
            await served.ask(Set(b"%d" % number, bytes(100)))
        await served.idle()
        run_all(pool)
    assert len(segments(tmp_path / "t")) > 3
    again = Table(medium, tmp_path)
    assert again.log.take_unhinted() == []
    assert len(again.items()) == 40
    again.kill()


async def test_hints_that_were_lost_are_made_anew(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=500)
    for number in range(20):
        table.put(b"%d" % number, bytes(100))
    table.stop()
    sealed_segments = segments(tmp_path / "t")
    async with serving(medium, hints=pool) as served:
        await served.settle()
        run_all(pool)
        assert all(hint.path_of(path).exists() for path in sealed_segments)
        assert served.reporter.events == []


@pytest.mark.parametrize("named_after", range(0, 40, 2))
@pytest.mark.parametrize("looked_after", [0, 1, 2, 5, 100])
def test_no_hint_outlives_a_segment_that_is_compacted_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_after: int, looked_after: int
) -> None:
    """Wherever a compaction is when the hint gets its name, and when its writer looks whether the segment is there."""
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=1_000)
    for number in range(30):
        table.put(b"%d" % (number % 3), bytes(100))
    rename, steps = FaultyMedium.rename, table.compaction()
    inputs = segments(tmp_path / "t")[:-1]

    def go(count: int) -> None:
        for _ in range(count):
            next(steps, None)

    def renamed_late(self: FaultyMedium, old: Path, new: Path) -> None:
        is_hint = new.suffix == hint.SUFFIX
        if is_hint:
            go(named_after)
        rename(self, old, new)
        if is_hint:
            go(looked_after)

    monkeypatch.setattr(FaultyMedium, "rename", renamed_late)
    for path in inputs[:2]:
        if path.exists():
            hint.write(medium, path)
    go(1_000)
    assert not [path for path in inputs if path.exists()]
    assert list((tmp_path / "t").glob("*.hint")) == []
    table.kill()
    medium.kill()


def test_a_hint_that_is_named_right_before_its_segment_goes_goes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = FaultyMedium(tmp_path)
    table = Table(medium, tmp_path, segment_bytes=1_000)
    for number in range(30):
        table.put(b"%d" % (number % 3), bytes(100))
    unlink = FaultyMedium.unlink

    def unlinked_late(self: FaultyMedium, path: Path) -> None:
        if path.suffix == SUFFIX:
            assert hint.write(medium, path)
        unlink(self, path)

    monkeypatch.setattr(FaultyMedium, "unlink", unlinked_late)
    table.compact()
    assert list((tmp_path / "t").glob("*.hint")) == []
    table.kill()
    medium.kill()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EDQUOT])
def test_a_hint_that_met_a_limit_is_written_with_the_next_ones(
    tmp_path: Path, pool: ThreadPoolExecutor, number: int
) -> None:
    path = sealed(tmp_path)
    medium = FaultyMedium(tmp_path)
    failures: list[Exception] = []
    writer = HintWriter(medium, pool, lambda _, error: failures.append(error))
    medium.fail(number, calls={Call.CREATE})
    writer.add([path])
    run_all(pool)
    assert len(failures) == 1
    assert not hint.path_of(path).exists()
    writer.add([])
    run_all(pool)
    assert hint.path_of(path).exists()
    assert len(failures) == 1
    writer.stop()
