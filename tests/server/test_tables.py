"""Tables of a running server: opened when asked for, closed past a cap, changed as it runs; no Request is swallowed."""

from __future__ import annotations

import asyncio
import errno
import gc
import resource
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kvsd.config import Config, StorageSettings
from kvsd.errors import Conflict, KvsdError, Loading, ReadOnly, TableNotFound, TableUnavailable
from kvsd.protocol import messages
from kvsd.server import Server
from kvsd.server import server as server_module
from kvsd.server.authentication import Principal
from kvsd.server.catalog import Catalog
from kvsd.server.clock import WallClock
from kvsd.server.directory import folder_of
from kvsd.server.dispatcher import Dispatcher
from kvsd.server.names import DEFAULT_TABLE, TableName
from kvsd.server.table_settings import TableSettings
from kvsd.server.tables import Tables
from kvsd.table.budget import Budget
from kvsd.table.compactor import CompactionOptions
from kvsd.table.medium import Medium
from kvsd.table.request import Compact, Get, Mailbox, Operation, Origin, Request, Result, Set
from kvsd.table.store import Store
from kvsd.table.workers import Pools
from kvsd.types import Fsync
from tests.conftest import Connect, Start
from tests.table.medium import Call, FaultyMedium

from .peers import NULL, Reports, until

ANN = Principal("ann")
T = TableName("default", "t")
U = TableName("default", "u")

MIB = 1 << 20


class Served:
    """Tables, and a client of them that needs no wire."""

    def __init__(self, tables: Tables, dispatcher: Dispatcher, reports: Reports) -> None:
        self.tables = tables
        self.dispatcher = dispatcher
        self.reports = reports

    def mailbox(self, name: TableName) -> Mailbox:
        found = self.dispatcher.mailbox(ANN, name)
        if isinstance(found, KvsdError):
            raise found
        return found

    def ask_nowait(self, mailbox: Mailbox, *operations: Operation) -> asyncio.Future[list[Result]]:
        request = Request(operations, Origin(Budget(MIB)), asyncio.get_running_loop().create_future())
        mailbox.put_nowait(request)
        return request.future

    async def ask(self, to: TableName | Mailbox, *operations: Operation) -> list[Result]:
        mailbox = self.mailbox(to) if isinstance(to, TableName) else to
        async with asyncio.timeout(10):
            return await self.ask_nowait(mailbox, *operations)

    def open_names(self) -> list[str]:
        return sorted(actor.name for actor in self.tables.actors)


