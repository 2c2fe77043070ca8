"""Peers that say nothing, or stop in the middle: before the handshake, in it, and before they authenticate."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from kvsd.protocol.messages import Fail, Get, encode
from kvsd.server import listener
from tests.conftest import Connect, Start
from tests.server.peers import LOGIN, NULL, until

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


@pytest.mark.parametrize("said", [b"", HALF_HELLO], ids=["nothing", "half a hello"])
@pytest.mark.parametrize("where", ["tls", "plain"])
async def test_silent_sockets_at_the_limit_give_way_to_a_login(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, where: str, said: bytes
) -> None:
    """Twice as many as there is room for; their own timeouts are far off."""
    monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_SECONDS", 60)
    server = await start(tls=where == "tls", max_tcp_connections=10, authenticate_timeout_milliseconds=60_000)
    witness = await connect(server)
    for _ in range(20):
        silent = await connect(server, login=False, tls=False)
        await silent.say(said if where == "tls" or not said else LOGIN[:-1])
    for _ in range(3):
        await (await connect(server)).ping()
    await witness.ping()  # who has logged in stays
    await until(lambda: server.connections == 10, "permits are lost")


async def test_one_address_holds_no_more_than_its_share_of_those_that_have_not_logged_in(
    start: Start, connect: Connect
) -> None:
    server = await start(max_tcp_connections=100, max_unauthenticated_per_address=5)
    users = [await connect(server) for _ in range(8)]
    silent = [await connect(server, login=False, tls=False) for _ in range(9)]
    await asyncio.gather(*(one.expect_end() for one in silent[:4]))
    assert server.connections == 8 + 5
    for user in users:
        await user.ping()


@pytest.mark.parametrize("stage", ["login", "idle"])
async def test_a_process_that_was_stopped_answers_what_came_meanwhile(launch: Launch, tls: bool, stage: str) -> None:
    """Both timeouts have passed when it goes on; the client was in time."""
    target = launch(tls=tls, authenticate_timeout_milliseconds=400, idle_timeout_seconds=0.4)
    peer = await target.peer(login=stage == "idle")
    with target.stopped():
        await peer.say(LOGIN if stage == "login" else encode(Get(b"k")))
        await asyncio.sleep(0.8)  # this is what the test is about
    await peer.expect(NULL)
