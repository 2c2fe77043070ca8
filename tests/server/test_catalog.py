"""The catalog: a power cut at every step of a change leaves what was or what is to be, and loses no file."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsd.errors import ConfigError, Conflict, InvalidValue, ReadOnly, TableNotFound
from kvsd.server import offline
from kvsd.server.catalog import Catalog, Notice
from kvsd.server.directory import folder_of, folders_in
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings
from kvsd.table.medium import Medium
from kvsd.table.segment_header import table_id_in
from kvsd.types import Fsync
from tests.table.medium import COUNTED, FaultyMedium

A, B = TableName("app", "a"), TableName("app", "b")
NEVER = TableSettings(fsync=Fsync.NEVER, cache_bytes=1024)
SEEDS = 6

Change = Callable[[Catalog], None]


def catalog_on(medium: FaultyMedium, seconds: float = 1_000.0) -> Catalog:
    return Catalog(medium.root, medium, now=lambda: seconds)


def put_file(medium: FaultyMedium, name: TableName, content: bytes) -> None:
    """Durable data in a table's folder."""
    folder = folder_of(medium.root, name)
    fd = medium.open(folder / "data", create=True)
    medium.write(fd, [content], 0)
    medium.sync(fd)
    medium.close(fd)
    medium.sync_directory(folder)


def prepare(medium: FaultyMedium) -> Catalog:
    """Namespace app with table a, which holds data."""
    catalog = catalog_on(medium)
    catalog.create_namespace("app")
    catalog.create_table(A, NEVER)
    put_file(medium, A, b"of a")
    return catalog


def picture(catalog: Catalog) -> object:
    return sorted(catalog.namespaces), dict(sorted(catalog.tables.items()))


# Every step


def create(catalog: Catalog) -> None:
    catalog.create_table(B, NEVER)


def change(catalog: Catalog) -> None:
    catalog.change_settings(A, TableSettings(segment_bytes=65_536))


def drop(catalog: Catalog) -> None:
    catalog.drop_table(A)


def create_namespace(catalog: Catalog) -> None:
    catalog.create_namespace("new")


def drop_and_create(catalog: Catalog) -> None:
    catalog.drop_table(A)
    catalog.create_table(A)


CHANGES = [create, change, drop, create_namespace, drop_and_create]


@pytest.mark.parametrize("make", CHANGES)
def test_a_power_cut_at_any_step_leaves_all_or_nothing_of_a_change(tmp_path: Path, make: Change) -> None:
    medium = FaultyMedium(tmp_path / "before")
    catalog = prepare(medium)
    first = len(medium.operations)
    pictures = [picture(catalog)]
    if make is drop_and_create:
        drop(catalog)
        pictures.append(picture(catalog))
        catalog.create_table(A)
    else:
        make(catalog)
    pictures.append(picture(catalog))
    seen = []
    for count, disk in medium.prefixes():
        if count < first:
            continue
        for seed in range(SEEDS):
            after = disk.survivors(random.Random(seed), tmp_path / f"{count}-{seed}")
            found = catalog_on(after)
            found.settle()
            assert picture(found) in pictures, f"after {count} operations, seed {seed}"
            seen.append(pictures.index(picture(found)))
            check_folders(found)
            kept = [*after.root.rglob("data")]
            assert [path.read_bytes() for path in kept] == [b"of a"], "the data is lost"
            again = catalog_on(after)
            assert again.settle() == found.settle() == left_over(found)
            assert picture(again) == picture(found)
    assert set(seen) == set(range(len(pictures)))
    assert seen[-SEEDS:] == [len(pictures) - 1] * SEEDS, "what was done is lost"


def check_folders(catalog: Catalog) -> None:
    """Each table but default/default, which recovery makes, has its folder with a log, and nobody else has, but for
    one that was being made and holds nothing."""
    tables, folders = set(catalog.tables) - {DEFAULT_TABLE}, set(folders_in(catalog.root))
    assert tables <= folders
    for name in tables:
        assert table_id_in(Medium(), catalog.folder(name)) == catalog.contents.logs[name].table_id
    for name in folders - tables:
        assert not (catalog.folder(name) / "data").exists(), "what was dropped is not moved away"