@asynccontextmanager
async def served(
    root: Path,
    *,
    medium: Medium | None = None,
    patience_seconds: float = 10.0,
    clock: WallClock | None = None,
    **given: object,
) -> AsyncIterator[Served]:
    reports, dispatcher = Reports(), Dispatcher()
    pools = Pools(commits=ThreadPoolExecutor(8), reads=ThreadPoolExecutor(2), compactions=ThreadPoolExecutor(1))
    catalog = Catalog(root)
    catalog.settle()
    tables = Tables(
        catalog,
        StorageSettings(root_dir=root, **{"cache_bytes": 0, "segment_bytes": 65_536, **given}),  # type: ignore[arg-type]
        pools,
        dispatcher,
        reports,  # type: ignore[arg-type]
        medium=medium,
        patience_seconds=patience_seconds,
        clock=clock,
    )
    tables.start()
    try:
        yield Served(tables, dispatcher, reports)
    finally:
        async with asyncio.timeout(20):
            await tables.stop()
        for pool in (pools.commits, pools.reads):
            pool.shutdown()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert reports.faults == []


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Medium, "sync", lambda *_: None)
    monkeypatch.setattr(Medium, "sync_directory", lambda *_: None)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Holds all recoveries until it is set."""
    opened = threading.Event()
    recover = Store.recover

    def recover_late(self: Store) -> None:
        assert opened.wait(20)
        recover(self)

    monkeypatch.setattr(Store, "recover", recover_late)
    yield opened
    opened.set()


# Opening


async def test_a_table_opens_when_it_is_asked_for(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        assert [entry.state for entry in one.tables.list()] == ["closed", "closed"]
        assert await one.ask(T, Set(b"k", b"v"), Get(b"k")) == [None, b"v"]
        assert [entry.state for entry in one.tables.list()] == ["closed", "writable"]
    async with served(tmp_path) as one:
        assert await one.ask(T, Get(b"k")) == [b"v"]
        assert one.open_names() == ["default/t"]


async def test_requests_wait_for_a_quick_load_and_are_told_of_a_slow_one(tmp_path: Path, gate: threading.Event) -> None:
    async with served(tmp_path, patience_seconds=0) as one:
        [refused] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        assert isinstance(refused, Loading)
        assert refused.retryable
        assert str(refused) == "table default/default is being loaded, 0 %"
        [at_once] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        assert isinstance(at_once, Loading)
        gate.set()
        await one.tables.load(DEFAULT_TABLE)
        assert await one.ask(DEFAULT_TABLE, Get(b"k")) == [None]
        gate.clear()
        await one.tables.create(T)
    gate.set()
    async with served(tmp_path) as one:
        gate.clear()
        waiting = one.ask_nowait(one.mailbox(T), Get(b"k"))
        assert one.tables.list()[1].state == "loading"
        gate.set()
        assert await asyncio.wait_for(waiting, 10) == [None]


async def test_the_progress_of_a_load_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()
    recover = Store.recover

    def recover_slowly(self: Store) -> None:
        self.recovering.bytes_total, self.recovering.bytes_done = 200, 83
        reached.set()
        assert go_on.wait(20)
        recover(self)

    monkeypatch.setattr(Store, "recover", recover_slowly)
    async with served(tmp_path, patience_seconds=0) as one:
        opening = asyncio.create_task(one.tables.load(DEFAULT_TABLE))
        await asyncio.to_thread(reached.wait, 20)
        [refused] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        go_on.set()
        await opening
    assert isinstance(refused, Loading)
    assert str(refused) == "table default/default is being loaded, 41 %"


async def test_a_table_that_loads_or_commits_slowly_delays_no_other(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
    slow = FaultyMedium(tmp_path)
    gate = slow.hold(Call.SYNC)
    async with served(tmp_path, medium=slow) as one:
        held = one.ask_nowait(one.mailbox(T), Set(b"k", b"v"))
        assert await asyncio.to_thread(gate.reached.wait, 20)
        one.tables._open_tables._medium = Medium()
        for n in range(20):
            assert await one.ask(DEFAULT_TABLE, Set(b"k", b"%d" % n), Get(b"k")) == [None, b"%d" % n]
        assert not held.done()
        gate.opened.set()
        assert await asyncio.wait_for(held, 10) == [None]


async def test_a_table_that_cannot_be_opened_keeps_the_reason_until_it_is_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as one:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "recover", fail)
            [refused] = await one.ask(DEFAULT_TABLE, Get(b"k"))
            with pytest.raises(TableUnavailable):
                await one.tables.reopen(DEFAULT_TABLE)
            one.reports.take("a table cannot be opened")
        assert isinstance(refused, TableUnavailable)
        assert one.tables.unavailable == 1
        [still_refused] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        assert isinstance(still_refused, TableUnavailable)
        assert (await one.tables.info(DEFAULT_TABLE)).entry.state == "unavailable"
        await one.tables.reopen(DEFAULT_TABLE)
        assert await one.ask(DEFAULT_TABLE, Get(b"k")) == [None]
        one.reports.take("a table cannot be opened")


def fail(_: Store) -> None:
    raise OSError(errno.EIO, "Input/output error")


async def test_a_table_whose_folder_is_missing_is_not_made_anew(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        shutil.rmtree(folder_of(tmp_path, T))
        [refused] = await one.ask(T, Get(b"k"))
        assert isinstance(refused, TableUnavailable)
        assert "is missing; restore it, or drop the table" in str(refused)
        one.reports.take("a table cannot be opened")
        await one.tables.drop(T)


# The cap


async def test_the_least_recently_used_table_closes_and_opens_again(tmp_path: Path) -> None:
    names = [TableName("default", f"t{n}") for n in range(4)]
    async with served(tmp_path, max_open_tables=2) as one:
        for name in names:
            await one.tables.create(name)
        for name in names[:2]:
            await one.ask(name, Set(b"k", b"v"))
        await one.ask(names[0], Get(b"k"))
        await one.ask(names[2], Set(b"k", b"v"))
        assert one.open_names() == ["default/t0", "default/t2"]
        assert await one.ask(names[1], Get(b"k")) == [b"v"]
        assert one.open_names() == ["default/t1", "default/t2"]


async def test_no_request_is_swallowed_by_tables_that_close_under_it(tmp_path: Path) -> None:
    """Mailboxes are held for long, as sessions do, while three tables share one place."""
    names = [TableName("default", f"t{n}") for n in range(3)]
    async with served(tmp_path, max_open_tables=1) as one:
        for name in names:
            await one.tables.create(name)
        mailboxes = [one.mailbox(name) for name in names]

        async def use(number: int) -> None:
            for n in range(30):
                mailbox = mailboxes[(number + n) % 3]
                key = b"%d" % number
                assert await one.ask(mailbox, Set(key, b"%d" % n), Get(key)) == [None, b"%d" % n]

        async with asyncio.timeout(60):
            await asyncio.gather(*map(use, range(6)))
        assert len(one.open_names()) == 1


async def test_a_table_that_waits_for_a_place_gets_that_of_one_which_was_being_reopened(
    tmp_path: Path, gate: threading.Event
) -> None:
    gate.set()
    async with served(tmp_path, max_open_tables=1) as one:
        await one.tables.create(T)
        await one.ask(DEFAULT_TABLE, Get(b"k"))
        gate.clear()
        reopening = asyncio.create_task(one.tables.reopen(DEFAULT_TABLE))
        await until(lambda: one.tables.list()[0].state == "loading", "not reopened")
        waiting = one.ask_nowait(one.mailbox(T), Get(b"k"))
        await until(lambda: len(one.tables._open_tables) == 2, "not asked for")
        gate.set()
        await reopening
        assert await asyncio.wait_for(waiting, 10) == [None]
        assert one.open_names() == ["default/t"]


async def test_a_request_behind_the_end_of_an_actor_is_served_by_the_next(tmp_path: Path) -> None:
    async with served(tmp_path, max_open_tables=1) as one:
        await one.tables.create(T)
        mailbox = one.mailbox(DEFAULT_TABLE)
        await one.ask(mailbox, Set(b"k", b"v"))
        [slot] = one.tables._open_tables
        closing = asyncio.create_task(one.tables._open_tables.close(slot))
        await asyncio.sleep(0)
        late = one.ask_nowait(mailbox, Get(b"k"))
        await closing
        assert await asyncio.wait_for(late, 10) == [b"v"]


async def test_an_actor_whose_task_dies_leaves_no_request_without_an_answer(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        mailbox = one.mailbox(DEFAULT_TABLE)
        await one.ask(mailbox, Get(b"k"))
        [slot] = one.tables._open_tables
        assert slot.actor is not None
        slot.actor._serve = lambda _: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        slot.actor._crash = lambda _: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        first = one.ask_nowait(mailbox, Get(b"k"))
        second = one.ask_nowait(mailbox, Get(b"k"))
        [refused] = await asyncio.wait_for(second, 10)
        assert isinstance(refused, TableUnavailable)
        assert not first.done()  # it went down with the actor: its session sees the end of the drain
        assert isinstance(one.reports.take("a table was not closed in order")["exc_info"], ZeroDivisionError)
        await one.tables.reopen(DEFAULT_TABLE)
        assert await one.ask(mailbox, Get(b"k")) == [None]


# Administration


async def test_settings_take_effect_at_once_and_last(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T, TableSettings(fsync=Fsync.INTERVAL))
        await one.ask(T, Set(b"k", b"v"))
        changed = TableSettings(fsync=Fsync.NEVER, segment_bytes=100_000)
        changes = {"fsync": "never", "segment_bytes": "100000"}
        assert (await one.tables.change_settings(T, changes))[0] == changed
        info = await one.tables.info(T)
        assert (info.entry.settings, info.effective.fsync, info.effective.segment_bytes) == (
            changed,
            Fsync.NEVER,
            100_000,
        )
        assert info.status is not None
        assert (info.status.keys, info.status.state) == (1, "writable")
        [actor] = one.tables.actors
        assert actor._store.log.options.fsync is Fsync.NEVER
    assert Catalog(tmp_path).tables[T] == changed


async def test_a_dropped_table_is_gone_for_those_who_held_it_and_its_name_is_free(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        held = one.mailbox(T)
        await one.ask(held, Set(b"k", b"v"))
        waiting = one.ask_nowait(held, Set(b"k", b"w"))
        await one.tables.drop(T)
        assert await waiting == [None], "what came before the drop is answered"
        [gone] = await one.ask(held, Get(b"k"))
        assert isinstance(gone, TableNotFound)
        for ask in (
            one.tables.info(T),
            one.tables.drop(T),
            one.tables.reopen(T),
            one.tables.change_settings(T, {}),
        ):
            with pytest.raises(TableNotFound):
                await ask
        with pytest.raises(TableNotFound):
            one.mailbox(T)
        assert [dropped.name for dropped in await one.tables.dropped()] == [T]
        await one.tables.create(T)
        assert await one.ask(T, Get(b"k")) == [None]
        with pytest.raises(Conflict):
            await one.tables.drop(DEFAULT_TABLE)


async def test_whoever_held_a_dropped_table_finds_the_new_one_of_its_name(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        held = one.mailbox(T)
        await one.ask(held, Set(b"k", b"v"))
        await one.tables.drop(T)
        await one.tables.create(T, TableSettings(fsync=Fsync.NEVER))
        assert await one.ask(held, Get(b"k")) == [None]
        assert one.mailbox(T) is held
        assert one.tables.list()[1].settings == TableSettings(fsync=Fsync.NEVER)
        await one.tables.drop(T)
        assert len(one.tables._dropped) == 1
        del held
        gc.collect()
        assert not one.tables._dropped, "a dropped table that nobody uses is kept in memory"


async def test_changes_of_different_settings_at_once_are_all_kept(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
        changes = {"fsync": "never", "segment_bytes": "1MiB", "cache_bytes": "0", "fsync_interval_ms": "7"}
        await asyncio.gather(
            *(one.tables.change_settings(DEFAULT_TABLE, {name: text}) for name, text in changes.items())
        )
        [entry] = one.tables.list()
        assert entry.settings == TableSettings(Fsync.NEVER, 7, 0, MIB)
        assert await one.ask(DEFAULT_TABLE, Get(b"k")) == [b"v"]


async def test_settings_that_stay_as_they_are_do_not_close_the_table(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
        before = one.tables.actors
        own, effective = await one.tables.change_settings(DEFAULT_TABLE, {"fsync": "default"})
        assert (own, effective.fsync) == (TableSettings(), Fsync.ALWAYS)
        assert one.tables.actors == before


async def test_settings_of_the_compaction_change_without_closing_the_table(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
        before = one.tables.actors
        changes = {"compaction_bytes_per_second": "1", "compaction": "off"}
        own, effective = await one.tables.change_settings(DEFAULT_TABLE, changes)
        assert (own.compaction, own.compaction_bytes_per_second) == (False, 1)
        assert effective.compaction_options == CompactionOptions(False, 1, 0.5)
        await one.ask(DEFAULT_TABLE, *(Set(b"k", bytes(50_000)) for _ in range(4)))
        # What is under way at the old pace, which would take hours, goes on at the new one.
        assert (await one.tables.compact(DEFAULT_TABLE, Compact("start"))).state == "running"
        await one.tables.change_settings(DEFAULT_TABLE, {"compaction_bytes_per_second": "0"})
        async with asyncio.timeout(10):
            while (progress := await one.tables.compact(DEFAULT_TABLE, Compact("status"))).state == "running":
                await asyncio.sleep(0)
        assert progress.segments_done > 1
        assert one.tables.actors == before


async def test_tables_that_are_made_later_take_their_share_of_the_cache(tmp_path: Path) -> None:
    async with served(tmp_path, cache_bytes=1_000_000) as one:

        async def cached(name: TableName) -> int:
            status = (await one.tables.info(name)).status
            assert status is not None
            return status.cached_bytes

        await one.ask(DEFAULT_TABLE, *(Set(b"%d" % number, bytes(10_000)) for number in range(90)))
        assert await cached(DEFAULT_TABLE) > 900_000
        await one.tables.create(T, TableSettings(cache_bytes=50_000))
        await one.tables.create(TableName("default", "u"))
        await one.tables.create(TableName("default", "v"))
        assert await cached(DEFAULT_TABLE) <= 250_000
        await one.tables.change_settings(DEFAULT_TABLE, {"cache_bytes": "100000"})
        assert await cached(DEFAULT_TABLE) <= 100_000


async def test_a_table_that_is_dropped_while_it_loads_does_not_come_back(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks while the catalog is written must not have the folder opened that is set aside."""
    drop_table, dropping = Catalog.drop_table, threading.Event()

    def held(self: Catalog, name: TableName) -> None:
        assert dropping.wait(20)
        drop_table(self, name)

    gate.set()
    async with served(tmp_path) as one:
        await one.tables.create(T)
        await one.ask(T, Set(b"k", b"old"))
    gate.clear()
    monkeypatch.setattr(Catalog, "drop_table", held)
    async with served(tmp_path) as one:
        mailbox = one.mailbox(T)
        first = one.ask_nowait(mailbox, Get(b"k"))
        await asyncio.sleep(0)
        drop = asyncio.create_task(one.tables.drop(T))
        await asyncio.sleep(0)
        gate.set()
        assert await first == [b"old"]
        while one.tables.actors:
            await asyncio.sleep(0)
        late = one.ask_nowait(mailbox, Get(b"k"))
        assert isinstance((await late)[0], TableNotFound)
        dropping.set()
        await drop
        await one.tables.create(T)
        assert await one.ask(T, Get(b"k")) == [None]
        assert await one.ask(T, Set(b"k", b"new")) == [None]
        # Who held the old one finds the new one.
        assert await one.ask_nowait(mailbox, Get(b"k")) == [b"new"]
    async with served(tmp_path) as one:
        assert await one.ask(T, Get(b"k")) == [b"new"]


