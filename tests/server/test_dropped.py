"""What becomes of files that belong to no table: purged where a drop has asked for it, and never otherwise."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

import kvsd.server
from kvsd.config import Config
from kvsd.errors import ConfigError, Conflict, ReadOnly
from kvsd.server.catalog import Catalog
from kvsd.server.catalog_file import Contents
from kvsd.server.directory import folder_of
from kvsd.server.dropped import Dropped
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings
from kvsd.table.known import DROPPED_NAME, KnownLog
from kvsd.table.medium import Medium
from kvsd.table.request import Get, Set
from kvsd.types import Fsync
from tests.table.driver import files, segments

from .peers import Reports, until
from .test_tables import Served

MakeConfig = Callable[..., Config]
T, U = TableName("shop", "stock"), TableName("shop", "more")
KEEP_SECONDS = 100


class Unmovable(Medium):
    """A folder on another file system, a mount point, or one where we may not write."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def rename(self, old: Path, new: Path) -> None:
        if old.is_dir():
            raise OSError(self.number, os.strerror(self.number), str(old))
        super().rename(old, new)


def catalog_in(root: Path, medium: Medium | None = None, seconds: float = 1_000.0) -> Catalog:
    root.mkdir(exist_ok=True)
    catalog = Catalog(root, medium, now=lambda: seconds)
    catalog.settle()
    return catalog


def with_table(root: Path, medium: Medium | None = None) -> Catalog:
    """A catalog with the table shop/stock, which holds data."""
    catalog = catalog_in(root, medium)
    if "shop" not in catalog.namespaces:
        catalog.create_namespace("shop")
    catalog.create_table(T)
    put_data(catalog.folder(T))
    return catalog


def put_data(folder: Path) -> None:
    [segment] = segments(folder)
    segment.write_bytes(segment.read_bytes() + b"entries")
    (folder / "0000000001-0000.hint").write_bytes(b"hint")


# A drop whose files cannot be moved


NUMBERS = [errno.EXDEV, errno.EBUSY, errno.EACCES, errno.EROFS, errno.EPERM, errno.EIO, errno.ENOSPC]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: errno.errorcode[number])
def test_a_drop_is_done_where_the_files_cannot_be_moved_and_their_room_is_given_back_later(
    tmp_path: Path, number: int
) -> None:
    medium = Unmovable(number)
    catalog = with_table(tmp_path, medium)
    folder = catalog.folder(T)
    before = files(folder)
    reason = catalog.drop_table(T)
    assert reason is not None
    assert reason.errno == number
    assert T not in catalog.tables
    for again in (catalog, catalog_in(tmp_path, medium)):
        assert T not in again.tables
        assert before.items() <= files(folder).items(), "what the user may want back is gone"
        assert again.dropped() == [Dropped(T, folder, 1_000)]
        with pytest.raises(Conflict, match=f"{folder} holds the dropped table's files.*{os.strerror(number)}"):
            again.create_table(T)
        assert again.remove_dropped(KEEP_SECONDS) == []
    late = catalog_in(tmp_path, medium, 1_000.0 + KEEP_SECONDS)
    [notice] = Catalog(tmp_path, medium).settle()
    assert (notice.event, notice.table, notice.path) == ("a dropped table's files stay where they are", T, folder)
    assert late.remove_dropped(KEEP_SECONDS) == [Dropped(T, folder, 1_000)]
    assert not folder.exists()
    late.create_table(T)
    assert catalog_in(tmp_path).tables.keys() == {DEFAULT_TABLE, T}
    assert catalog_in(tmp_path).dropped() == []


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: errno.errorcode[number])
def test_files_that_could_not_be_moved_are_moved_by_the_next_start_that_can(tmp_path: Path, number: int) -> None:
    catalog = with_table(tmp_path, Unmovable(number))
    before = files(catalog.folder(T))
    catalog.drop_table(T)
    again = catalog_in(tmp_path)
    [dropped] = again.dropped()
    assert (dropped.folder, dropped.is_marked) == (tmp_path / "dropped" / "shop.stock.1000", True)
    assert before.items() <= files(dropped.folder).items()
    assert not again.folder(T).exists()


