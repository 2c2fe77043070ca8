"""`kvsd restored`, and the procedures of docs/operations.md that have it: no version is given twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import kvsd.server
from kvsd.config import Config
from kvsd.server import offline
from kvsd.server.catalog import Catalog
from kvsd.server.directory import DataDirectory, folder_of
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table.entry import SEQ_GAP
from kvsd.table.request import Fetch, Found, Get, Operation, Result, Set
from kvsd.types import Fsync
from tests.server.peers import Reports
from tests.server.test_tables import Served
from tests.table.driver import files, segments

from .conftest import Cli

MakeConfig = Callable[..., Config]
T = TableName("default", "t")


@pytest.fixture
def config(make_config: MakeConfig) -> Config:
    return make_config(tls=False)


async def asked(
    config: Config, table: TableName, *operations: Operation, reports: Reports | None = None
) -> list[Result]:
    """What a server that is started for this and stopped in order answers."""
    async with kvsd.server.run(config, reports or Reports()) as server:
        if table not in server.tables._tables:
            await server.tables.create(table)
        return await Served(server.tables, server.dispatcher, Reports()).ask(table, *operations)


async def version(config: Config, table: TableName = DEFAULT_TABLE, key: bytes = b"k") -> int:
    [entry] = await asked(config, table, Fetch(key))
    assert isinstance(entry, Found)
    return entry.version


@pytest.mark.parametrize("fsync", list(Fsync))
async def test_no_version_is_given_twice_after_a_data_folder_was_restored(
    cli: Cli, make_config: MakeConfig, tmp_path: Path, fsync: Fsync
) -> None:
    """The procedure "Restore"."""
    config = make_config(tls=False, fsync=fsync)
    root = config.storage.root_dir
    await asked(config, DEFAULT_TABLE, Set(b"k", b"alice"))
    await asked(config, T, Set(b"k", b"alice"))
    shutil.copytree(root, tmp_path / "backup")
    for table in (DEFAULT_TABLE, T):
        await asked(config, table, *(Set(b"k", b"bob") for _ in range(100)))
    seen = [await version(config, table) for table in (DEFAULT_TABLE, T)]
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "backup", root)
    result = cli("restored", str(root))
    assert (result.status, result.err) == (0, "")
    assert [line.split(b":")[0] for line in result.out.splitlines()] == [b"OK default/default", b"OK default/t"]
    for table, old in zip((DEFAULT_TABLE, T), seen, strict=True):
        assert await asked(config, table, Get(b"k")) == [b"alice"]
        await asked(config, table, Set(b"k", b"carol"))
        assert await version(config, table) > old + SEQ_GAP // 2


async def test_a_table_that_is_older_than_the_catalog_is_refused_until_it_is_said_to_be_restored(
    cli: Cli, config: Config, tmp_path: Path
) -> None:
    root = config.storage.root_dir
    await asked(config, T, Set(b"k", b"old"))
    shutil.copytree(folder_of(root, T), tmp_path / "backup")
    await asked(config, T, Set(b"k", b"new"))
    seen = await version(config, T)
    shutil.rmtree(folder_of(root, T))
    shutil.copytree(tmp_path / "backup", folder_of(root, T))
    reports = Reports()
    [refused] = await asked(config, T, Get(b"k"), reports=reports)
    assert "run `kvsd restored` to go on with what is there" in str(refused)
    assert str(folder_of(root, T)) in str(reports.take("a table cannot be opened"))
    assert cli("restored", str(root)).status == 0
    assert await asked(config, T, Get(b"k"), Set(b"k", b"newer")) == [b"old", None]
    assert await version(config, T) > seen


@pytest.mark.parametrize("whose", ["dropped", "not in the catalog"])
async def test_a_folder_becomes_a_table_again(cli: Cli, config: Config, tmp_path: Path, whose: str) -> None:
    """The procedures "To bring a dropped table back" and "To have a folder as a table"."""
    root = config.storage.root_dir
    await asked(config, T, Set(b"k", b"precious"))
    if whose == "dropped":
        async with kvsd.server.run(config, Reports()) as server:
            await server.tables.drop(T)
            [dropped] = await server.tables.dropped()
        folder = dropped.folder
    else:
        folder = tmp_path / "moved"
        folder_of(root, T).rename(folder)
        (root / "catalog").unlink()
    await asked(config, T, Get(b"k"))  # makes it
    shutil.rmtree(folder_of(root, T))
    folder.rename(folder_of(root, T))
    reports = Reports()
    [refused] = await asked(config, T, Get(b"k"), reports=reports)
    assert "belongs to another table, or to an older one of this name" in str(refused)
    result = cli("restored", str(root))
    assert (result.status, "table default/t has the files of another table" in result.err) == (0, True)
    assert await asked(config, T, Get(b"k")) == [b"precious"]
    async with kvsd.server.run(config, Reports()) as server:
        assert await server.tables.dropped() == []


async def test_a_part_of_a_log_is_served_once_it_is_said_to_be_all_there_is(cli: Cli, config: Config) -> None:
    root = config.storage.root_dir
    await asked(config, DEFAULT_TABLE, *(Set(b"key-%d" % number, bytes(100)) for number in range(10)))
    [path] = segments(folder_of(root, DEFAULT_TABLE))
    path.write_bytes(path.read_bytes()[:1_000])
    known = Catalog(root).known(DEFAULT_TABLE)
    assert known is not None
    assert cli("restored", str(root)).status == 0
    for _ in range(2):  # no proof of what was there is left
        [first, last] = await asked(config, DEFAULT_TABLE, Get(b"key-0"), Get(b"key-9"))
        assert (first, last) == (bytes(100), None)
    await asked(config, DEFAULT_TABLE, Set(b"k", b"v"))
    assert await version(config) > known.last_seq + SEQ_GAP


async def test_what_is_damaged_or_missing_stays_as_it_is_and_the_rest_is_done(cli: Cli, config: Config) -> None:
    root = config.storage.root_dir
    for name in (DEFAULT_TABLE, T, TableName("default", "u")):
        await asked(config, name, Set(b"k", b"v"))
        await asked(config, name, Set(b"k", b"w"))
    [first, *_] = segments(folder_of(root, DEFAULT_TABLE))
    first.write_bytes(first.read_bytes()[:300])
    shutil.rmtree(folder_of(root, T))
    before = files(folder_of(root, DEFAULT_TABLE))
    result = cli("restored", str(root), "--json")
    assert (result.status, result.error["code"]) == (8, "CORRUPT_LOG")
    assert [table["table"] for table in result.json["restored"]] == ["default/u"]  # type: ignore[attr-defined, index]
    assert str(first) in result.err
    assert f"{folder_of(root, T)} is missing" in result.err
    assert files(folder_of(root, DEFAULT_TABLE)) == before
    assert not folder_of(root, T).exists()


def test_a_folder_that_is_in_use_or_is_none_is_refused(cli: Cli, tmp_path: Path) -> None:
    with DataDirectory(tmp_path / "data"):
        result = cli("restored", str(tmp_path / "data"))
    assert (result.status, "in use by another kvsd" in result.err) == (2, True)
    result = cli("restored", str(tmp_path / "nowhere"))
    assert (result.status, "there is no data folder" in result.err) == (2, True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("found", [[], ["notes.txt"], ["lock"], ["default/default.log"]])
def test_a_folder_without_tables_is_not_made_a_data_folder(cli: Cli, tmp_path: Path, found: list[str]) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    for name in found:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    before = sorted(root.rglob("*"))
    result = cli("restored", str(root))
    assert (result.status, result.out) == (2, b"")
    assert "is not a data folder" in result.err
    assert sorted(root.rglob("*")) == before


def test_the_folder_of_the_configuration_is_the_one_that_is_meant(cli: Cli, folder: Path) -> None:
    (folder / "config.yaml").write_text("kvsd: {root_dir: here}\n")
    offline.write(folder / "here", [(b"k", b"v")])
    assert cli("restored").out.startswith(b"OK default/default: versions go on above 4294967299\n")
    known = Catalog(folder / "here").known(DEFAULT_TABLE)
    assert known is not None
    assert known.last_seq == SEQ_GAP + 3