async def test_a_full_disk_does_not_lift_the_cap(tmp_path: Path) -> None:
    names = [TableName("default", f"t{number}") for number in range(6)]
    async with served(tmp_path) as one:
        for name in names:
            await one.tables.create(name)
            await one.ask(name, Set(b"k", b"v"))
    medium = FaultyMedium(tmp_path / "namespaces")
    async with served(tmp_path, medium=medium, max_open_tables=2) as one:
        for name in names:
            assert await one.ask(name, Get(b"k")) == [b"v"]
            medium.fail(errno.ENOSPC, calls={Call.WRITE}, forever=True)
            assert isinstance((await one.ask(name, Set(b"k", bytes(100_000))))[0], ReadOnly)
            medium.heal()
            one.reports.take("disk full")
        assert len(one.open_names()) <= 2
        for name in names:
            assert await one.ask(name, Get(b"k")) == [b"v"]
        assert len(one.open_names()) <= 2


async def test_a_drop_that_the_disk_refuses_leaves_the_table_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        await one.ask(T, Set(b"k", b"v"))
        failing = FaultyMedium(tmp_path)
        failing.fail(errno.EIO)
        monkeypatch.setattr(one.tables._catalog, "_medium", failing)
        with pytest.raises(ReadOnly):
            await one.tables.drop(T)
        assert await one.ask(T, Get(b"k")) == [b"v"]


