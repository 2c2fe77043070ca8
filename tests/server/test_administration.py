"""Administration over the wire: its order among other requests, its bounds, and peers that misuse it or leave."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from typing import Any

import pytest

from kvsd.protocol import administration as a
from kvsd.protocol.administration import Report
from kvsd.protocol.engine import Store, Use
from kvsd.protocol.messages import Fail, Get, Message, Ping, Set, Success, encode
from kvsd.server import Server
from kvsd.server import catalog as catalog_module
from kvsd.server.catalog import Catalog
from kvsd.server.names import TableName
from kvsd.server.table_settings import TableSettings
from kvsd.server.tables import Tables
from kvsd.table.medium import Medium
from tests.conftest import Connect, Start

from .peers import LOGIN, NULL, Peer, Reports, until

DONE = Success(None)


def content(message: Message) -> dict[str, Any]:
    assert isinstance(message, Report)
    return json.loads(message.document)


async def asked(peer: Peer, message: Message) -> Message:
    await peer.say(message)
    return await peer.hear_one()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Creating a table waits for it."""
    opened = threading.Event()
    create = Catalog.create_table

    def waiting(self: Catalog, name: TableName, settings: TableSettings | None = None) -> None:
        assert opened.wait(10)
        create(self, name, settings)

    monkeypatch.setattr(Catalog, "create_table", waiting)
    return opened


async def test_what_is_pipelined_happens_in_its_order(start: Start, connect: Connect, tls: bool) -> None:
    server = await start(tls=tls)
    peer = await connect(server)
    replies: list[tuple[Message, Message]] = [
        (Set(b"k", b"of default"), DONE),
        (a.NamespaceCreate("shop"), DONE),
        (a.TableCreate("shop", "stock"), DONE),
        (Use("shop", "stock"), DONE),
        (Set(b"k", b"v"), DONE),
        (Get(b"k"), Success(b"v")),
        (a.TableReopen(None, None), DONE),
        (Get(b"k"), Success(b"v")),
        (a.TableDrop(None, "stock"), DONE),
        (Get(b"k"), Fail("TABLE_NOT_FOUND", "no table shop/stock: it was dropped")),
        (a.TableCreate("shop", "stock"), DONE),
        (Get(b"k"), DONE),
        (Store(None, "stock", b"k", b"w"), DONE),
        (a.TableDrop("shop", "stock"), DONE),
        (a.NamespaceDrop("shop"), DONE),
        (Use("default", "default"), DONE),
        (Get(b"k"), Success(b"of default")),
    ]
    await peer.say(*(request for request, _ in replies))
    assert await peer.hear(len(replies)) == [reply for _, reply in replies]


