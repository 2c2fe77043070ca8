"""What a start makes of files that somebody has removed, cut, put back, swapped, copied or renamed.

A table of all of it, for a server that was stopped and for one that was killed, each with the answer: served rightly,
or refused with the name, never silent. What cannot be seen from the files stands there, too, and in docs/operations.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

import kvsd.server
from kvsd.config import Config
from kvsd.errors import ConfigError, KvsdError
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.table import hint
from kvsd.table.request import Get, Set
from tests.table.driver import files, segments

from .peers import Reports, until
from .test_tables import Served

MakeConfig = Callable[..., Config]
OTHER = TableName("default", "other")
TABLES = (DEFAULT_TABLE, OTHER)
SEGMENT_BYTES = 65_536


class Answer(Enum):
    SERVED = "all keys of both tables have their newest values"
    ONE = "default/default is refused with the file, the other is served"
    BOTH = "both tables are refused, each with its file"
    START = "the start is refused with the file"
    UNSEEN = "an earlier state is served: nothing shows that there was more; `kvsd restored` is the remedy"


SERVED, ONE, BOTH, START, UNSEEN = Answer


@dataclass(frozen=True)
class Snapshots:
    """One data folder at four moments, and what its tables held last."""

    old: Path
    """Stopped in order, some time ago."""
    earlier: Path
    """As a kill would have left it, earlier in the last run."""
    killed: Path
    """As a kill would have left it, after the last write."""
    stopped: Path
    """Stopped in order, after the last write."""
    items: dict[bytes, bytes]


_made: list[Snapshots] = []


@pytest.fixture
async def snapshots(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    if not _made:
        _made.append(await make_snapshots(make_config, tmp_path_factory.mktemp("snapshots")))
    return _made[0]


async def make_snapshots(make_config: MakeConfig, folder: Path) -> Snapshots:
    root = folder / "root"
    config = make_config(tls=False, root_dir=root, segment_bytes=SEGMENT_BYTES, compaction=False)
    items: dict[bytes, bytes] = {}

    async def write(server: kvsd.server.Server, count: int) -> None:
        client = Served(server.tables, server.dispatcher, Reports())
        for number in range(len(items), len(items) + count):
            key, value = b"key-%d" % number, b"%d" % number * 5_000
            items[key] = value
            for table in TABLES:
                assert await client.ask(table, Set(key, value), Set(b"counter", b"%d" % number)) == [None, None]

    async with kvsd.server.run(config, Reports()) as server:
        await server.tables.create(OTHER)
        await write(server, 9)
    shutil.copytree(root, folder / "old")
    async with kvsd.server.run(config, Reports()) as server:
        await write(server, 13)
        shutil.copytree(root, folder / "earlier")
        await write(server, 2)
        folders = [root / "namespaces" / "default" / name.table for name in TABLES]
        sealed = [path for table in folders for path in segments(table)[:-1]]
        await until(lambda: all(hint.path_of(path).exists() for path in sealed), "no hints")
        shutil.copytree(root, folder / "killed")
    for name in ("earlier", "killed"):
        assert [path.name for path in segments(folder / name / "namespaces/default/default")] == [
            path.name for path in segments(root / "namespaces/default/default")
        ], "the last segment must be the same one"
    items[b"counter"] = b"%d" % (len(items) - 1)
    return Snapshots(folder / "old", folder / "earlier", folder / "killed", root, items)


# What is done


class Folder:
    """A data folder that something is done to, and older copies of it."""

    def __init__(self, root: Path, snapshots: Snapshots) -> None:
        self.root = root
        self.snapshots = snapshots

    def of(self, thing: str, root: Path | None = None, table: TableName = DEFAULT_TABLE) -> Path:
        root = root or self.root
        folder = root / "namespaces" / "default" / table.table
        if thing in ("catalog", "lock", "namespaces"):
            return root / thing
        if thing == "table":
            return folder
        if thing == "reserve":
            return folder / "reserve"
        found = segments(folder)
        path = {"first": found[0], "middle": found[len(found) // 2], "last": found[-1]}[thing.split(maxsplit=1)[0]]
        return hint.path_of(path) if "hint" in thing else path

    def removed(self, thing: str) -> None:
        path = self.of(thing)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def emptied(self, thing: str) -> None:
        for path in self.of(thing).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def cut(self, thing: str) -> None:
        path = self.of(thing)
        data = path.read_bytes().rstrip(b"\0")
        path.write_bytes(data[: len(data) // 2])

    def put_back(self, thing: str, source: Path) -> None:
        path, old = self.of(thing), source / self.of(thing).relative_to(self.root)
        self.removed(thing)
        shutil.copytree(old, path) if old.is_dir() else shutil.copy(old, path)

    def old(self, thing: str) -> None:
        self.put_back(thing, self.snapshots.old)

    def earlier(self, thing: str) -> None:
        self.put_back(thing, self.snapshots.earlier)

    def swapped(self, thing: str) -> None:
        one, other = self.of(thing), self.of(thing, table=OTHER)
        aside = self.root / "aside"
        one.rename(aside)
        other.rename(one)
        aside.rename(other)

    def copied(self, thing: str) -> None:
        path = self.of(thing)
        beside = path.with_name(path.name + "-copy")
        shutil.copytree(path, beside) if path.is_dir() else shutil.copy(path, beside)

    def renamed(self, thing: str) -> None:
        path = self.of(thing)
        path.rename(path.with_name(path.name + "-moved"))

    def old_suffix(self, thing: str) -> None:
        path = self.of(thing)
        path.rename(path.with_suffix(".log"))

    def both_suffixes(self, thing: str) -> None:
        path = self.of(thing)
        shutil.copy(path, path.with_suffix(".log"))

    def other_number(self, thing: str) -> None:
        path = self.of(thing)
        shutil.copy(path, path.with_name("0000000099-0000" + path.suffix))


CASES: dict[tuple[str, str], tuple[Answer, Answer]] = {
    # (thing, what was done): (the server was stopped, killed)
    ("catalog", "removed"): (SERVED, SERVED),
    ("catalog", "renamed"): (SERVED, SERVED),
    ("catalog", "copied"): (SERVED, SERVED),
    ("catalog", "cut"): (START, START),
    ("catalog", "old"): (SERVED, SERVED),
    ("lock", "removed"): (SERVED, SERVED),
    ("lock", "cut"): (SERVED, SERVED),
    ("lock", "old"): (SERVED, SERVED),
    ("lock", "renamed"): (SERVED, SERVED),
    ("lock", "copied"): (SERVED, SERVED),
    ("namespaces", "removed"): (BOTH, BOTH),
    ("namespaces", "emptied"): (BOTH, BOTH),
    ("namespaces", "renamed"): (BOTH, BOTH),
    ("namespaces", "copied"): (SERVED, SERVED),
    ("namespaces", "old"): (BOTH, UNSEEN),
    ("namespaces", "earlier"): (BOTH, UNSEEN),
    ("table", "removed"): (ONE, ONE),
    ("table", "emptied"): (ONE, ONE),
    ("table", "renamed"): (ONE, ONE),
    ("table", "copied"): (SERVED, SERVED),
    ("table", "swapped"): (BOTH, BOTH),
    ("table", "old"): (ONE, UNSEEN),
    ("table", "earlier"): (ONE, UNSEEN),
    ("reserve", "removed"): (SERVED, SERVED),
    ("reserve", "cut"): (SERVED, SERVED),
    ("reserve", "swapped"): (SERVED, SERVED),
    ("reserve", "renamed"): (SERVED, SERVED),
    ("reserve", "copied"): (SERVED, SERVED),
    **{
        (f"{which} segment", done): answers
        for which in ("first", "middle", "last")
        for done, answers in {
            "removed": (ONE, ONE),
            "renamed": (ONE, ONE),
            "cut": (ONE, ONE),
            "swapped": (BOTH, BOTH),
            "copied": (SERVED, SERVED),
            "old_suffix": (SERVED, SERVED),
            "both_suffixes": (ONE, ONE),
            "other_number": (ONE, ONE),
        }.items()
    },
    ("first segment", "old"): (SERVED, SERVED),
    ("last segment", "earlier"): (ONE, UNSEEN),
    # The last one of a killed run has no hint yet, and no clean stop has seen it.
    ("last segment", "removed"): (ONE, UNSEEN),
    ("last segment", "renamed"): (ONE, UNSEEN),
    ("last segment", "cut"): (ONE, UNSEEN),
    **{
        (f"{which} hint", done): (SERVED, SERVED)
        for which in ("first", "middle", "last")
        for done in ("removed", "cut", "swapped", "copied", "renamed", "other_number")
    },
    ("first hint", "old"): (SERVED, SERVED),
}


def cases() -> Iterator[object]:
    for (thing, done), (stopped, killed) in CASES.items():
        yield pytest.param(thing, done, True, stopped, id=f"{thing} {done}, stopped")
        if thing != "last hint":
            yield pytest.param(thing, done, False, killed, id=f"{thing} {done}, killed")


@pytest.mark.parametrize(("thing", "done", "stopped", "answer"), list(cases()))
async def test_a_start_serves_rightly_or_refuses_by_name(
    make_config: MakeConfig,
    snapshots: Snapshots,
    tmp_path: Path,
    thing: str,
    done: str,
    stopped: bool,
    answer: Answer,
) -> None:
    root = tmp_path / "found"
    shutil.copytree(snapshots.stopped if stopped else snapshots.killed, root)
    getattr(Folder(root, snapshots), done)(thing)
    before = files(root)
    config = make_config(
        tls=False, root_dir=root, segment_bytes=SEGMENT_BYTES, compaction=False, dropped_keep_seconds=0
    )
    reports = Reports()
    if answer is START:
        with pytest.raises(ConfigError, match=str(root / thing)):
            async with kvsd.server.run(config, reports):
                pass
        assert without_lock(files(root)) == without_lock(before)
        return
    async with kvsd.server.run(config, reports) as server:
        client = Served(server.tables, server.dispatcher, Reports())
        found = {table: await read(client, table, snapshots.items) for table in TABLES}
    refused = {SERVED: 0, ONE: 1, BOTH: 2, UNSEEN: 0}[answer]
    for table in TABLES[:refused]:
        error = found[table]
        assert isinstance(error, KvsdError), f"{table} was served: {error}"
        folder = root / "namespaces" / "default" / table.table
        assert str(folder) in str(error)
        assert str(folder) in str(reports.take("a table cannot be opened"))
        # A refusal changes nothing.
        inside = f"namespaces/default/{table.table}/"
        assert {n: d for n, d in files(root).items() if n.startswith(inside)} == {
            n: d for n, d in before.items() if n.startswith(inside)
        }
    for table in TABLES[refused:]:
        if answer is UNSEEN and found[table] != snapshots.items:
            assert_earlier(found[table], snapshots.items)
        else:
            assert found[table] == snapshots.items
    if answer is UNSEEN:
        assert found[DEFAULT_TABLE] != snapshots.items, "noticed after all: the table of cases says otherwise"
    if done in ("copied", "renamed") and thing == "table":
        assert str(root) in str(reports.take("a folder that is no table's stays where it is")["path"])
    if thing == "catalog" and done in ("removed", "renamed"):
        assert str(root) in str(
            reports.take("there is no catalog: every folder is a table, with the server's settings")
        )
    # Whatever nobody has dropped is still there, whether it was understood or not.
    assert {path for path in before if path.endswith(("-copy", "-moved"))} <= set(files(root))
    assert not (root / "dropped").exists()
    assert reports.faults == []


def without_lock(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in found.items() if name != "lock"}


async def read(client: Served, table: TableName, items: dict[bytes, bytes]) -> dict[bytes, bytes] | KvsdError:
    results = await client.ask(table, *map(Get, items))
    errors = [result for result in results if isinstance(result, KvsdError)]
    if errors:
        assert len(errors) == len(results), "refused in part"
        return errors[0]
    return {key: value for key, value in zip(items, results, strict=True) if value is not None}


def assert_earlier(found: object, items: dict[bytes, bytes]) -> None:
    """A state that the table had: its first keys, and the counter of that time."""
    assert isinstance(found, dict)
    count = len(found) - 1
    assert set(found) - {b"counter"} == {b"key-%d" % number for number in range(count)}
    assert all(found[key] == items[key] for key in found if key != b"counter")
    assert int(found[b"counter"]) in (count - 1, count - 2)


# What `kvsd restored` is for is in tests/cli/test_restored.py.