def left_over(catalog: Catalog) -> list[Notice]:
    """What a start says of the folder of a table that was being made."""
    orphans = sorted(set(folders_in(catalog.root)) - set(catalog.tables))
    return [Notice("a folder that is no table's stays where it is", name, catalog.folder(name)) for name in orphans]


@pytest.mark.parametrize("make", CHANGES)
def test_a_disk_that_fails_in_any_call_leaves_what_was_said(tmp_path: Path, make: Change) -> None:
    counting = FaultyMedium(tmp_path / "count")
    catalog = prepare(counting)
    before = sum(counting.counts[call] for call in COUNTED)
    make(catalog)
    calls = sum(counting.counts[call] for call in COUNTED) - before
    assert calls >= 5
    for at in range(1, calls + 1):
        medium = FaultyMedium(tmp_path / f"at-{at}")
        catalog = prepare(medium)
        medium.fail(errno.EIO, at=at)
        done = contextlib.suppress(ReadOnly) if make in (drop, drop_and_create) else pytest.raises(ReadOnly)
        with done:
            make(catalog)
            # A drop is done once the catalog says so, even if the files could not be moved.
            assert (A in catalog.tables) is (make is drop_and_create)
        medium.heal()
        assert not medium.open_files
        served = set(catalog.tables)
        for seed in range(SEEDS):
            after = medium.disk(seed=seed).survivors(random.Random(seed), tmp_path / f"at-{at}-{seed}")
            found = catalog_on(after)
            found.settle()
            # A table that is served takes writes: no outcome may set it aside.
            assert served <= set(found.tables)
            assert (A in found.tables) or A in {dropped.name for dropped in found.dropped()}
            assert [path.read_bytes() for path in after.root.rglob("data")] == [b"of a"]
        if A not in catalog.tables:
            catalog.create_table(A)
        catalog.create_table(TableName("app", "later"))
        assert set(catalog_on(medium).tables) == set(catalog.tables)


def test_the_first_change_of_an_old_data_directory_is_a_whole_one(tmp_path: Path) -> None:
    """Without a catalog every folder is a table: a create that is cut off must not leave one with other settings."""
    medium = FaultyMedium(tmp_path / "before")
    catalog_on(medium).create_table(TableName("default", "t"), NEVER)
    for count, disk in medium.prefixes():
        for seed in range(SEEDS):
            found = catalog_on(disk.survivors(random.Random(seed), tmp_path / f"{count}-{seed}"))
            found.settle()
            assert found.tables.get(TableName("default", "t"), NEVER) == NEVER


# Start


def test_folders_without_a_catalog_are_tables_with_the_servers_settings(tmp_path: Path) -> None:
    for name in (A, DEFAULT_TABLE):
        folder_of(tmp_path, name).mkdir(parents=True)
    catalog = Catalog(tmp_path)
    assert catalog.settle() == []
    assert catalog.tables == {DEFAULT_TABLE: TableSettings(), A: TableSettings()}
    assert catalog.namespaces == {"default", "app"}
    assert not (tmp_path / "catalog").exists()


def test_a_new_directory_has_the_default_table(tmp_path: Path) -> None:
    assert picture(Catalog(tmp_path)) == (["default"], {DEFAULT_TABLE: TableSettings()})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-9], "its checksum does not hold"),
        (lambda data: data.replace(b"never", b"Never"), "its checksum does not hold"),
        (lambda data: b"", "its checksum does not hold"),
        (lambda data: data[:-1] + b" ", "its checksum does not hold"),
        (lambda data: data.replace(b"catalog 1", b"catalog 2"), "has format 2.*use a newer one"),
    ],
)
def test_a_damaged_catalog_refuses_the_start_and_names_the_remedy(
    tmp_path: Path, damage: Callable[[bytes], bytes], words: str
) -> None:
    prepare(FaultyMedium(tmp_path))
    path = tmp_path / "catalog"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=words) as raised:
        Catalog(tmp_path)
    assert str(path) in str(raised.value)


