"""What proves that more of a log was there: then it is refused, not taken for an interrupted append or a new one."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.entry import SEAL_BYTES, SEQ_GAP
from kvsd.table.known import KnownLog, traces
from kvsd.table.log import Log, LogOptions
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, SUFFIX
from kvsd.table.settlement import begin_log
from kvsd.table.work import RESERVE_NAME
from kvsd.types import Fsync
from tests.table.driver import START_US, Table, files, segments
from tests.table.encoding import HEADER, Written
from tests.table.history import History, busy_minute
from tests.table.medium import FaultyMedium

OPTIONS = {"segment_bytes": 700}


def written(root: Path, count: int = 6, value_bytes: int = 200) -> tuple[KnownLog, dict[bytes, bytes]]:
    """A log of a few segments with hints that was stopped in order; what is known of it, and what it holds."""
    table = Table(FaultyMedium(root), root, **OPTIONS)
    items = {b"key-%d" % number: bytes([number]) * value_bytes for number in range(count)}
    for key, value in items.items():
        table.put(key, value)
    table.stop()
    known = KnownLog(table.log._active.header.table_id, table.log.last_seq)
    for path in segments(table.directory):
        hint.write(FaultyMedium(root), path)
    return known, items


def refused(root: Path, known: KnownLog | None = None, match: str = "") -> CorruptLog:
    before = files(root)
    medium = FaultyMedium(root)
    with pytest.raises(CorruptLog, match=match) as caught:
        Table(medium, root, known=known, **OPTIONS)
    assert files(root) == before
    assert not medium.open_files
    assert str(root) in str(caught.value)
    return caught.value


def served(root: Path, known: KnownLog | None, **options: object) -> dict[bytes, bytes]:
    table = Table(FaultyMedium(root), root, known=known, **{**OPTIONS, **options})
    items = table.items()
    table.kill()
    return items


# A last segment that was cut


def test_a_last_segment_that_was_cut_is_refused_with_both_lengths_by_its_hint(tmp_path: Path) -> None:
    """What an interrupted copy leaves must not pass for an interrupted append."""
    _, items = written(tmp_path / "whole", 5, 60)
    last = segments(tmp_path / "whole" / "t")[-1]
    size = last.stat().st_size
    whole = files(tmp_path / "whole")
    for at in [*range(0, size, 7), *range(size - SEAL_BYTES - 2, size)]:
        root = tmp_path / "cut"
        for name, data in whole.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data if name != f"t/{last.name}" else data[:at])
        if at < size - SEAL_BYTES:
            refused(
                root, match=rf"{last.name}: .*{at} bytes.* {size} bytes" if at >= SEGMENT_HEADER_BYTES else "header"
            )
        else:
            assert served(root, None) == items, "all entries are there, and nothing was lost but the SEAL"
        shutil.rmtree(root)


@pytest.mark.parametrize("with_hints", [True, False])
@pytest.mark.parametrize("at", [SEGMENT_HEADER_BYTES, 500, -1])
def test_a_last_segment_that_was_cut_is_refused_by_what_is_known(tmp_path: Path, at: int, with_hints: bool) -> None:
    known, _ = written(tmp_path)
    *_, last = segments(tmp_path / "t")
    last.write_bytes(last.read_bytes()[:at])
    if not with_hints:
        for path in (tmp_path / "t").glob("*.hint"):
            path.unlink()
    refused(tmp_path, known, last.name)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("by", ["hints", "known"])
def test_a_log_whose_end_is_missing_is_refused(tmp_path: Path, count: int, by: str) -> None:
    known, _ = written(tmp_path)
    gone = segments(tmp_path / "t")[-count:]
    for path in gone:
        path.unlink()
        if by == "known":
            hint.path_of(path).unlink()
    refused(tmp_path, known if by == "known" else None, "a part of the log is missing")


@pytest.mark.parametrize("trace", ["hint", "torn", "reserve", "known"])
def test_a_folder_that_has_lost_all_its_segments_is_not_begun_anew(tmp_path: Path, trace: str) -> None:
    known, _ = written(tmp_path)
    folder = tmp_path / "t"
    for path in folder.iterdir():
        path.unlink()
    if trace != "known":
        name = {"hint": "0000000001-0000.hint", "torn": f"0000000001-0000{SUFFIX}.torn-1", "reserve": RESERVE_NAME}
        (folder / name[trace]).write_bytes(b"whatever")
    refused(tmp_path, known if trace == "known" else None, "all segments of the table are missing")


def test_a_new_folder_is_begun_whatever_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    for name in ("lost+found", "notes.txt", f"0000000001-0000{SUFFIX}.tmp", "0000000001-0000.hint.tmp"):
        (tmp_path / "t" / name).write_bytes(b"left over")
    assert traces(path.name for path in (tmp_path / "t").iterdir()) == []
    assert served(tmp_path, None) == {}


# What proves nothing


def test_hints_that_say_no_more_than_the_log_prove_nothing(tmp_path: Path) -> None:
    """Those of compacted segments, and of a file that was withdrawn: they may be left by a crash."""
    known, items = written(tmp_path)
    folder = tmp_path / "t"
    kept = {path: path.read_bytes() for path in folder.glob("*.hint")}
    table = Table(FaultyMedium(tmp_path), tmp_path, known=known, **OPTIONS)
    table.compact(0, 2)
    table.stop()
    for path, data in kept.items():
        path.write_bytes(data)
    (folder / "0000000009-0000.hint").write_bytes(next(iter(kept.values())))
    assert served(tmp_path, known) == items


@pytest.mark.parametrize("data", [b"", b"left over", bytes(4_096)])
def test_a_hint_that_is_damaged_or_of_another_table_proves_nothing(tmp_path: Path, data: bytes) -> None:
    known, items = written(tmp_path / "a")
    written(tmp_path / "b", count=30)
    foreign = sorted((tmp_path / "b" / "t").glob("*.hint"))[-1]
    (tmp_path / "a" / "t" / foreign.name).write_bytes(foreign.read_bytes())
    (tmp_path / "a" / "t" / "0000000077-0000.hint").write_bytes(data)
    assert served(tmp_path / "a", known) == items


@pytest.mark.parametrize("fsync", list(Fsync))
def test_what_was_known_at_a_stop_or_at_a_start_is_found_after_any_power_cut(tmp_path: Path, fsync: Fsync) -> None:
    """Else a table would be refused that lost nothing but what it may lose."""
    history = History(FaultyMedium(tmp_path / "a"), fsync=fsync, **OPTIONS)
    told: list[tuple[int, KnownLog]] = []
    table_class = type(history.table)
    stop = table_class.stop

    def stopped(table: Table) -> None:
        stop(table)
        told.append((len(history.medium.operations), KnownLog(told[0][1].table_id, table.log.last_seq)))

    told.append((len(history.medium.operations), history.table.log.known))
    for seed in range(4):
        busy_minute(history, rounds=1, seed=seed, hints=True)
        history.table = history.open()
        told.append((len(history.medium.operations), history.table.log.known))
        history.put(b"key", b"v")
        history.commit()
        stopped(history.table)
        history.table = history.open()
    history.table.kill()
    rng = random.Random(1)
    for count, disk in history.medium.prefixes():
        newest = [known for at, known in told if at <= count]
        if newest and rng.random() < 0.4:
            after = disk.survivors(rng, tmp_path / "b")
            found = Table(after, after.root, known=newest[-1], **history.options)
            assert found.log.last_seq >= newest[-1].last_seq
            found.kill()
            shutil.rmtree(tmp_path / "b")


# Files of others, and twice the same


def test_the_files_of_another_table_are_refused_though_they_are_whole(tmp_path: Path) -> None:
    known, _ = written(tmp_path / "a")
    written(tmp_path / "b", count=40)
    refused(tmp_path / "b", known, "belongs to another table")


def test_a_segment_under_both_suffixes_is_refused_with_both_names(tmp_path: Path) -> None:
    written(tmp_path)
    first = segments(tmp_path / "t")[0]
    shutil.copy(first, first.with_suffix(".log"))
    assert "is the same segment" in str(refused(tmp_path, match=r"0000000001-0000\.(seg|log): 0000000001-0000\."))


def test_a_segment_of_an_earlier_epoch_behind_one_of_a_later_is_refused(tmp_path: Path) -> None:
    first = Written()
    first.add()
    first.seal()
    second = first.successor()
    first.header = HEADER.__class__(**{**_fields(), "epoch": 2})
    first.data[:SEGMENT_HEADER_BYTES] = first.header.encode()
    first.save(tmp_path)
    second.save(tmp_path)
    refused(tmp_path, match="is older than 0000000001-0000")


def _fields() -> dict[str, object]:
    return {name: getattr(HEADER, name) for name in HEADER.__dataclass_fields__}


# Begun, and restored


def test_a_log_that_was_begun_and_never_used_goes_on_in_its_first_segment(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    (tmp_path / "t").mkdir()
    known = KnownLog(begin_log(medium, tmp_path / "t", START_US), 0)
    table = Table(medium, tmp_path, known=known)
    assert table.log.known == known
    table.put(b"k", b"v")
    table.kill()
    assert [path.name for path in segments(tmp_path / "t")] == [f"0000000001-0000{SUFFIX}"]
    assert served(tmp_path, known) == {b"k": b"v"}


def test_a_log_that_was_begun_serves_under_every_fsync(tmp_path: Path) -> None:
    for fsync in Fsync:
        root = tmp_path / fsync
        (root / "t").mkdir(parents=True)
        begin_log(FaultyMedium(root), root / "t", START_US)
        table = Table(FaultyMedium(root), root, fsync=fsync)
        assert table.log._active.header.loose == (fsync is not Fsync.ALWAYS)
        table.put(b"k", b"v")
        table.stop()
        assert served(root, None) == {b"k": b"v"}


@pytest.mark.parametrize("stopped", [True, False])
@pytest.mark.parametrize("fsync", list(Fsync))
def test_a_restored_log_gives_no_number_twice_and_has_a_higher_epoch(
    tmp_path: Path, fsync: Fsync, stopped: bool
) -> None:
    known, items = written(tmp_path)
    ahead = KnownLog(bytes(16), known.last_seq + 1_000)
    before = segments(tmp_path / "t")[-1]
    if not stopped:
        before.write_bytes(before.read_bytes()[:-SEAL_BYTES])
        hint.path_of(before).unlink()
    refused(tmp_path, ahead, "belongs to another table")
    log = Log(tmp_path / "t", LogOptions(fsync=fsync), FaultyMedium(tmp_path), ahead)
    log.recover(Nobody(), restored=True)
    assert log.known == KnownLog(known.table_id, log.last_seq)
    log.finish().run()
    log.close()
    table = Table(FaultyMedium(tmp_path), tmp_path, known=KnownLog(known.table_id, log.last_seq))
    assert table.items() == items
    assert table.log.last_seq > ahead.last_seq + SEQ_GAP
    assert table.log._active.header.epoch == 2
    table.put(b"new", b"v")
    table.stop()
    assert served(tmp_path, None) == items | {b"new": b"v"}


class Nobody:
    """Takes entries, and forgets them."""

    def replay(self, records: object) -> None:
        for _ in records:  # type: ignore[attr-defined] # a reader, whose end is what counts
            pass

    def load(self, block: object) -> None:
        pass
