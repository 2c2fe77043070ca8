"""Peers that say nothing, or stop in the middle: before the handshake, in it, and before they authenticate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from kvsd.protocol.messages import Fail, encode
from kvsd.server import listener
from tests.conftest import Connect, Start
from tests.server.peers import LOGIN, until

from .conftest import Launch
from .target import Witness

LOOPS = ["uvloop"]


def client_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


HALF_HELLO = client_hello()[:100]


@pytest.mark.parametrize("said", [b"", HALF_HELLO], ids=["before", "in"])
async def test_silence_in_the_handshake_returns_the_permit(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_SECONDS", 0.3)
    server = await start(max_tcp_connections=2)
    witness = Witness(await connect(server))
    silent = await connect(server, login=False, tls=False)
    await silent.say(said)
    await witness.is_served_during(silent.expect_end())
    await until(lambda: server.connections == 1, "the permit is not back")
    await (await connect(server)).ping()


@pytest.mark.parametrize("said", [b"", LOGIN[:-1]], ids=["nothing", "a part"])
async def test_silence_before_authentication_is_answered_and_returns_the_permit(
    start: Start, connect: Connect, tls: bool, said: bytes, quick_linger: None
) -> None:
    server = await start(tls=tls, max_tcp_connections=2, authenticate_timeout_milliseconds=300)
    witness = Witness(await connect(server))
    silent = await connect(server, login=False)
    await silent.say(said)
    answer = asyncio.create_task(silent.rest())
    await witness.is_served_during(answer)
    assert answer.result() == encode(Fail("UNAUTHENTICATED", "no Authenticate within 300 ms"))
    await until(lambda: server.connections == 1, "the permit is not back")
    await (await connect(server)).ping()


async def test_more_silent_peers_than_permits_only_delay_the_others(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_SECONDS", 0.2)
    server = await start(max_tcp_connections=3)
    for _ in range(9):
        await connect(server, login=False, tls=False)
    await (await connect(server)).ping()


async def test_silent_peers_cannot_hold_up_a_stop(launch: Launch) -> None:
    """The drain would wait longer than the Target does for the end of the process."""
    target = launch(drain_timeout_seconds=60)
    for said in (b"", HALF_HELLO):
        await (await target.peer(login=False, tls=False)).say(said)
    for said in (b"", LOGIN[:-1]):
        await (await target.peer(login=False)).say(said)
    await target.peer()
