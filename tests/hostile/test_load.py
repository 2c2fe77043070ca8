"""A thousand clients at once: none is lost, and none costs much once it is idle."""

from __future__ import annotations

import resource

import pytest

from kvsd.protocol.messages import Get, Set, Success
from tests.server.peers import Peer

from .conftest import Launch
from .target import KIB, crowd

LOOPS = ["uvloop"]

CLIENTS = 1_000


@pytest.mark.slow
async def test_a_thousand_tls_clients_are_served_at_once_from_a_soft_limit_of_1024(launch: Launch) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = launch(descriptors=(1_024, 4_096 if hard == resource.RLIM_INFINITY else hard))

    async def work(peer: Peer, key: bytes) -> None:
        value = key.ljust(100, b".")
        await peer.say(Set(key, value))
        assert await peer.hear_one() == Success(None)
        await peer.say(Get(key))
        assert await peer.hear_one() == Success(value)

    async def join(number: int) -> Peer:
        peer = await target.peer()
        await work(peer, b"%d" % number)
        return peer

    await crowd(50, join)
    await target.close_peers()
    await target.until_left()
    async with target.memory("a thousand idle TLS connections") as memory:
        peers = await crowd(CLIENTS, join)
    assert memory.growth_bytes < CLIENTS * 64 * KIB

    assert target.descriptors > CLIENTS
    for number, peer in enumerate(peers):
        await work(peer, b"again %d" % number)