@pytest.mark.parametrize("linked", ["namespace", "table", "table by a relative link"])
def test_a_drop_follows_a_link_and_gives_back_the_room_behind_it(tmp_path: Path, linked: str) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    elsewhere.mkdir()
    catalog = with_table(root)
    link = catalog.folder(T) if "table" in linked else catalog.folder(T).parent
    link.rename(elsewhere / "moved")
    link.symlink_to(os.path.relpath(elsewhere / "moved", link.parent) if "relative" in linked else elsewhere / "moved")
    catalog = catalog_in(root)
    # On one file system a folder in a linked namespace can be moved; where it cannot, it is as above.
    catalog.drop_table(T)
    [dropped] = catalog.dropped()
    assert segments(dropped.folder), "the files cannot be found any more"
    late = catalog_in(root, seconds=1_000.0 + KEEP_SECONDS)
    assert late.remove_dropped(KEEP_SECONDS) == [dropped]
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == []
    late.create_table(T)
    assert catalog_in(root).known(T) is not None


def test_a_link_among_the_dropped_is_followed_when_its_time_has_come(tmp_path: Path) -> None:
    """So does a link lie there that an early version has moved; and its mark is that of a drop."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    catalog = with_table(root)
    catalog.drop_table(T)
    [dropped] = catalog.dropped()
    dropped.folder.rename(elsewhere)
    dropped.folder.symlink_to(elsewhere)
    assert catalog_in(root, seconds=2_000.0).remove_dropped(KEEP_SECONDS) == [dropped]
    assert not elsewhere.exists()
    assert not os.path.lexists(dropped.folder)


def test_what_cannot_be_removed_is_told_and_the_rest_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = with_table(tmp_path)
    catalog.drop_table(T)
    catalog.create_table(T)
    put_data(catalog.folder(T))
    catalog.drop_table(T)
    first, second = catalog.dropped()
    unlink = Path.unlink

    def refuse(self: Path) -> None:
        if self.parent == first.folder and self.suffix == ".hint":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
        unlink(self)

    monkeypatch.setattr(Path, "unlink", refuse)
    told: list[tuple[Dropped, OSError]] = []
    late = catalog_in(tmp_path, seconds=2_000.0)
    assert late.remove_dropped(0, lambda *failure: told.append(failure)) == [second]
    [(dropped, error)] = told
    assert (dropped, error.errno) == (first, errno.EPERM)
    monkeypatch.undo()
    assert late.remove_dropped(0) == [first], "it is not tried again"
    assert not first.folder.exists()


# What nobody has dropped


@pytest.mark.parametrize("place", ["a copy beside a table", "newer than the catalog", "moved from dropped"])
def test_what_nobody_has_dropped_stays_and_its_name_is_not_given_away(tmp_path: Path, place: str) -> None:
    catalog = with_table(tmp_path)
    old = (tmp_path / "catalog").read_bytes()
    if place == "a copy beside a table":
        shutil.copytree(catalog.folder(T), catalog.folder(U))
    elif place == "newer than the catalog":
        catalog.create_table(U)
        put_data(catalog.folder(U))
        (tmp_path / "catalog").write_bytes(old)
    else:
        catalog.drop_table(T)
        [dropped] = catalog.dropped()
        dropped.folder.rename(catalog.folder(U))
    before = files(catalog.folder(U))
    for seconds in (1_000.0, 1e9):
        again = Catalog(tmp_path, now=lambda: seconds)  # noqa: B023 - used at once
        [notice] = again.settle()
        assert (notice.event, notice.table) == ("a folder that is no table's stays where it is", U)
        assert again.remove_dropped(0) == []
        with pytest.raises(
            Conflict, match=f"{catalog.folder(U)} holds files of a table that the catalog does not know"
        ):
            again.create_table(U)
        assert files(catalog.folder(U)) == before


def test_what_an_early_version_has_set_aside_stays(tmp_path: Path) -> None:
    """It moved there what nobody had dropped, too, and no mark tells one from the other."""
    catalog = with_table(tmp_path)
    shutil.copytree(catalog.folder(T), tmp_path / "dropped" / "shop.old.7")
    again = catalog_in(tmp_path, seconds=1e9)
    [dropped] = again.dropped()
    assert (dropped.name, dropped.is_marked) == (TableName("shop", "old"), False)
    assert again.remove_dropped(0) == []
    assert segments(dropped.folder)


def test_a_drop_of_a_table_whose_folder_holds_anothers_files_leaves_them_alone(tmp_path: Path) -> None:
    """Two folders were swapped: what is dropped by the one name is the other's data."""
    catalog = with_table(tmp_path)
    catalog.create_table(U)
    put_data(catalog.folder(U))
    before = files(catalog.folder(U))
    catalog.folder(T).rename(tmp_path / "aside")
    catalog.folder(U).rename(catalog.folder(T))
    reason = catalog.drop_table(T)
    assert "another table's" in str(reason)
    again = catalog_in(tmp_path, seconds=1e9)
    assert again.remove_dropped(0) == []
    assert files(catalog.folder(T)) == before


