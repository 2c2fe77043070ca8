"""Namespaces and tables through both clients, over TLS and down to the disk."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kvsd import aio, connect
from kvsd.client import administration
from kvsd.client.calls import Call
from kvsd.errors import Conflict, InvalidValue, ProtocolError, TableNotFound, TableUnavailable
from kvsd.protocol.administration import Report
from kvsd.protocol.messages import Message, Success
from kvsd.server import Server
from kvsd.server.catalog import MAX_TABLES

from .test_against_server import access, config, running
from .test_engine import db

__all__ = ["config", "db", "running"]


async def test_a_table_lives_from_create_to_drop(db: Any) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)
    await db.namespaces.create("shop")
    await db.tables.create("carts", namespace="shop", fsync="never", cache_bytes=0)
    carts = db.table("carts", namespace="shop")
    await carts.set("k", "v")
    assert await db.get("k") is None
    assert await db.namespaces.list() == ["default", "shop"]
    [entry] = await db.tables.list("shop")
    assert entry == ("shop", "carts", "writable", {"fsync": "never", "cache_bytes": 0})
    assert [entry.table for entry in await db.tables.list()] == ["default", "carts"]
    with pytest.raises(Conflict, match="exists already"):
        await db.tables.create("carts", namespace="shop")
    with pytest.raises(Conflict, match="drop them first"):
        await db.namespaces.drop("shop")

    info = await db.tables.info("carts", namespace="shop")
    assert (info.namespace, info.table, info.state, info.error) == ("shop", "carts", "writable", None)
    assert info.settings.own == {"fsync": "never", "cache_bytes": 0}
    assert info.status["keys"] == 1

    await db.tables.drop("carts", namespace="shop")
    with pytest.raises(TableNotFound):
        await carts.get("k")
    [dropped] = await db.tables.dropped("shop")
    assert (dropped.namespace, dropped.table) == ("shop", "carts")
    assert dropped.folder.startswith("shop.carts.")
    assert before < dropped.dropped_at <= datetime.now(UTC)
    assert await db.tables.dropped("default") == []
    await db.namespaces.drop("shop")
    assert await db.namespaces.list() == ["default"]


async def test_settings_are_changed_while_the_table_is_used(db: Any) -> None:
    await db.set("k", "v")
    settings = await db.tables.settings(fsync="interval", fsync_interval_ms=50)
    assert settings.own == {"fsync": "interval", "fsync_interval_ms": 50}
    assert settings.effective["fsync"] == "interval"
    assert await db.get("k") == b"v"
    again = await db.tables.settings("default", fsync="default")
    assert again.own == {"fsync_interval_ms": 50}
    assert again.effective["fsync"] == "always"
    assert await db.tables.settings(namespace="default") == again
    for changes in ({"colour": "red"}, {"fsync": "sometimes"}, {"cache_bytes": -1}):
        with pytest.raises(InvalidValue):
            await db.tables.settings(**changes)


async def test_a_table_is_reopened(db: Any) -> None:
    await db.set("k", "v")
    await db.tables.reopen()
    assert await db.get("k") == b"v"
    with pytest.raises(TableNotFound):
        await db.tables.reopen("none")
    with pytest.raises(TableNotFound):
        await db.tables.compact("none")
    with pytest.raises(Conflict, match="cannot be dropped"):
        await db.tables.drop("default")


async def test_a_client_makes_the_table_that_it_is_set_to_use(running: Server) -> None:
    named: dict[str, Any] = {**access(running), "namespace": "shop", "table": "carts"}
    async with aio.connect(**access(running)) as other:  # type: ignore[arg-type]
        await other.namespaces.create("shop")
    with connect(**named) as client:

        def use() -> None:
            with pytest.raises(TableNotFound):
                client.get("k")
            client.tables.create("carts")
            client.set("k", "v")
            assert client.tables.info().status["keys"] == 1
            assert client.get("k") == b"v"
            # What the connection uses is the table of this name, even if it is another one by now.
            client.tables.drop("carts")
            with pytest.raises(TableNotFound):
                client.get("k")
            client.tables.create("carts")
            assert client.get("k") is None
            client.set("k", "w")

        await asyncio.to_thread(use)


async def test_a_table_is_compacted(db: Any) -> None:
    for number in range(20):
        await db.set("k", bytes([number]) * 10_000)
    assert (await db.tables.compact(action="pause")).state == "paused"
    progress = await db.tables.compact()
    while progress.state == "running":
        progress = await db.tables.compact(action="status")
    assert (progress.state, progress.error, progress.segments_done) == ("idle", "", 1)
    assert progress.reclaimed_bytes > 180_000
    assert await db.get("k") == bytes([19]) * 10_000
    assert (await db.tables.info()).status["dead_bytes"] == 0
    settings = await db.tables.settings(compaction=False, compaction_garbage_ratio=0.25)
    assert settings.own == {"compaction": False, "compaction_garbage_ratio": 0.25}


CALLS: list[Call[Any]] = [
    administration.list_tables(None),
    administration.list_dropped(None),
    administration.info("a", "b"),
    administration.settings("a", "b", {}),
    administration.list_namespaces(),
    administration.compact("a", "b", "status"),
]

ENTRY = {"namespace": "a", "table": "b", "state": "closed", "settings": {}}

SENSELESS: list[Message] = [
    Success(None),
    *(
        Report(document if isinstance(document, bytes) else json.dumps(document).encode())
        for document in (
            b"",
            b"\xff",
            b"[" * 100_000,
            [],
            None,
            {"namespaces": [1], "tables": [None], "dropped": {}, "settings": [], "running": []},
            {
                "tables": [{**ENTRY, "settings": {"fsync": []}}],
                "dropped": [{**ENTRY, "folder": "f", "dropped_at": -1}],
                "x": [],
            },
            {"dropped": [{**ENTRY, "folder": "f", "dropped_at": 10**30}], "tables": [{}], "x": None},
        )
    ),
]


@pytest.mark.parametrize("reply", SENSELESS)
def test_a_report_that_makes_no_sense_is_a_protocol_error(reply: Message) -> None:
    for call in CALLS:
        with pytest.raises(ProtocolError):
            call.read(reply, 0.0)


@pytest.mark.parametrize(
    "parts",
    [
        {"effective": {}, "status": {"keys": [1]}, "error": None},
        {"effective": {}, "status": None, "error": {"code": 5, "message": ""}},
        {"effective": {}, "status": None, "error": "none"},
        {"effective": [], "status": None, "error": None},
        {"effective": {}, "status": None},
    ],
)
def test_a_part_of_a_report_that_makes_no_sense_is_a_protocol_error(parts: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        administration.info("a", "b").read(Report(json.dumps({**ENTRY, **parts}).encode()), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [b'{"":0},', b'"abcdef",'])
@pytest.mark.parametrize("size", [30_000_000, administration.MAX_REPORT_BYTES - 100])
def test_a_report_of_a_hostile_server_takes_bounded_time_and_memory(piece: bytes, size: int) -> None:
    report = Report(b'{"tables":[' + piece * (size // len(piece)) + b"0]}")
    started = time.thread_time()
    with pytest.raises(ProtocolError):
        administration.list_tables(None).read(report, 0.0)
    assert time.thread_time() - started < 2
    tracemalloc.start()
    with pytest.raises(ProtocolError):
        administration.list_tables(None).read(report, 0.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 128 << 20


def test_the_longest_list_of_tables_is_read() -> None:
    name = "n" * 64
    settings = dict.fromkeys(("fsync", "fsync_interval_ms", "cache_bytes", "segment_bytes", "compaction"), 10**9)
    entry = {"namespace": name, "table": name, "state": "unavailable", "settings": settings}
    document = json.dumps({"tables": [entry] * MAX_TABLES, "dropped": []}).encode()
    assert len(administration.list_tables(None).read(Report(document), 0.0)) == MAX_TABLES


def test_a_table_that_cannot_tell_says_why() -> None:
    error = {"code": "TABLE_UNAVAILABLE", "message": "the folder is missing"}
    document = {**ENTRY, "state": "unavailable", "effective": {}, "status": None, "error": error}
    info = administration.info("a", "b").read(Report(json.dumps(document).encode()), 0.0)
    assert info.status is None
    assert isinstance(info.error, TableUnavailable)
