"""Real servers, killed with SIGKILL under load: what was acknowledged is there after every restart."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from kvsd.client.aio import Client
from kvsd.errors import CannotConnect, ConnectionLost
from tests.crash.ledger import Ledger
from tests.crash.process import ServerProcess
from tests.table.driver import segments

CONNECTIONS = 4
TASKS = 4
"""On each connection."""
KEYS = 8
"""Of each task; nobody else writes them."""
SIZES = [0, 1, 60, 60, 60, 700, 700, 6_000, 6_000, 90_000]
"""The largest is more than a segment."""


async def work(client: Client, ledger: Ledger, name: bytes, rng: random.Random) -> None:
    """One call after the other until the connection is lost."""
    with contextlib.suppress(ConnectionLost, CannotConnect):
        while True:
            key = name + b"-%d" % rng.randrange(KEYS)
            if rng.random() < 0.2:
                await ledger.delete(client, key)
            else:
                await ledger.set(client, key, rng.randbytes(rng.choice(SIZES)))


async def load(server: ServerProcess, ledger: Ledger, rng: random.Random) -> None:
    """Several connections with several calls in flight on each, until the server is killed."""
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as clients:
        tasks = [
            work(client, ledger, b"%d-%d" % (connection, task), random.Random(rng.random()))
            for connection in range(CONNECTIONS)
            for client in [await clients.enter_async_context(server.connect())]
            for task in range(TASKS)
        ]
        # Not by a count of replies: that would always kill in the same phase of a commit.
        asyncio.get_running_loop().call_later(rng.uniform(0.01, 0.5), server.kill)
        await asyncio.gather(*tasks)
    assert not server.is_running, "connections ended before the kill"


async def verify(server: ServerProcess, ledger: Ledger) -> None:
    assert (server.ready.tables, server.ready.unavailable) == (1, 0)
    async with asyncio.timeout(60), server.connect() as client:
        assert server.ready.entries == await ledger.verify(client)


async def kill_again_and_again(folder: Path, *, kills: int, seed: int) -> None:
    rng, ledger = random.Random(seed), Ledger()
    with ServerProcess(folder) as server:
        server.start()
        for _ in range(kills):
            await load(server, ledger, rng)
            if rng.random() < 0.3:
                server.interrupt_start(rng.uniform(0.1, 0.4))
            server.start()
            await verify(server, ledger)
        assert server.stop() == 0
        server.start()
        await verify(server, ledger)
        assert len(ledger.acknowledged) > KEYS
        # Or none would have rolled; those that are not there any more were compacted.
        newest = segments(server.table_dir)[-1]
        assert int(newest.name.partition("-")[0]) > 2 * kills
        assert server.logged("a table cannot be opened") == server.logged("damaged entry") == 0


async def test_acknowledged_writes_survive_sigkill(tmp_path: Path) -> None:
    await kill_again_and_again(tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_acknowledged_writes_survive_sigkill_many_times(tmp_path: Path) -> None:
    await kill_again_and_again(tmp_path, kills=25, seed=2)