def test_any_flipped_bit_of_the_catalog_is_noticed(tmp_path: Path) -> None:
    prepare(FaultyMedium(tmp_path))
    path = tmp_path / "catalog"
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(ConfigError):
            Catalog(tmp_path)


# Rules


def test_what_must_not_be_dropped_or_made_twice_says_why(tmp_path: Path) -> None:
    catalog = prepare(FaultyMedium(tmp_path))
    with pytest.raises(Conflict, match="app/a exists already"):
        catalog.create_table(A)
    with pytest.raises(Conflict, match="app exists already"):
        catalog.create_namespace("app")
    with pytest.raises(Conflict, match="holds 1 tables"):
        catalog.drop_namespace("app")
    with pytest.raises(Conflict, match="cannot be dropped"):
        catalog.drop_namespace("default")
    with pytest.raises(Conflict, match="cannot be dropped"):
        catalog.drop_table(DEFAULT_TABLE)
    for missing in (catalog.drop_table, lambda name: catalog.change_settings(name, NEVER)):
        with pytest.raises(TableNotFound, match="no table app/b"):
            missing(B)
    with pytest.raises(TableNotFound, match="no namespace none"):
        catalog.create_table(TableName("none", "t"))
    for bad in ("", "A", "a/b", "..", "a.b", "x" * 65):
        with pytest.raises(InvalidValue):
            catalog.create_namespace(bad)
        with pytest.raises(InvalidValue):
            catalog.create_table(TableName("app", bad))
    catalog.drop_table(A)
    catalog.drop_namespace("app")
    assert picture(Catalog(tmp_path)) == (["default"], {DEFAULT_TABLE: TableSettings()})


# What was dropped


def test_dropped_tables_are_kept_for_a_while_even_of_one_name_in_one_second(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    catalog = prepare(medium)
    for _ in range(2):
        catalog.drop_table(A)
        catalog.create_table(A)
    assert [(d.name, d.seconds) for d in catalog.dropped()] == [(A, 1_000), (A, 1_001)]
    assert (catalog.dropped()[0].folder / "data").read_bytes() == b"of a"
    assert catalog.remove_dropped(1) == []
    [removed] = catalog_on(medium, 1_010.5).remove_dropped(10)
    assert (removed.seconds, removed.folder.exists()) == (1_000, False)
    assert [d.seconds for d in catalog.dropped()] == [1_001]


def test_dropping_one_name_over_and_over_costs_as_much_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a search through all that were dropped within the second."""
    catalog = prepare(FaultyMedium(tmp_path))
    looks: list[Path] = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: looks.append(path) or exists(path))
    counts = []
    for _ in range(20):
        looks.clear()
        catalog.drop_table(A)
        catalog.create_table(A)
        counts.append(len(looks))
    assert len(set(counts[1:])) == 1  # the first writes the catalog of an old directory
    assert len(catalog.dropped()) == 20


def test_a_dropped_table_comes_back_when_its_folder_takes_a_new_ones_place(tmp_path: Path) -> None:
    """As docs/operations.md says."""
    catalog = prepare(FaultyMedium(tmp_path))
    catalog.drop_table(A)
    [dropped] = catalog.dropped()
    catalog.create_table(A)
    shutil.rmtree(folder_of(tmp_path, A))
    dropped.folder.rename(folder_of(tmp_path, A))
    again = Catalog(tmp_path)
    assert again.settle() == []
    assert (folder_of(tmp_path, A) / "data").read_bytes() == b"of a"


def test_an_offline_write_registers_its_table(tmp_path: Path) -> None:
    prepare(FaultyMedium(tmp_path))
    assert offline.write(tmp_path, [(b"k", b"v")], name=B) == 1
    assert offline.write(tmp_path, [(b"k", b"v")]) == 1
    catalog = Catalog(tmp_path)
    assert catalog.settle() == []
    assert set(catalog.tables) == {DEFAULT_TABLE, A, B}


def test_the_disk_is_full_while_a_table_is_made(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    catalog = prepare(medium)
    medium.room_bytes = 10
    with pytest.raises(ReadOnly, match="Nothing has changed"):
        catalog.create_table(B)
    medium.room_bytes = None
    assert B not in Catalog(tmp_path).tables
    catalog.create_table(B)
