"""Whom a client trusts, and what both sides make of a peer that does or does not speak TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kvsd import aio, connect
from kvsd.errors import ConnectionLost, Timeout
from kvsd.protocol.messages import Get, Set, Success
from kvsd.server import Server, certificates
from tests.conftest import Connect, Start
from tests.server.peers import Reports, until

LOOPS = ["asyncio", "uvloop"]

Write = Callable[..., Awaitable[None]]


@pytest.fixture(params=["blocking", "asyncio"])
def write(request: pytest.FixtureRequest) -> Write:
    """Sets a key to a value by one of the two clients."""

    async def with_asyncio(key: str, **given: object) -> None:
        async with aio.connect(**given) as client:
            await client.set(key, "v")

    def blocking(key: str, **given: object) -> None:
        with connect(**given) as client:
            client.set(key, "v")

    async def write(server: Server, key: str = "k", **given: object) -> None:
        access = {
            "host": "127.0.0.1",
            "port": server.port,
            "username": "kvsduser",
            "password": "secret",
            "ca": server.ca_path,
            "disable_tls": server.config.server.disable_tls,
            "timeout": 10,
        }
        if request.param == "asyncio":
            await with_asyncio(key, **{**access, **given})
        else:
            await asyncio.to_thread(blocking, key, **{**access, **given})

    return write


async def is_refused(server: Server, write: Write, words: str, **given: object) -> None:
    with pytest.raises(ConnectionLost, match=words):
        await write(server, **given)
    assert server.entries == 0
    await until(lambda: server.connections == 0, "the permit is not back")


def make_certificates(folder: Path, **given: datetime) -> dict[str, Path]:
    folder.mkdir()
    certificates.create(folder / "server.pem", folder / "server.key", **given)
    return {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}


async def test_a_server_of_another_authority_is_not_trusted(start: Start, write: Write, tmp_path: Path) -> None:
    server = await start(max_tcp_connections=1)
    make_certificates(tmp_path / "other")
    other = tmp_path / "other" / "ca.pem"
    await is_refused(server, write, rf"was not signed by the CA file {other}; pass the CA .* --ca", ca=other)
    await write(server)


async def test_a_server_of_another_name_is_not_trusted(start: Start, write: Write) -> None:
    server = await start(max_tcp_connections=1)
    # An address that leads to this machine and that no certificate holds.
    await is_refused(server, write, "is not made out to 0.0.0.0; connect by a name that it holds", host="0.0.0.0")
    await write(server)


async def test_an_expired_certificate_is_not_trusted(start: Start, write: Write, tmp_path: Path) -> None:
    server = await start(
        max_tcp_connections=1, **make_certificates(tmp_path / "old", now=datetime.now(UTC) - timedelta(days=1000))
    )
    await is_refused(server, write, "has expired; renew it on the server")


async def test_a_plain_client_of_a_tls_port_is_told_and_returns_its_permit(start: Start, write: Write) -> None:
    server = await start(max_tcp_connections=1)
    await is_refused(server, write, "if it speaks TLS, leave out --disable-tls", disable_tls=True)
    await write(server)


async def test_a_tls_client_of_a_plain_port_is_told_and_returns_its_permit(
    start: Start, write: Write, certificate_dir: Path, quick_linger: None
) -> None:
    server = await start(tls=False, max_tcp_connections=1)
    await is_refused(
        server, write, "check host and port against the line", disable_tls=False, ca=certificate_dir / "ca.pem"
    )
    await write(server)


async def test_a_client_of_a_full_server_is_told_that_it_may_be_full(
    start: Start, connect: Connect, write: Write, reports: Reports
) -> None:
    server = await start(max_tcp_connections=1)
    only = await connect(server)
    with pytest.raises(Timeout, match=r"it may be full \(server.max_tcp_connections\)"):
        await write(server, timeout=0.3)
    await only.ping()
    assert reports.count("connection limit reached; new clients wait in the backlog") == 1
    await only.close()
    await write(server)


async def test_line_ends_in_a_key_are_no_further_request(start: Start, connect: Connect, write: Write) -> None:
    server = await start()
    peer = await connect(server)
    await peer.say(Set(b"victim", b"alive"))
    assert await peer.hear_one() == Success(None)
    key = "k\r\n*2\r\n#\x07+victim\r\n"
    await write(server, key)
    await peer.say(Get(b"victim"), Get(key.encode()))
    assert await peer.hear(2) == [Success(b"alive"), Success(b"v")]