async def test_reports_say_what_there_is(start: Start, connect: Connect) -> None:
    peer = await connect(await start(tls=False))
    assert await asked(peer, a.TableCreate(None, "t", (("fsync", "interval"), ("cache_bytes", "1MiB")))) == DONE
    assert content(await asked(peer, a.NamespaceList())) == {"namespaces": ["default"]}
    listed = content(await asked(peer, a.TableList(None)))
    own = {"fsync": "interval", "cache_bytes": 1 << 20}
    assert listed["tables"][1] == {"namespace": "default", "table": "t", "state": "closed", "settings": own}
    info = content(await asked(peer, a.TableInfo(None, "t")))
    assert (info["state"], info["settings"], info["error"]) == ("writable", own, None)
    assert info["effective"]["segment_bytes"] == 128 << 20
    assert info["status"]["keys"] == 0
    changed = content(await asked(peer, a.TableSettings(None, "t", (("fsync", "default"),))))
    assert changed["settings"] == {"cache_bytes": 1 << 20}
    assert changed["effective"]["fsync"] == "always"
    assert await asked(peer, a.TableDrop(None, "t")) == DONE
    [dropped] = content(await asked(peer, a.TableList("default")))["dropped"]
    assert dropped["folder"] == f"default.t.{dropped['dropped_at']}"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (a.TableCreate(None, "../../etc"), "INVALID_VALUE"),
        (a.TableCreate("..", "t"), "TABLE_NOT_FOUND"),
        (a.TableCreate(None, ""), "INVALID_VALUE"),
        (a.TableCreate(None, "t" * 65), "INVALID_VALUE"),
        (a.TableCreate(None, "default"), "CONFLICT"),
        (a.TableCreate(None, "t", (("fsync", "9" * 8_000),)), "INVALID_VALUE"),
        (a.TableCreate(None, "t", (("cache_bytes", "9" * 8_000),)), "INVALID_VALUE"),
        (a.TableCreate(None, "t", (("\x1b[2J", "1"),) * 1_000), "INVALID_VALUE"),
        (a.TableCreate(None, "\x00"), "INVALID_VALUE"),
        (a.TableList("/"), "TABLE_NOT_FOUND"),
        (a.TableInfo("default", "n" * 8_000), "TABLE_NOT_FOUND"),
        (a.TableSettings(None, None, (("__class__", "1"),)), "INVALID_VALUE"),
        (a.TableDrop(None, "default"), "CONFLICT"),
        (a.TableDrop(None, "none"), "TABLE_NOT_FOUND"),
        (a.TableReopen("none", None), "TABLE_NOT_FOUND"),
        (a.NamespaceCreate("A"), "INVALID_VALUE"),
        (a.NamespaceCreate("default"), "CONFLICT"),
        (a.NamespaceDrop("default"), "CONFLICT"),
        (a.NamespaceDrop("none"), "TABLE_NOT_FOUND"),
        (a.Compact(None, None, "explode"), "UNEXPECTED_MESSAGE"),
        (a.Compact(None, "none", "start"), "TABLE_NOT_FOUND"),
        (Report(b"{}"), "UNEXPECTED_MESSAGE"),
    ],
)
async def test_what_cannot_be_done_is_refused_and_the_conversation_goes_on(
    start: Start, connect: Connect, message: Message, code: str
) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    await peer.say(message, Get(b"k"))
    refused, got = await peer.hear(2)
    assert isinstance(refused, Fail)
    assert (refused.code, got) == (code, DONE)
    assert len(server.tables) == 1


async def test_a_command_waits_for_the_replies_before_it_and_others_for_the_command(
    start: Start, connect: Connect, gate: threading.Event
) -> None:
    server = await start(tls=False)
    peer, other = await connect(server), await connect(server)
    await peer.say(a.TableCreate(None, "t"), Store(None, "t", b"k", b"v"), Ping(None, None))
    session = await commanded(server)
    await other.say(Set(b"k", b"v"))
    assert await other.hear_one() == DONE, "another connection is served meanwhile"
    assert session._command is not None
    gate.set()
    created, stored, _ = await peer.hear(3)
    assert (created, stored) == (DONE, DONE)


async def commanded(server: Server) -> Any:
    await until(lambda: any(one._command is not None for one in server._services.sessions), "no command")
    return next(one for one in server._services.sessions if one._command is not None)


async def test_a_peer_that_asks_for_lists_without_reading_keeps_one_of_them_in_memory(
    start: Start, connect: Connect
) -> None:
    server = await start(tls=False)
    for number in range(300):
        await server.tables.create(TableName("default", f"t{number:050}"))
    reader = await connect(server)
    list_bytes = len(encode(await asked(reader, a.TableList(None))))
    await reader.close()
    flooding = await connect(server, receive_bytes=4096)
    count = 400
    await flooding.say(encode(a.TableList(None)) * count)
    session = await commanded(server)
    await until(lambda: session._replies.is_paused, "all was taken")
    for _ in range(200):
        await asyncio.sleep(0)
    assert 0 < len(session._replies._unsent) + session._transport.get_write_buffer_size() <= list_bytes
    assert 0 < server._services.budget.held_bytes <= list_bytes
    assert not session._replies.turns
    for _ in range(count):
        assert len(await flooding.read(list_bytes)) == list_bytes


async def test_a_list_that_the_memory_budget_has_no_room_for_is_refused(start: Start, connect: Connect) -> None:
    server = await start(tls=False, memory_bytes=20 << 10)
    for number in range(400):
        await server.tables.create(TableName("default", f"t{number}"))
    peer = await connect(server)
    refused = await asked(peer, a.TableList(None))
    assert isinstance(refused, Fail)
    assert refused.code == "BUSY"
    await peer.ping()


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_a_change_is_carried_out_although_its_peer_has_left(
    start: Start, connect: Connect, gate: threading.Event, how: str
) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    await peer.say(a.TableCreate(None, "t"))
    await until(lambda: server.tables.changes, "not begun")
    if how == "reset":
        peer.reset()
    else:
        peer.end()
    gate.set()
    await until(lambda: len(server.tables) == 2, "not made")
    if how == "end":
        assert await peer.rest() == NULL, "a half-closed peer still gets the reply"


