"""The real file system calls, and that the faulty medium tells written from synced."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
from pathlib import Path

import pytest

from kvsd.table.medium import LostFile, Medium
from tests.table.driver import files
from tests.table.medium import PAGE_BYTES, Call, FaultyMedium, PowerCut


@pytest.fixture
def medium() -> Medium:
    return Medium()


def test_short_writes_are_continued(medium: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, at: real(fd, [b"".join(map(bytes, buffers))[:3]], at))
    fd = medium.open(tmp_path / "f", create=True)
    medium.write(fd, [b"ab", b"", b"cdefg", b"h"], 1)
    assert medium.read(fd, 100, 0) == b"\0abcdefgh"
    medium.close(fd)


def test_more_buffers_than_one_call_takes_are_written(medium: Medium, tmp_path: Path) -> None:
    fd = medium.open(tmp_path / "f", create=True)
    medium.write(fd, [b"%03d" % (number % 1000) for number in range(2_000)], 0)
    assert medium.size(fd) == 6_000
    assert medium.read(fd, 6, 4_500) == b"500501"
    medium.close(fd)


def test_short_reads_are_continued(medium: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    fd = medium.open(tmp_path / "f", create=True)
    medium.write(fd, [b"abcdefgh"], 0)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at))
    assert medium.read(fd, 7, 0) == b"abcdefg"
    assert medium.read(fd, 100, 2) == b"cdefgh"
    assert medium.read(fd, 1, 8) == b""
    medium.close(fd)


def test_cached_reads_are_whole_or_none(medium: Medium, tmp_path: Path) -> None:
    fd = medium.open(tmp_path / "f", create=True)
    medium.write(fd, [b"abc"], 0)
    if medium.can_read_cached(fd):
        assert medium.read_cached(fd, 2, 1) == b"bc"
        assert medium.read_cached(fd, 3, 1) is None
    medium.close(fd)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (None, True),
        (BlockingIOError(errno.EAGAIN, "cold"), True),
        (OSError(errno.EOPNOTSUPP, "no"), False),
        (OSError(errno.EIO, "disk"), None),
    ],
)
def test_the_probe_tells_a_cold_page_from_a_system_without_the_call(
    medium: Medium, monkeypatch: pytest.MonkeyPatch, raised: OSError | None, expected: bool | None
) -> None:
    def preadv(*_: object) -> int:
        if raised is not None:
            raise raised
        return 1

    monkeypatch.setattr("kvsd.table.medium._NO_WAIT", 8)
    monkeypatch.setattr(os, "preadv", preadv)
    if expected is None:
        with pytest.raises(OSError, match="disk"):
            medium.can_read_cached(0)
    else:
        assert medium.can_read_cached(0) is expected
    if isinstance(raised, BlockingIOError):
        assert medium.read_cached(0, 1, 0) is None


def test_without_the_flag_no_read_is_a_cached_one(medium: Medium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvsd.table.medium._NO_WAIT", None)
    assert not medium.can_read_cached(0)


def test_syncs_go_as_far_as_the_platform_can(medium: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("kvsd.table.medium.os.fdatasync", lambda _: called.append("fdatasync"), raising=False)
    monkeypatch.setattr("kvsd.table.medium.os.fsync", lambda _: called.append("fsync"))
    monkeypatch.setattr("kvsd.table.medium.fcntl.fcntl", lambda *_: called.append("F_FULLFSYNC"))
    monkeypatch.setattr("kvsd.table.medium._FULL_SYNC", None)
    monkeypatch.setattr("sys.platform", "linux")
    medium.sync(0)
    monkeypatch.setattr("sys.platform", "darwin")
    medium.sync(0)
    monkeypatch.setattr("kvsd.table.medium._FULL_SYNC", 51)
    medium.sync(0)
    assert called == ["fdatasync", "fsync", "F_FULLFSYNC"]


def test_folders_are_private_and_made_once(medium: Medium, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    medium.make_directory(folder)
    medium.make_directory(folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


def test_the_names_above_a_folder_are_synced_up_to_its_mount_point(
    medium: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(medium, "sync_directory", synced.append)
    folder = tmp_path / "a"
    folder.mkdir()
    medium.sync_parents(folder)
    assert synced[0] == tmp_path

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "not ours", str(path))

    monkeypatch.setattr(medium, "sync_directory", refuse)
    medium.sync_parents(folder)


def test_a_parent_on_another_file_system_is_not_synced(
    medium: Medium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(medium, "sync_directory", synced.append)
    real = Path.stat

    class Elsewhere:
        st_dev = -1

    def stat(path: Path, **options: bool) -> object:
        return Elsewhere if path == tmp_path.parent else real(path, **options)

    folder = tmp_path / "a"
    folder.mkdir()
    monkeypatch.setattr(Path, "stat", stat)
    medium.sync_parents(folder)
    assert synced == [tmp_path]


def test_names_links_and_room(medium: Medium, tmp_path: Path) -> None:
    medium.close(medium.open(tmp_path / "b", create=True))
    medium.link(tmp_path / "b", tmp_path / "c")
    medium.rename(tmp_path / "b", tmp_path / "a")
    assert medium.names(tmp_path) == ["a", "c"]
    medium.unlink(tmp_path / "c")
    medium.sync_directory(tmp_path)
    assert medium.names(tmp_path) == ["a"]
    assert medium.free_bytes(tmp_path) > 0


# The faulty medium itself


class Share(random.Random):
    """Decides for all that is not synced at once: 0 nothing survives, 1 all."""

    def __init__(self, share: float) -> None:
        super().__init__(1)
        self.share = share

    def choice(self, seq: object) -> object:
        return self.share


def survived(medium: FaultyMedium, share: float, root: Path) -> dict[str, bytes]:
    medium.disk().survivors(Share(share), root)
    return files(root)


def test_what_is_only_written_may_be_lost_and_what_is_synced_may_not(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path / "a")
    fd = medium.open(medium.root / "f", create=True)
    medium.write(fd, [b"old"], 0)
    medium.sync(fd)
    assert survived(medium, 0, tmp_path / "b") == {}
    medium.sync_directory(medium.root)
    medium.write(fd, [b"new!"], 0)
    assert survived(medium, 0, tmp_path / "c") == {"f": b"old"}
    assert survived(medium, 1, tmp_path / "d") == {"f": b"new!"}
    medium.truncate(fd, 1)
    medium.rename(medium.root / "f", medium.root / "g")
    assert survived(medium, 0, tmp_path / "e") == {"f": b"old"}
    assert survived(medium, 1, tmp_path / "f") == {"g": b"n"}
    medium.kill()


def test_pages_survive_one_by_one(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path / "a")
    fd = medium.open(medium.root / "f", create=True)
    medium.write(fd, [bytes(4 * PAGE_BYTES)], 0)
    medium.sync(fd)
    medium.sync_directory(medium.root)
    medium.write(fd, [b"x" * 4 * PAGE_BYTES], 0)
    seen = set()
    for seed in range(200):
        medium.disk().survivors(random.Random(seed), tmp_path / str(seed))
        content = (tmp_path / str(seed) / "f").read_bytes()
        pages = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
        assert all(len(set(page)) == 1 for page in pages)
        seen.add(bytes(page[0] for page in pages))
    assert len(seen) > 10
    medium.kill()


def test_pages_that_a_failed_sync_has_lost_do_not_come_back(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path / "a")
    fd = medium.open(medium.root / "f", create=True)
    medium.sync_directory(medium.root)
    medium.write(fd, [b"x" * PAGE_BYTES], 0)
    medium.fail(errno.EIO, calls={Call.SYNC})
    with pytest.raises(OSError, match="error"):
        medium.sync(fd)
    medium.sync(fd)
    assert medium.read(fd, 1, 0) == b"x"
    found = set()
    for seed in range(20):
        medium.disk(seed=seed).survivors(random.Random(seed), tmp_path / str(seed))
        found.add((tmp_path / str(seed) / "f").read_bytes()[:1])
    assert found == {b"x", b"\0"}
    medium.kill()


def test_every_open_descriptor_is_told_of_a_failed_sync_once(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    fd = medium.open(tmp_path / "f", create=True)
    other = medium.open(tmp_path / "f")
    medium.fail(errno.EIO, calls={Call.SYNC})
    for descriptor in (fd, other):
        with pytest.raises(OSError, match="error"):
            medium.sync(descriptor)
    medium.sync(fd)
    medium.sync(other)
    medium.kill()


def test_a_full_disk_takes_a_part_and_gives_room_back(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    fd = medium.open(tmp_path / "f", create=True)
    medium.room_bytes = 10
    medium.write(fd, [b"12345678"], 0)
    with pytest.raises(OSError, match="No space"):
        medium.write(fd, [b"abcd"], 8)
    assert medium.size(fd) == 10
    medium.write(fd, [b"ABC"], 0)
    medium.truncate(fd, 4)
    assert medium.free_bytes(tmp_path) == 6
    medium.unlink(tmp_path / "f")
    assert medium.free_bytes(tmp_path) == 10
    medium.kill()


def test_after_a_power_cut_nothing_happens_any_more(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    medium.cut_power(at=2)
    fd = medium.open(tmp_path / "f", create=True)
    for _ in range(2):
        with pytest.raises(PowerCut):
            medium.write(fd, [b"x"], 0)
        with pytest.raises(PowerCut):
            medium.read(fd, 1, 0)
    assert [operation.call for operation in medium.operations] == [Call.CREATE]
    medium.kill()


def test_room_that_a_test_makes_while_a_worker_writes_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medium = FaultyMedium(tmp_path)
    medium.room_bytes = 1_000
    fd = medium.open(medium.root / "file", create=True)
    calls, makes_room = itertools.count(), threading.Thread(target=lambda: setattr(medium, "room_bytes", None))
    size = FaultyMedium.size

    def slow_size(self: FaultyMedium, fd: int) -> int:
        if next(calls) == 1:  # the second: between reading the figure and putting it back
            makes_room.start()
            makes_room.join(0.05)
        return size(self, fd)

    monkeypatch.setattr(FaultyMedium, "size", slow_size)
    medium.write(fd, [b"x" * 10], 0)
    makes_room.join(20)
    assert medium.room_bytes is None
    medium.close(fd)


def test_files_of_a_held_folder_are_found_wherever_it_was_moved_and_never_those_of_another(
    medium: Medium, tmp_path: Path
) -> None:
    folder, aside = tmp_path / "data" / "t", tmp_path / "aside"
    medium.make_directory(folder)
    fd = medium.open(folder / "ours", create=True)
    medium.hold_folder(tmp_path / "data")
    medium.hold_folder(folder)
    medium.check_folder(folder)
    (tmp_path / "data").rename(aside)
    with pytest.raises(LostFile, match=f"{folder} was removed or moved away"):
        medium.check_folder(folder)
    (tmp_path / "data" / "t" / "sub").mkdir(parents=True)
    others = files(tmp_path / "data")
    with pytest.raises(LostFile, match=f"{folder} was replaced by another"):
        medium.check_folder(folder)
    medium.check_file(folder / "ours", fd, 0)
    with pytest.raises(LostFile, match=f"{folder / 'ours'} was cut: it has 0 bytes, and had 1"):
        medium.check_file(folder / "ours", fd, 1)

    medium.close(medium.open(folder / "new", create=True))
    medium.link(folder / "new", folder / "linked")
    medium.rename(folder / "new", folder / "ours")
    with pytest.raises(LostFile, match="was replaced by another"):
        medium.check_file(folder / "ours", fd, 0)
    with pytest.raises(FileExistsError, match=str(folder / "linked")):
        medium.rename_to_new(folder / "ours", folder / "linked")
    medium.make_directory(folder / "sub")
    medium.rename(folder / "sub", tmp_path / "data" / "moved")
    assert medium.names(folder) == ["linked", "ours"]
    assert medium.exists(folder / "linked")
    medium.unlink(folder / "linked")
    assert not medium.exists(folder / "linked")
    assert medium.names(tmp_path / "data") == ["moved", "t"]
    (aside / "moved").rmdir()
    assert medium.free_bytes(folder) > 0
    medium.sync_directory(folder)
    assert sorted(path.name for path in aside.rglob("*")) == ["ours", "t"]
    assert files(tmp_path / "data") == others
    assert (folder / "sub").is_dir()

    with pytest.raises(FileNotFoundError, match=str(folder / "gone")):
        medium.open(folder / "gone")
    medium.release_folder(folder)
    medium.release_folder(tmp_path / "data")
    medium.close(fd)
    assert medium.names(folder) == ["sub"]