def test_the_mark_of_a_drop_that_was_taken_back_is_worth_nothing(tmp_path: Path) -> None:
    """The folder of a table that came back bears it until it is opened; an older catalog must not have it purged."""
    catalog = with_table(tmp_path)
    without = (tmp_path / "catalog").read_bytes()
    catalog.drop_table(T)
    [dropped] = catalog.dropped()
    dropped.folder.rename(catalog.folder(T))
    (tmp_path / "catalog").write_bytes(without)
    assert (catalog.folder(T) / DROPPED_NAME).exists()
    catalog = catalog_in(tmp_path, seconds=1e9)
    assert T in catalog.tables
    assert catalog.remove_dropped(0) == []
    assert segments(catalog.folder(T))


@pytest.mark.parametrize("left", ["nothing", "a header", "half a header", "other files"])
def test_a_name_is_free_where_its_folder_holds_no_entry(tmp_path: Path, left: str) -> None:
    """As an interrupted creation leaves it, or somebody who has made a folder to mount something there."""
    catalog = catalog_in(tmp_path)
    catalog.create_namespace("shop")
    folder = catalog.folder(T)
    folder.mkdir(parents=True)
    if left == "a header":
        catalog.create_table(U)
        shutil.copy(segments(catalog.folder(U))[0], folder)
    elif left == "half a header":
        (folder / "0000000001-0000.seg.tmp").write_bytes(b"kvsds")
    elif left == "other files":
        (folder / "lost+found").mkdir()
    catalog.create_table(T)
    [segment] = segments(folder)
    assert segment.stat().st_size > 0
    known = catalog.known(T)
    assert known is not None
    assert U not in catalog.tables or known.table_id != catalog.contents.logs[U].table_id


# The whole server


async def test_a_server_starts_and_serves_whatever_its_housekeeping_meets(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tls=False, dropped_keep_seconds=0)
    root, reports = config.storage.root_dir, Reports()
    async with kvsd.server.run(config, reports) as server:
        client = Served(server.tables, server.dispatcher, reports)
        for name in (T, U):
            if "shop" not in server.tables.namespaces():
                await server.tables.create_namespace("shop")
            await server.tables.create(name)
            await client.ask(name, Set(b"k", b"v"))
        rename = Medium.rename

        def files_only(self: Medium, old: Path, new: Path) -> None:
            if old.is_dir():
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(old))
            rename(self, old, new)

        monkeypatch.setattr(Medium, "rename", files_only)
        await server.tables.drop(T)
        told = reports.take("a dropped table's files stay where they are")
        assert (told["table"], told["path"]) == ("shop/stock", str(folder_of(root, T)))
    reports = Reports()
    async with kvsd.server.run(config, reports) as server:
        assert reports.take("a dropped table's files stay where they are")["path"] == str(folder_of(root, T))
        await until(lambda: not folder_of(root, T).exists(), "the room is not given back")
        client = Served(server.tables, server.dispatcher, reports)
        assert await client.ask(U, Get(b"k")) == [b"v"]


async def test_a_new_data_folder_is_said_once_and_is_not_begun_again(make_config: MakeConfig) -> None:
    config = make_config(tls=False)
    for count in (1, 0):
        reports = Reports()
        async with kvsd.server.run(config, reports):
            pass
        assert reports.count("a new data folder") == count
        assert {event for level, event, _ in reports.lines if level != "info"} <= {
            "TLS is off: passwords and values can be read on the way"
        }