async def test_a_connection_is_not_idle_while_its_command_runs(
    start: Start, connect: Connect, gate: threading.Event
) -> None:
    server = await start(tls=False, idle_timeout_seconds=0.05)
    peer = await connect(server)
    await peer.say(a.TableCreate(None, "t"))
    await until(lambda: server.tables.changes, "not begun")
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(0.2, over.set_result, None)
    await over
    gate.set()
    assert await peer.hear_one() == DONE


async def test_a_stop_waits_for_a_command_and_answers_it(start: Start, connect: Connect, gate: threading.Event) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    await peer.say(a.TableCreate(None, "t"))
    await until(lambda: server.tables.changes, "not begun")
    stopping = asyncio.create_task(server._stop_listening())
    await until(lambda: all(one._ending for one in server._services.sessions), "no drain")
    gate.set()
    await peer.expect(NULL)
    await peer.expect_end()
    await stopping


async def test_a_fault_of_ours_in_a_command_ends_its_connection_only(
    start: Start, connect: Connect, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start(tls=False)
    peer, other = await connect(server), await connect(server)
    monkeypatch.setattr(Tables, "namespaces", lambda _: 1 // 0)
    await peer.say(a.NamespaceList())
    peer.end()
    told = await peer.rest()
    assert told.startswith(encode(Fail("INTERNAL", ""))[:18])
    reports.take("internal fault in a session")
    await other.ping()


async def test_a_command_before_the_login_is_no_command(start: Start, connect: Connect) -> None:
    server = await start(tls=False)
    peer = await connect(server, login=False)
    await peer.say(a.NamespaceCreate("shop"), LOGIN)
    assert b"UNAUTHENTICATED" in await peer.rest()
    assert server.tables.namespaces() == ["default"]


async def test_a_full_disk_refuses_the_change_and_the_next_attempt_succeeds(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = await connect(await start(tls=False))
    rename = Medium.rename

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Medium, "rename", full)
    refused = await asked(peer, a.NamespaceCreate("shop"))
    assert isinstance(refused, Fail)
    assert refused.code == "READ_ONLY"
    assert content(await asked(peer, a.NamespaceList())) == {"namespaces": ["default"]}
    monkeypatch.setattr(Medium, "rename", rename)
    assert await asked(peer, a.NamespaceCreate("shop")) == DONE


async def test_there_are_no_more_tables_than_the_catalog_may_hold(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "MAX_TABLES", 3)
    peer = await connect(await start(tls=False))
    for make in (lambda name: a.TableCreate(None, name), a.NamespaceCreate):
        assert await asked(peer, make("a")) == DONE
        assert await asked(peer, make("b")) == DONE
        refused = await asked(peer, make("c"))
        assert isinstance(refused, Fail)
        assert refused.code == "CONFLICT"


async def test_the_info_of_a_table_that_cannot_be_opened_says_why(
    start: Start, connect: Connect, reports: Reports
) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    assert await asked(peer, a.TableCreate(None, "t")) == DONE
    folder = server.config.storage.root_dir / "namespaces" / "default" / "t"
    folder.rename(folder.with_name("moved-away"))
    info = content(await asked(peer, a.TableInfo(None, "t")))
    assert (info["state"], info["status"], info["error"]["code"]) == ("unavailable", None, "TABLE_UNAVAILABLE")
    assert "restore it" in info["error"]["message"]
    reopened = await asked(peer, a.TableReopen(None, "t"))
    assert isinstance(reopened, Fail)
    assert reopened.code == "TABLE_UNAVAILABLE"
    folder.mkdir()
    emptied = await asked(peer, a.TableReopen(None, "t"))
    assert isinstance(emptied, Fail)
    assert emptied.code == "CORRUPT_LOG"
    folder.rmdir()
    folder.with_name("moved-away").rename(folder)
    assert await asked(peer, a.TableReopen(None, "t")) == DONE
    assert content(await asked(peer, a.TableInfo(None, "t")))["state"] == "writable"
    for _ in range(3):
        reports.take("a table cannot be opened")
