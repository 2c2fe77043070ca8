"""A server that is up needs no further thread, whatever it is asked."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import Executor

import pytest

from kvsd import aio
from kvsd.config import Config
from kvsd.errors import AuthenticationError, ConfigError
from kvsd.server import Server
from kvsd.table.threads import Threads
from tests.conftest import Start
from tests.server.peers import Reports, until
from tests.table.test_threads import SECONDS, allow_threads


async def pools() -> list[Threads]:
    gc.collect()
    found = [thing for thing in gc.get_objects() if isinstance(thing, Executor)]
    assert all(isinstance(pool, Threads) for pool in found), "a pool that starts its threads when it needs them"
    return [pool for pool in found if isinstance(pool, Threads) and not pool._is_shut]


async def test_every_pool_of_a_server_has_all_its_threads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    await start(tls=False)
    allow_threads(monkeypatch, 0)
    found = await pools()
    assert {pool._name for pool in found} >= {"kvsd-commit", "kvsd-read", "kvsd-load", "kvsd-tables", "kvsd-password"}
    for pool in found:
        together = threading.Barrier(len(pool) + pool.lacking)
        for job in [pool.submit(together.wait, SECONDS) for _ in range(together.parties)]:
            await asyncio.wrap_future(job)


async def test_all_goes_on_where_no_further_thread_can_be_started(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start(tls=False, cache_bytes=0, segment_bytes=65_536)
    allow_threads(monkeypatch, 0)
    monkeypatch.setattr("kvsd.table.medium.Medium.can_read_cached", lambda *_: False)
    loop = asyncio.get_running_loop()
    assert getattr(loop, "_default_executor", None) is None
    async with aio.connect(
        host=server.host, port=server.port, username="kvsduser", password="secret", disable_tls=True
    ) as db:
        for number in range(20):
            await db.set(f"{number % 5}", bytes(20_000))
        assert await db.get("3") == bytes(20_000)
        assert await db.tables.compact("default")
        await db.namespaces.create("other")
        await db.tables.create("t", namespace="other")
        await asyncio.gather(db.set("k", b"v"), db.table("t", namespace="other").set("k", b"v"))
        await db.tables.reopen("default")
        await db.tables.drop("t", namespace="other")
        await db.tables.list()
        assert await db.get("3") == bytes(20_000)
    with pytest.raises(AuthenticationError):
        await aio.connect(host=server.host, port=server.port, username="kvsduser", password="no", disable_tls=True)
    assert getattr(loop, "_default_executor", None) is None


async def test_a_start_with_few_threads_does_with_them_and_says_so(
    start: Start, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_threads(monkeypatch, 24)
    server = await start(tls=False)
    said = reports.take("too few threads (ulimit -u, pids.max); writes share those that there are")["lacking"]
    assert said == sum(pool.lacking for pool in await pools()) > 20
    async with aio.connect(
        host=server.host, port=server.port, username="kvsduser", password="secret", disable_tls=True
    ) as db:
        await db.set("k", b"v")


async def test_a_start_without_threads_is_refused_by_the_name_of_the_limit(
    make_config: Callable[..., Config], reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = set(threading.enumerate())
    for count in range(9):
        with monkeypatch.context() as patch:
            allow_threads(patch, count)
            with pytest.raises(ConfigError, match=r"threads \(ulimit -u"):
                await Server(make_config(tls=False), reports).start()
    await until(lambda: set(threading.enumerate()) <= others, "left")
