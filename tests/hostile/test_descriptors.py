"""More connections than there are descriptors: the server stays, its tables too, and serves again."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kvsd.protocol.messages import Set, Success
from tests.server.peers import until

from .conftest import Launch
from .target import Target, Witness

LOOPS = ["uvloop"]

CANNOT_ACCEPT = "cannot accept; waiting for connections to close"


@contextmanager
def silent(target: Target, count: int) -> Iterator[None]:
    """Connections that say nothing; the system takes them, whether the server accepts them or not."""
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection((target.host, target.port), timeout=10))
        yield


async def is_written_and_served(target: Target) -> None:
    """By a new connection; enough for some segments."""
    peer = await target.peer()
    for number in range(30):
        await peer.say(Set(b"%d" % number, bytes(5_000)))
        assert await peer.hear_one() == Success(None)
    await peer.close()


async def test_connections_leave_the_tables_their_descriptors(launch: Launch) -> None:
    """A log that could not open its next segment would take no more writes until a restart."""
    target = launch(descriptors=(64, 128), storage={"segment_bytes": 65_536})
    [warning] = target.logged("too few descriptors for server.max_tcp_connections; raise `ulimit -n`")
    assert (warning["descriptors"], warning["max_tcp_connections"]) == (128, 10_240)
    peer = await target.peer()
    with silent(target, 300):
        await until(lambda: target.logged("connection limit reached; new clients wait in the backlog"), "not full")
        assert target.descriptors < 100
        for number in range(30):
            await peer.say(Set(b"%d" % number, bytes(5_000)))
            assert await peer.hear_one() == Success(None)
    await is_written_and_served(target)


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no limit of another process can be changed")


@only_linux
async def test_a_server_without_descriptors_survives_and_serves_again(launch: Launch) -> None:
    # Without syncs nothing is ever opened but a new segment.
    target = launch(tls=False, storage={"fsync": "never"})
    target.expected_faults = {CANNOT_ACCEPT}
    witness = Witness(await target.peer())
    before = target.limit_descriptors(target.descriptors + 20)
    with silent(target, 100):
        await until(lambda: target.logged(CANNOT_ACCEPT), "there were descriptors")
        assert "Too many open files" in str(target.logged(CANNOT_ACCEPT)[0]["error"])
        for _ in range(20):
            await witness.is_served()
    # Each close ends the wait for one: no need to sit out the seconds of the backoff.
    async with asyncio.timeout(0.9):
        await (await target.peer()).ping()
    target.limit_descriptors(before)
    await is_written_and_served(target)


@only_linux
async def test_a_table_without_descriptors_takes_writes_when_there_are_some_again(launch: Launch) -> None:
    target = launch(tls=False)
    target.expected_faults = {CANNOT_ACCEPT}
    witness = Witness(await target.peer())
    before = target.limit_descriptors(target.descriptors)
    with silent(target, 10):
        await until(lambda: target.logged(CANNOT_ACCEPT), "there were descriptors")
        for _ in range(20):
            await witness.is_served()
    target.limit_descriptors(before)
    await is_written_and_served(target)
