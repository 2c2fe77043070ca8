"""Files that are removed, cut, moved, replaced or copied under a running server: for each the answer that is right.

A real server on real files. What it does not own any more it does not write to, and says so; what it has open it still
reads. The other half, what a start makes of such files, stands with recovery and the catalog.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path

import pytest

from kvsd.client import aio
from kvsd.errors import ConfigError, CorruptLog, ReadOnly, TableUnavailable
from kvsd.server import Server
from kvsd.server.directory import DataDirectory
from kvsd.server.names import DEFAULT_TABLE
from kvsd.table.medium import LostFile
from kvsd.table.segment_header import parse_name
from kvsd.table.work import RESERVE_NAME
from tests.conftest import Start
from tests.table.driver import files, segments

from .peers import Reports, until

LOOPS = {"asyncio": asyncio.new_event_loop}

TABLE_LINE = "a file is gone from under the server; the table is read-only"
ROOT_LINE = "the data folder is gone from under the server; all tables are read-only"
CATALOG_LINE = "the catalog of tables is not the server's own any more"

KEYS = {b"key-%d" % number: b"%d" % number * 200 for number in range(20)}
LAST = b"last"


@pytest.fixture(autouse=True)
def looks_are_made_by_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by nobody else in between."""
    monkeypatch.setattr("kvsd.server.watch._PAUSE_SECONDS", 3_600.0)


class Answer(Enum):
    """What is right."""

    SERVED = None
    TABLE = TABLE_LINE
    ALL = ROOT_LINE
    CATALOG = CATALOG_LINE


