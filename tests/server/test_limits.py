"""Limits of the system under the catalog and under tables that open: nothing is half done, and it passes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvsd.errors import Busy, KvsdError, ReadOnly
from kvsd.server.catalog import Catalog
from kvsd.server.descriptors import DescriptorWatch, share_of_tables
from kvsd.server.directory import DataDirectory
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings
from kvsd.table.medium import Medium
from kvsd.table.request import Get, Set
from tests.server.peers import Reports, until
from tests.server.test_tables import served
from tests.table.driver import Table
from tests.table.medium import Call, FaultyMedium
from tests.table.serving import Inline

T = TableName("default", "t")


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """So many can be opened within, and then none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # no gap is left below the last of them
    last = held[-1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + count, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


CHANGES: dict[str, Callable[[Catalog], object]] = {
    "create a namespace": lambda catalog: catalog.create_namespace("app"),
    "drop a namespace": lambda catalog: catalog.drop_namespace("old"),
    "create a table": lambda catalog: catalog.create_table(TableName("default", "new")),
    "change settings": lambda catalog: catalog.change_settings(T, TableSettings(cache_bytes=1)),
    "drop a table": lambda catalog: catalog.drop_table(T),
}


def content(catalog: Catalog) -> tuple[object, object]:
    return catalog.namespaces, dict(catalog.tables)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("left", range(6))
def test_a_change_of_the_catalog_without_descriptors_is_done_or_has_not_happened(
    tmp_path: Path, change: str, left: int
) -> None:
    with DataDirectory(tmp_path / "data", Medium()) as directory:
        catalog = Catalog(directory.root, directory.medium)
        catalog.settle()
        catalog.create_namespace("old")
        catalog.create_table(T)
        before = content(catalog)
        error: KvsdError | None = None
        with descriptors_left(left):
            try:
                CHANGES[change](catalog)
            except ReadOnly as found:
                error = found
        if error is None:
            assert content(catalog) != before
        else:
            assert "Nothing has changed" in str(error)
            assert content(catalog) == before
            CHANGES[change](catalog)
        assert content(Catalog(directory.root, directory.medium)) == content(catalog)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_a_table_that_gets_no_descriptor_opens_for_the_next_who_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("kvsd.server.open_tables._RETRY_SECONDS", 0)
    medium = FaultyMedium(tmp_path)
    async with served(tmp_path, medium=medium) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
    async with served(tmp_path, medium=medium) as one:
        medium.fail(number, calls={Call.OPEN}, forever=True)
        [answer] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        assert isinstance(answer, Busy)
        assert "descriptors" in str(answer)
        assert one.tables.unavailable == 0
        medium.heal()
        found: list[object] = []
        while found != [b"v"]:
            found = list(await one.ask(DEFAULT_TABLE, Get(b"k")))
        one.reports.take("a table cannot be opened")


async def test_a_table_is_not_closed_that_could_not_be_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with served(tmp_path) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
        with monkeypatch.context() as patch:
            patch.setattr("kvsd.server.tables.check_some_are_left", none_left)
            for asked in (
                one.tables.reopen(DEFAULT_TABLE),
                one.tables.change_settings(DEFAULT_TABLE, {"segment_bytes": "128KiB"}),
            ):
                with pytest.raises(Busy, match="descriptors"):
                    await asked
            assert await one.ask(DEFAULT_TABLE, Get(b"k")) == [b"v"]
        await one.tables.reopen(DEFAULT_TABLE)
        assert await one.ask(DEFAULT_TABLE, Get(b"k")) == [b"v"]


@pytest.mark.parametrize("free", [0, 3, 10, 12, 20, 57, 500, 10**6])
def test_the_share_of_the_tables_fits_what_is_free(free: int) -> None:
    share = share_of_tables(free, 256)
    assert share.tables >= 1
    assert share.segments >= 1
    if free >= 20:
        assert 2 * share.tables + share.segments <= free
    if free >= 2_000:
        assert share.tables == 256


def test_the_warning_comes_once_and_again_after_it_was_better() -> None:
    reports = Reports()
    watch = DescriptorWatch(reports, Inline())
    for used in (10, 79, 80, 95, None, 75, 90):
        watch.judge(used, 100)
    assert len(reports.lines) == 1
    level, event, fields = reports.lines[0]
    assert (level, fields) == ("warning", {"used": 80, "limit": 100})
    assert "descriptors (ulimit -n)" in event
    watch.judge(69, 100)
    watch.judge(None, 100)
    assert len(reports.lines) == 2
    watch.judge(10**6, resource.RLIM_INFINITY)
    assert len(reports.lines) == 2


async def test_the_watch_counts_for_itself() -> None:
    reports = Reports()
    watching = asyncio.create_task(DescriptorWatch(reports, Inline()).run())
    with descriptors_left(0):
        await until(lambda: reports.lines, "no warning")
    watching.cancel()
    await asyncio.wait([watching])


def test_the_names_of_a_held_folder_are_synced_without_a_further_descriptor(tmp_path: Path) -> None:
    medium = Medium()
    medium.hold_folder(tmp_path)
    with descriptors_left(0):
        medium.sync_directory(tmp_path)
        with pytest.raises(OSError, match="Too many open files"):
            medium.sync_directory(tmp_path.parent)
    medium.release_folder(tmp_path)


def test_a_log_goes_on_in_its_next_segment_with_a_single_descriptor(tmp_path: Path) -> None:
    table = Table(Medium(), tmp_path, segment_bytes=300)
    with descriptors_left(1):
        table.set(b"a", bytes(200))
        table.set(b"b", bytes(200))
        table.commit()
    assert table.items() == {b"a": bytes(200), b"b": bytes(200)}
    table.stop()