async def test_a_change_goes_on_when_whoever_asked_for_it_has_gone(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        creating = asyncio.create_task(one.tables.create(T))
        await until(lambda: one.tables.changes, "not begun")
        creating.cancel()
        await asyncio.wait([creating])
        await until(lambda: not one.tables.changes, "not ended")
        assert await one.ask(T, Set(b"k", b"v")) == [None]


async def test_reopening_brings_a_read_only_table_back_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    medium = FaultyMedium(tmp_path)
    async with served(tmp_path, medium=medium) as one:
        await one.ask(DEFAULT_TABLE, Set(b"k", b"v"))
        medium.fail(errno.EIO, calls={Call.SYNC})
        [refused] = await one.ask(DEFAULT_TABLE, Set(b"k", b"w"))
        assert isinstance(refused, ReadOnly)
        one.reports.take("the log failed; the table is read-only")
        assert one.tables.list()[0].state == "read-only"
        medium.heal()
        await one.tables.reopen(DEFAULT_TABLE)
        [value] = await one.ask(DEFAULT_TABLE, Get(b"k"))
        assert value in (b"v", b"w")
        assert await one.ask(DEFAULT_TABLE, Set(b"k", b"x"), Get(b"k")) == [None, b"x"]
    assert not medium.open_files


async def test_what_was_dropped_long_ago_is_removed_at_start(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create(T)
        await one.tables.drop(T)
        [dropped] = await one.tables.dropped()
    async with served(tmp_path, dropped_keep_seconds=0) as one:
        await until(lambda: not dropped.folder.exists(), "not removed")


async def test_namespaces_come_and_go(tmp_path: Path) -> None:
    async with served(tmp_path) as one:
        await one.tables.create_namespace("app")
        await one.tables.create(TableName("app", "t"))
        assert [entry.name for entry in one.tables.list("app")] == [TableName("app", "t")]
        with pytest.raises(Conflict):
            await one.tables.drop_namespace("app")
        await one.tables.drop(TableName("app", "t"))
        await one.tables.drop_namespace("app")
        assert one.tables.namespaces() == ["default"]
        with pytest.raises(TableNotFound):
            one.tables.list("app")


async def test_a_stop_answers_what_waits_for_a_load(tmp_path: Path, gate: threading.Event) -> None:
    async with served(tmp_path) as one:
        waiting = one.ask_nowait(one.mailbox(DEFAULT_TABLE), Set(b"k", b"v"))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(one.tables.stop())
        await asyncio.sleep(0)
        [answer] = await asyncio.wait_for(waiting, 10)
        assert isinstance(answer, TableUnavailable)
        late = one.ask_nowait(one.mailbox(DEFAULT_TABLE), Get(b"k"))
        gate.set()
        await stopping
        assert late.done()


# The whole server


async def test_the_server_listens_and_answers_loading_while_its_table_is_recovered(
    make_config: Callable[..., Config], connect: Connect, reports: Reports, gate: threading.Event
) -> None:
    server = Server(make_config(tls=False), reports)
    starting = asyncio.create_task(server.start())
    await until(lambda: hasattr(server, "tables") and server.tables._open_tables, "nothing is loaded")
    peer = await connect(server)
    await peer.say(messages.Get(b"k"))
    refused = await peer.hear_one()
    assert isinstance(refused, messages.Fail)
    assert (refused.code, starting.done()) == ("LOADING", False)
    gate.set()
    await starting
    await peer.say(messages.Set(b"k", b"v"))
    await peer.expect(NULL)
    assert "tables=1 unavailable=0 entries=1" in server.ready_line(server.addresses[0])
    await peer.close()
    await server.stop()


@pytest.mark.slow
async def test_a_thousand_tables_are_served_under_a_low_descriptor_limit(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = [TableName("default", f"t{n}") for n in range(1_000)]
    for name in names:
        folder_of(tmp_path / "data", name).mkdir(parents=True)
    monkeypatch.setattr(server_module, "_raise_descriptor_limit", lambda _: 1_024)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, before[1]))
    try:
        server = await start(tls=False, max_tcp_connections=100)
        client = Served(server.tables, server.dispatcher, Reports())
        async with asyncio.timeout(300):
            for first in range(0, 1_000, 50):
                some = names[first : first + 50]
                asked = [client.ask_nowait(client.mailbox(name), Set(b"k", str(name).encode())) for name in some]
                results = await asyncio.gather(*asked)
                for name, [result] in zip(some, results, strict=True):
                    if result is not None:  # a crowd may take longer to load than patience lasts
                        assert isinstance(result, Loading)
                        await server.tables.load(name)
                        assert await client.ask(name, Set(b"k", str(name).encode())) == [None]
            for name in names:
                while isinstance((found := await client.ask(name, Get(b"k")))[0], Loading):
                    pass
                assert found == [str(name).encode()]
        assert len(server.tables.actors) <= 256
        assert server.tables.unavailable == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Wrong(WallClock):
    """A clock that is not believed until a test says so."""

    def __init__(self) -> None:
        self.is_believed = False
        self.noted = 0

    def is_right(self) -> bool:
        return self.is_believed

    def remember(self) -> None:
        self.noted += 1


async def test_what_was_dropped_long_ago_by_a_clock_that_is_not_believed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvsd.server.tables._DOUBT_SECONDS", 0)
    async with served(tmp_path) as one:
        await one.tables.create(T)
        await one.tables.drop(T)
        [dropped] = await one.tables.dropped()
    clock = Wrong()
    async with served(tmp_path, dropped_keep_seconds=0, clock=clock) as one:
        for _ in range(50):
            await asyncio.sleep(0)
        assert await one.tables.dropped() == [dropped]
        assert clock.noted == 0
        clock.is_believed = True
        await until(lambda: not dropped.folder.exists(), "not removed")
        assert clock.noted == 1
    assert clock.noted == 2