class Place:
    """Where everything is: under the server, aside, and as it was a while ago."""

    def __init__(self, root: Path, aside: Path) -> None:
        self.root = root
        self.table = root / "namespaces" / "default" / "default"
        self.earlier = aside / "earlier"
        self.aside = aside / "aside"

    def find(self, thing: str) -> Path:
        match thing:
            case "data folder":
                return self.root
            case "table folder":
                return self.table
            case "written segment":
                return segments(self.table)[-1]
            case "sealed segment":
                return segments(self.table)[0]
            case "hint":
                return next(self.table.glob("*.hint"))
            case "reserve":
                return self.table / RESERVE_NAME
            case _:
                return self.root / thing

    def put_back(self, path: Path) -> None:
        """What is in its place now goes."""
        _remove(path)
        self.aside.rename(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def removed(_: Place, path: Path) -> None:
    _remove(path)


def truncated(_: Place, path: Path) -> None:
    """As a rotation does that copies and truncates; in half, since most files are longer than what is in them."""
    os.truncate(path, path.stat().st_size // 2 if parse_name(path.name) is None else 300)


def moved_away(place: Place, path: Path) -> None:
    path.rename(place.aside)


def replaced_by_older_copy(place: Place, path: Path) -> None:
    older = place.earlier / path.relative_to(place.root)
    path.rename(place.aside)
    _copy(older, path)


def moved_and_another_in_its_place(place: Place, path: Path) -> None:
    path.rename(place.aside)
    if place.aside.is_dir():
        path.mkdir()
    else:
        path.write_bytes(os.urandom(max(1, place.aside.stat().st_size)))


def copied(_: Place, path: Path) -> None:
    _copy(path, path.with_name(f"{path.name}.copy"))


Act = Callable[[Place, Path], None]

ACTS: list[Act] = [
    removed,
    truncated,
    moved_away,
    replaced_by_older_copy,
    moved_and_another_in_its_place,
    copied,
]

ANSWERS: dict[str, Answer] = {
    "data folder": Answer.ALL,
    "lock": Answer.ALL,
    "catalog": Answer.CATALOG,
    "table folder": Answer.TABLE,
    "written segment": Answer.TABLE,
    "sealed segment": Answer.TABLE,
    "hint": Answer.SERVED,
    "reserve": Answer.SERVED,
}
"""To all acts but those that harm nothing."""

HARMLESS = {(copied, thing) for thing in ANSWERS} | {(truncated, "lock")}
"""A copy is nobody's, and in the lock file is only a name."""

CASES = [
    (act, thing, Answer.SERVED if (act, thing) in HARMLESS else answer)
    for thing, answer in ANSWERS.items()
    for act in ACTS
    if not (act is truncated and "folder" in thing)
]


@asynccontextmanager
async def serving(start: Start, tmp_path: Path) -> AsyncIterator[tuple[Server, aio.Client, Place]]:
    """A server with two tables and all kinds of files; `earlier` is a copy from before its last write."""
    place = Place(tmp_path / "data", tmp_path)
    server = await start(tls=False, root_dir=place.root, segment_bytes=2_048, cache_bytes=0)
    async with (
        asyncio.timeout(30),
        aio.connect(
            host=server.host, port=server.port, username="kvsduser", password="secret", disable_tls=True, timeout=10
        ) as client,
    ):
        await client.tables.create("other")
        await client.table("other").set("k", "v")
        for key, value in KEYS.items():
            await client.set(key, value)
        await until(lambda: len(list(place.table.glob("*.hint"))) == len(segments(place.table)) - 1, "no hints")
        shutil.copytree(place.root, place.earlier)
        await client.tables.create("later")
        await client.set(LAST, b"acknowledged")
        assert len(segments(place.table)) > 2
        yield server, client, place


async def check_reads(client: aio.Client, *, may_be_damaged: bool = False) -> None:
    for key, value in (KEYS | {LAST: b"acknowledged"}).items():
        try:
            assert await client.get(key) == value
        except CorruptLog:
            assert may_be_damaged


@pytest.mark.parametrize(
    ("act", "thing", "answer"), CASES, ids=[f"{thing}-{act.__name__}".replace(" ", "_") for act, thing, _ in CASES]
)
async def test_what_happens_to_files_of_a_running_server_is_served_rightly_or_refused_with_their_path(
    start: Start, tmp_path: Path, reports: Reports, act: Act, thing: str, answer: Answer
) -> None:
    async with serving(start, tmp_path) as (server, client, place):
        path = place.find(thing)
        act(place, path)
        left = files(tmp_path)
        await server.tables.watch.look()
        await server.tables.watch.look()
        if answer is not Answer.SERVED:
            assert reports.take(answer.value)["path"] == str(path)
        assert reports.faults == [], "one line, and none without need"

        other = client.table("other")
        if answer is Answer.TABLE or answer is Answer.ALL:
            for refused in (client.set("new", "value"), client.delete(LAST), client.tables.reopen("default")):
                with pytest.raises(ReadOnly, match=str(path)):
                    await refused
            assert (await client.tables.info("default")).state == "read-only"
        else:
            await client.set("new", "value")
            await client.tables.reopen("default")
            assert await client.get("new") == b"value"
        if answer is Answer.ALL:
            with pytest.raises(ReadOnly, match=str(path)):
                await other.set("k", "w")
        else:
            await other.set("k", "w")
        if answer is Answer.ALL or answer is Answer.CATALOG:
            with pytest.raises(ReadOnly, match=str(path)):
                await client.tables.create("new")
        await check_reads(client, may_be_damaged=act is truncated)
        assert await other.get("k") == (b"v" if answer is Answer.ALL else b"w")
        for fault in reports.faults:  # of a key whose value was cut off
            assert (fault[1], act) == ("damaged entry", truncated)
            reports.lines.remove(fault)
    await server.stop()
    now = files(tmp_path)
    if answer is Answer.ALL:
        assert now == left, "nothing was written, wherever the files are by now"
    elif answer is not Answer.SERVED:
        concerned = place.table if answer is Answer.TABLE else path
        names = [name for name in left if (tmp_path / name).is_relative_to(concerned)]
        names += [name for name in left if (tmp_path / name).is_relative_to(place.aside)]
        assert {name: now.get(name) for name in names} == {name: left[name] for name in names}


@pytest.mark.parametrize("thing", [thing for thing, answer in ANSWERS.items() if answer is not Answer.SERVED])
async def test_what_is_put_back_is_served_again(start: Start, tmp_path: Path, reports: Reports, thing: str) -> None:
    async with serving(start, tmp_path) as (server, client, place):
        path = place.find(thing)
        replaced_by_older_copy(place, path)
        await server.tables.watch.look()
        line = ANSWERS[thing].value
        assert reports.take(str(line))["path"] == str(path)
        place.put_back(path)
        for table in ("default", "other", "later"):
            await client.tables.reopen(table)
            await client.table(table).set("new", "value")
        await client.tables.create("new")
        await check_reads(client)
        await server.tables.watch.look()
    assert reports.faults == []


async def test_a_table_that_was_closed_meanwhile_is_not_taken_for_an_older_one(
    start: Start, tmp_path: Path, reports: Reports
) -> None:
    """Nor for a new one; and what proves that there was more stays."""
    async with serving(start, tmp_path) as (server, client, place):
        table = server.tables._tables[DEFAULT_TABLE]
        async with server.tables._open_tables.holding(table):
            await server.tables._open_tables.close(table)
        for act, reason in ((replaced_by_older_copy, "older copy"), (removed, "is missing")):
            act(place, place.table)
            left = files(place.table) if place.table.exists() else {}
            for _ in range(2):
                with pytest.raises((CorruptLog, TableUnavailable), match=reason):
                    await client.tables.reopen("default")
                with pytest.raises((CorruptLog, TableUnavailable), match=reason):
                    await client.get(LAST)
            assert (files(place.table) if place.table.exists() else {}) == left
        place.put_back(place.table)
        await client.tables.reopen("default")
        await check_reads(client)
        while reports.faults:
            reports.take("a table cannot be opened")


async def test_writes_stop_at_once_where_what_was_written_is_cut_off(
    start: Start, tmp_path: Path, reports: Reports
) -> None:
    """Without any look: an append behind the cut would make the file as long as before."""
    async with serving(start, tmp_path) as (_, client, place):
        path = place.find("written segment")
        os.truncate(path, 0)
        with pytest.raises(ReadOnly, match=f"{path} was cut"):
            await client.set("new", "value")
        assert path.stat().st_size == 0
    assert reports.take(TABLE_LINE)["path"] == str(path)


async def test_settings_that_would_reopen_a_table_whose_files_are_gone_are_refused(
    start: Start, tmp_path: Path, reports: Reports
) -> None:
    async with serving(start, tmp_path) as (server, client, place):
        shutil.rmtree(place.table)
        await server.tables.watch.look()
        reports.take(TABLE_LINE)
        with pytest.raises(ReadOnly, match=str(place.table)):
            await client.tables.settings("default", segment_bytes="128KiB")
        await check_reads(client)


async def test_a_server_whose_folder_was_moved_never_writes_into_the_one_in_its_place(
    start: Start, tmp_path: Path, reports: Reports
) -> None:
    """Not even before it has looked; tables that it opens are the ones that it had."""
    async with serving(start, tmp_path) as (server, client, place):
        for table in ("other", "later"):
            slot = server.tables._tables[DEFAULT_TABLE._replace(table=table)]
            async with server.tables._open_tables.holding(slot):
                await server.tables._open_tables.close(slot)
        replaced_by_older_copy(place, place.root)
        with DataDirectory(place.root):
            before = files(place.root)
            for number in range(30):
                await client.set(b"more-%d" % number, bytes(300))
            with pytest.raises(ReadOnly):
                await client.tables.create("new")
            assert await client.table("other").get("k") == b"v"
            await client.table("other").set("k", "w")
            await client.tables.compact()
            await until(lambda: not any(actor._compactor._steps for actor in server.tables.actors), "compacts on")
            assert files(place.root) == before
        assert len(segments(place.aside / "namespaces" / "default" / "default")) > len(segments(place.table)), "its own"
        await server.tables.watch.look()
        assert reports.take(ROOT_LINE)["path"] == str(place.root)


async def test_our_own_compactions_rolls_drops_and_reopenings_raise_no_alarm(
    start: Start, tmp_path: Path, reports: Reports
) -> None:
    """With looks at all times."""
    async with serving(start, tmp_path) as (server, client, place):

        async def keep_looking() -> None:
            while True:
                await server.tables.watch.look()

        looking = asyncio.get_running_loop().create_task(keep_looking())
        for number in range(12):
            for key in KEYS:
                await client.set(key, b"%d" % number * 100)
            await client.tables.compact()
            if number % 4 == 0:
                await client.tables.create(f"t{number}")
                await client.table(f"t{number}").set("k", "v")
                await client.tables.reopen("default")
                await client.tables.settings("other", segment_bytes=f"{64 + number}KiB")
                await client.tables.drop(f"t{number}")
        looking.cancel()
        await asyncio.wait([looking])
        assert looking.cancelled()
        assert len(segments(place.table)) < 100
    assert reports.faults == []


@pytest.mark.parametrize("is_folder_lockable", [True, False], ids=["both locks", "files alone can be locked"])
def test_a_removed_lock_file_lets_nobody_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_folder_lockable: bool
) -> None:
    if not is_folder_lockable:
        monkeypatch.setattr(DataDirectory, "_lock_folder", lambda _: False)
    with DataDirectory(tmp_path) as directory:
        directory.check()
        (tmp_path / "lock").unlink()
        with pytest.raises(LostFile, match=f"{tmp_path / 'lock'} was removed"):
            directory.check()
        if is_folder_lockable:
            with pytest.raises(ConfigError, match="in use by another kvsd"):
                DataDirectory(tmp_path)


async def test_a_look_comes_by_itself_again_and_again(
    start: Start, tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvsd.server.watch._PAUSE_SECONDS", 0.001)
    async with serving(start, tmp_path) as (_, client, place):
        await client.set("new", "value")
        moved_away(place, place.root)
        await until(lambda: reports.count(ROOT_LINE), "nobody has looked")
        with pytest.raises(ReadOnly):
            await client.set("new", "value")
    reports.take(ROOT_LINE)


async def test_a_fault_of_ours_in_a_look_does_not_end_the_looks(
    start: Start, tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvsd.server.watch._PAUSE_SECONDS", 0.001)
    server = await start(tls=False, root_dir=tmp_path / "data")

    def fault() -> None:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(server.tables.watch, "_check_root", fault)
        await until(lambda: reports.count("internal fault while files were looked at") > 1, "the looks have ended")
    (tmp_path / "data").rename(tmp_path / "aside")
    await until(lambda: reports.count(ROOT_LINE), "nobody has looked")
    reports.lines.clear()


async def test_all_sealed_segments_have_their_turn(
    start: Start, tmp_path: Path, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvsd.server.watch._SEGMENTS", 2)
    async with serving(start, tmp_path) as (server, client, place):
        found = segments(place.table)
        found[-2].unlink()
        for _ in found:
            await server.tables.watch.look()
        assert reports.take(TABLE_LINE)["path"] == str(found[-2])
        with pytest.raises(ReadOnly):
            await client.set("new", "value")