async def test_all_tables_are_noted_in_one_change_at_the_stop_and_a_failure_is_a_warning(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, reports = make_config(tls=False), Reports()
    root = config.storage.root_dir
    written: list[Contents] = []
    encode = Contents.encode

    def counted(self: Contents) -> bytes:
        written.append(self)
        return encode(self)

    names = [TableName("default", f"t{number}") for number in range(5)]
    async with kvsd.server.run(config, reports) as server:
        client = Served(server.tables, server.dispatcher, reports)
        for name in names:
            await server.tables.create(name)
            await client.ask(name, Set(b"k", b"v"))
        monkeypatch.setattr(Contents, "encode", counted)
    [contents] = written
    assert {contents.logs[name].last_seq for name in names} == {2}, "one entry and the SEAL"
    async with kvsd.server.run(config, reports):
        (root / "catalog.new").mkdir()
    assert "Is a directory" in str(
        reports.take("how far the logs reach could not be noted; the next start knows less")["error"]
    )
    (root / "catalog.new").rmdir()
    async with kvsd.server.run(config, reports) as server:
        assert server.tables.unavailable == 0
    assert reports.faults == []


def test_a_catalog_is_not_written_into_a_folder_that_has_taken_the_place_of_its_own(tmp_path: Path) -> None:
    root, moved = tmp_path / "root", tmp_path / "moved"
    catalog = with_table(root)
    root.rename(moved)
    shutil.copytree(moved, root)
    before = files(root)
    with pytest.raises(ReadOnly, match="not the folder any more"):
        catalog.remember({T: KnownLog(bytes(16), 7)})
    with pytest.raises(ReadOnly, match="not the folder any more"):
        catalog.create_table(U)
    assert files(root) == before


# Begun, and cut off


async def test_a_kill_while_a_data_folder_is_begun_leaves_one_that_starts(make_config: MakeConfig) -> None:
    """The log of default/default comes first, and then the catalog that knows it."""
    config = make_config(tls=False)
    root = config.storage.root_dir
    async with kvsd.server.run(config, Reports()):
        whole = files(root)
    steps: list[list[str]] = [
        [],
        ["namespaces"],
        ["namespaces/default/default"],
        ["namespaces/default/default/0000000001-0000.seg.tmp"],
        ["namespaces/default/default/0000000001-0000.seg"],
        ["namespaces/default/default/0000000001-0000.seg", "catalog.new"],
    ]
    assert set(whole) >= {"catalog", steps[-1][0]}
    for step in steps:
        shutil.rmtree(root)
        root.mkdir()
        for name in step:
            path = root / name
            if "." in name:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(whole.get(name.removesuffix(".tmp"), b""))
            else:
                path.mkdir(parents=True)
        for _ in range(2):
            reports = Reports()
            async with kvsd.server.run(config, reports) as server:
                assert server.tables.unavailable == 0, step
                assert Catalog(root).known(DEFAULT_TABLE) is not None or step, step
            assert Catalog(root).known(DEFAULT_TABLE) is not None
            assert reports.faults == []


async def test_the_log_of_an_old_data_folder_that_is_gone_is_not_begun_anew(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    """Its catalog knows no logs yet; but default/default had one, and what was never used may be begun."""
    config, reports = make_config(tls=False), Reports()
    root = config.storage.root_dir
    for name in (DEFAULT_TABLE, T):
        folder_of(root, name).mkdir(parents=True)
    early = json.dumps({"namespaces": ["default", "shop"], "tables": {"shop/stock": {}}}).encode()
    (root / "catalog").write_bytes(with_checksum(b"head\n" + early + b"\n"))
    async with kvsd.server.run(config, reports) as server:
        assert server.tables.unavailable == 1
        assert "all segments of the table are missing" in str(reports.take("a table cannot be opened")["error"])
        client = Served(server.tables, server.dispatcher, reports)
        assert await client.ask(T, Set(b"k", b"v")) == [None]
        assert reports.take("a new log is begun")["path"] == str(folder_of(root, T))


# The file


def test_a_catalog_of_an_early_version_is_read_and_one_of_this_is_what_it_reads(tmp_path: Path) -> None:
    early = (
        b'kvsd catalog 1 9D9A2D1F\n{\n "namespaces": [\n  "default",\n  "shop"\n ],\n "tables": {\n'
        b'  "default/default": {},\n  "shop/stock": {\n   "fsync": "never"\n  }\n }\n}\n'
    )
    contents = Contents.decode(with_checksum(early), tmp_path)
    assert (contents.namespaces, contents.leaving) == ({"default", "shop"}, {})
    assert contents.logs == {DEFAULT_TABLE: KnownLog(b"", 0)}
    assert Contents.decode(contents.encode(), tmp_path) == contents
    assert contents.tables == {DEFAULT_TABLE: TableSettings(), T: TableSettings(fsync=Fsync.NEVER)}
    body = json.loads(with_table(tmp_path / "root").contents.encode().split(b"\n", 1)[1])
    assert body["namespaces"] == ["default", "shop"]
    assert body["tables"] == {"default/default": {}, "shop/stock": {}}


def with_checksum(data: bytes) -> bytes:
    body = data.split(b"\n", 1)[1][:-1]
    return b"kvsd catalog 1 %08X\n" % crc32(body) + body + b"\n"


@pytest.mark.parametrize(
    "log", [{"id": "00"}, {"id": "zz" * 16, "seq": 1}, {"seq": 1}, 5, {"id": "00" * 16, "seq": "x"}]
)
def test_what_is_no_log_is_damage_of_the_catalog(tmp_path: Path, log: object) -> None:
    body = json.dumps({"namespaces": [], "tables": {}, "logs": {"default/default": log}}).encode()
    with pytest.raises(ConfigError, match="is damaged"):
        Contents.decode(with_checksum(b"head\n" + body + b"\n"), tmp_path / "catalog")
