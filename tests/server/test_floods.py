"""Peers that send without end: a clear outcome, little memory, and nobody else is held up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from kvsd.protocol.messages import Authenticate, Fail
from kvsd.server import session
from kvsd.server.authentication import PasswordHash
from tests.conftest import Connect, Start

from .peers import LOGIN, NULL, REFUSED, until

LOOPS = ["asyncio", "uvloop"]


@pytest.mark.parametrize("login", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "head",
    [
        b"*3\r\n#\x02+",
        b"*2\r\n#\x06+",
        b"*3\r\n#\x05+k\r\n$1099511627776\r\n",
        b"*1024\r\n#\x20" + b"|" * 5,
        b"*" + b"9" * 99,
    ],
    ids=["text", "key", "value", "frames", "count"],
)
async def test_a_frame_that_never_ends_is_refused_and_does_not_grow(
    start: Start, connect: Connect, tls: bool, head: bytes, login: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LINGER_SECONDS", 0.1)
    server = await start(tls=tls)
    peer, witness = await connect(server, login=login), await connect(server)

    async def flood() -> None:
        await peer.say(head)
        while True:
            await peer.say(b"x" * 65_536)

    flooding = asyncio.create_task(flood())
    fail = await peer.hear_one()
    assert isinstance(fail, Fail)
    await witness.ping()
    await until(lambda: server.connections == 1, "the permit is not back")
    with contextlib.suppress(OSError):
        await flooding
    assert server._services.budget.held_bytes == 0


@pytest.mark.parametrize("head", [b"*3\r\n#\x05+k\r\n$20971520\r\n", b"*1000\r\n#\x63" + b"$20000000\r\n"])
async def test_a_value_that_is_skipped_takes_no_memory(start: Start, connect: Connect, head: bytes) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    await peer.say(head)
    for _ in range(100):
        await peer.say(bytes(100_000))
        await asyncio.sleep(0)
    [one] = server._services.sessions
    assert one._decoder.buffered_bytes < 300_000


class Hashing:
    """Holds up every computation of a password hash, and counts them."""

    def __init__(self) -> None:
        self.computed = 0
        self.may_go_on = threading.Event()


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    hashing = Hashing()
    matches = PasswordHash.matches

    def wait(stored: PasswordHash, password: bytes) -> bool:
        hashing.computed += 1
        assert hashing.may_go_on.wait(20)
        return matches(stored, password)

    monkeypatch.setattr(PasswordHash, "matches", wait)
    yield hashing
    hashing.may_go_on.set()


async def test_brute_force_is_bounded_and_does_not_lock_the_users_out(
    start: Start, connect: Connect, hashing: Hashing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LINGER_SECONDS", 0.1)
    server = await start(tls=False)
    hashing.may_go_on.set()
    await connect(server)
    hashing.may_go_on.clear()
    before = hashing.computed
    attackers = [await connect(server, login=False) for _ in range(150)]
    for number, attacker in enumerate(attackers):
        await attacker.say(Authenticate("kvsduser", f"guess {number}"))
    refused = [await attacker.hear_one() for attacker in attackers[66:]]
    assert {message.code for message in refused if isinstance(message, Fail)} == {"BUSY"}
    assert hashing.computed - before <= 2

    # Whoever has logged in before gets in at once.
    await (await connect(server)).ping()

    hashing.may_go_on.set()
    for attacker in attackers[:66]:
        assert await attacker.rest() == REFUSED
    assert hashing.computed - before == 66


async def test_a_thousand_logins_with_the_same_credentials_cost_one_hash(
    start: Start, connect: Connect, hashing: Hashing
) -> None:
    server = await start(tls=False)
    peers = [await connect(server, login=False) for _ in range(200)]
    for peer in peers:
        await peer.say(LOGIN)
    await until(lambda: sum(one._errand is not None for one in server._services.sessions) == 200, "not all came")
    hashing.may_go_on.set()
    for peer in peers:
        await peer.expect(NULL)
    assert hashing.computed == 1


async def test_a_client_that_resets_in_the_backlog_holds_nobody_up(start: Start, connect: Connect) -> None:
    server = await start(max_tcp_connections=1)
    first = await connect(server)
    for _ in range(5):
        with socket.create_connection((server.host, server.port)) as waiting:
            waiting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await first.close()
    await (await connect(server)).ping()
