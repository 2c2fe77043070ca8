"""Both clients against our own server, over TLS: the path from a call to the disk and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvsd import aio, connect, server
from kvsd.config import Config, ServerSettings, StorageSettings, User
from kvsd.errors import AuthenticationError, InvalidKey, InvalidValue, ProtocolError
from kvsd.server import Server


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        server=ServerSettings(
            listen_port=0,
            tls_certificate=tmp_path / "certs" / "server.pem",
            tls_key=tmp_path / "certs" / "server.key",
            tls_auto=True,
        ),
        storage=StorageSettings(root_dir=tmp_path / "data", users=(User(username="kvsduser", password="pw"),)),
    )


@pytest.fixture
async def running(config: Config) -> AsyncIterator[Server]:
    async with server.run(config) as daemon:
        yield daemon


def access(running: Server) -> dict[str, object]:
    return {
        "host": running.host,
        "port": running.port,
        "username": "kvsduser",
        "password": "pw",
        "ca": running.ca_path,
        "timeout": 10,
    }


def story(**given: object) -> None:
    with connect(**given) as client:
        assert client.get("hello") is None
        client.set("hello", "rust")
        assert client.get("hello") == b"rust"
        client.set("hello", bytes(300_000))
        assert client.delete("hello") == bytes(300_000)
        assert client.delete("hello") is None
        client.set(b"\xff\r\n", b"")
        assert client.get(b"\xff\r\n") == b""
        assert 0 < client.ping() < 10
        with pytest.raises(InvalidKey):
            client.set("k" * 1025, "v")
        with pytest.raises(InvalidValue):
            client.set("k", bytes(10 * 1024 * 1024 + 1))
        assert client.get("k") is None


def far_too_long(**given: object) -> None:
    """Past twice the limit the server gives up the connection, while the client still sends."""
    with connect(**given) as client:
        with pytest.raises(ProtocolError, match="too long to be skipped"):
            client.set("k", bytes(21 * 1024 * 1024))
        assert client.get("k") is None


async def test_the_story_of_the_blocking_client(running: Server) -> None:
    await asyncio.to_thread(story, **access(running))


async def test_why_a_value_far_past_the_limit_was_refused_reaches_the_blocking_client(running: Server) -> None:
    await asyncio.to_thread(far_too_long, **access(running))


async def test_why_a_value_far_past_the_limit_was_refused_reaches_the_asyncio_client(running: Server) -> None:
    async with asyncio.timeout(20), aio.connect(**access(running)) as client:
        with pytest.raises(ProtocolError, match="too long to be skipped"):
            await client.set("k", bytes(21 * 1024 * 1024))
        assert await client.get("k") is None


async def test_many_tasks_share_one_connection(running: Server) -> None:
    async with asyncio.timeout(20), aio.connect(**access(running)) as client:
        names = [f"key-{n}" for n in range(500)]
        await asyncio.gather(*(client.set(name, name[::-1]) for name in names))
        values = await asyncio.gather(*(client.get(name) for name in names))
        assert values == [name[::-1].encode() for name in names]
        assert running.connections == 1
        assert await asyncio.gather(*(client.delete(name) for name in names)) == values
        assert running.entries == 0


async def test_wrong_credentials_are_refused(running: Server) -> None:
    async with asyncio.timeout(20):
        with pytest.raises(AuthenticationError, match="refused the user name or the password"):
            await aio.connect(**{**access(running), "password": "wrong"})


async def test_a_restarted_server_is_found_again_with_all_that_was_acknowledged(config: Config) -> None:
    async with asyncio.timeout(20):
        async with server.run(config) as daemon:
            given, port = access(daemon), daemon.port
            client = await aio.connect(**given)
            await client.set("hello", "rust")
        restarted = replace(config, server=replace(config.server, listen_port=port))
        async with server.run(restarted):
            assert await client.get("hello") == b"rust"
            await client.set("hello", "again")
            await client.close()
