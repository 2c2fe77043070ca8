"""A file system that shuts down after an error, as XFS does: from some moment on every call fails, whatever it is.

What is in memory is served on, writes are refused, and nothing but the disk is lost: no actor ends, and the stop is as
quick as any.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from kvsd.client.aio import Client
from kvsd.errors import KvsdError, ReadOnly
from tests.crash.faulty_server import serve_on
from tests.crash.recording import Reports
from tests.table.medium import FaultyMedium

LOOPS = {"asyncio": asyncio.new_event_loop}

CACHED = b"cached"


async def work(client: Client) -> None:
    """All that touches files, until the disk is gone; each answer is a value or an error of ours."""
    for number in range(500):
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(client.set, f"k{number % 7}", bytes(500)),
            partial(client.set, "expiring", b"v", ttl=1_000),
            partial(client.get, f"k{(number + 3) % 7}"),
            partial(client.delete, f"k{(number + 5) % 7}"),
            client.tables.compact,
        ]
        for call in calls:
            try:
                await call()
            except ReadOnly:
                return
            except KvsdError:
                pass
    raise AssertionError("the disk is still there")


@pytest.mark.parametrize("at", [0, 1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 34, 42, 60])
async def test_what_is_in_memory_is_served_and_nothing_ends_where_every_call_fails(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    medium = FaultyMedium(scratch / "data")
    reports = Reports()
    async with serve_on(medium, monkeypatch, reports, cache_bytes=1 << 20) as (server, client):
        await client.set(CACHED, b"value")
        for number in range(20):
            await client.set(f"k{number % 7}", bytes(300))
        await client.tables.create("closed")
        await client.tables.create("other")
        await client.table("other").set(CACHED, b"value")
        medium.shut_down(at=at)
        await work(client)

        for table in (client, client.table("other")):
            assert await table.get(CACHED) == b"value"
            with pytest.raises(ReadOnly):
                await table.set("new", "value")
            with pytest.raises(ReadOnly):
                await table.delete(CACHED)
            with pytest.raises(ReadOnly):
                await table.set_many({"new": "value"})
            assert await table.get(CACHED) == b"value"
            assert await table.count() > 0
        assert await client.get("never there") is None
        info = await client.tables.info("default")
        assert info.state == "read-only"
        assert info.status is not None
        assert await client.tables.list()
        await client.tables.compact(action="status")
        for refused in (
            client.tables.create("new"),
            client.tables.drop("other"),
            client.tables.settings("other", fsync="interval"),
            client.tables.dropped(),
            client.tables.compact(),
            client.tables.reopen("default"),
            client.table("closed").get("k"),
        ):
            with contextlib.suppress(KvsdError):
                await refused
        await server.tables.watch.look()
        assert not any(actor.unavailable for actor in server.tables.actors)
        events = reports.events
    assert not [event for event in events if "crashed" in event or "fault" in event or "not closed in order" in event]
    assert "a file is gone from under the server; the table is read-only" not in events, "nobody knows that"
