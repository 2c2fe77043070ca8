"""Running servers for tests: on both event loops, with or without TLS, and checked for what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields
from pathlib import Path

import pytest
import uvloop

from kvsd.config import Config, ServerSettings, StorageSettings, User
from kvsd.server import Server, certificates
from kvsd.table.medium import Medium

from .server.peers import PASSWORD_HASH, Peer, Reports, until

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

Start = Callable[..., Awaitable[Server]]
Connect = Callable[..., Awaitable[Peer]]


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A test that starts a server runs on both loops; a module can say otherwise with LOOPS."""
    module = getattr(item, "module", None)
    names = getattr(module, "LOOPS", ["asyncio"])
    return {name: LOOPS[name] for name in names}


@pytest.fixture(scope="session")
def certificate_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.pem and server.key, and the ca.pem that signed them."""
    folder = tmp_path_factory.mktemp("certificates")
    certificates.create(folder / "server.pem", folder / "server.key")
    return folder


@pytest.fixture
def make_config(tmp_path: Path, certificate_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """A Config with a folder of its own and a free port; overrides are settings of the server or of the storage.

    Nothing is synced: these tests start hundreds of servers, and none of them cuts the power.
    """
    monkeypatch.setattr(Medium, "sync", lambda *_: None)
    monkeypatch.setattr(Medium, "sync_directory", lambda *_: None)

    def make(*, tls: bool = True, **overrides: object) -> Config:
        given: dict[str, object] = {
            "listen_port": 0,
            "disable_tls": not tls,
            "tls_certificate": certificate_dir / "server.pem",
            "tls_key": certificate_dir / "server.key",
            "root_dir": tmp_path / "data",
            "users": (User(username="kvsduser", password_hash=PASSWORD_HASH),),
            **overrides,
        }
        of_server = {field.name: given.pop(field.name) for field in fields(ServerSettings) if field.name in given}
        return Config(server=ServerSettings(**of_server), storage=StorageSettings(**given))

    return make


@pytest.fixture
def reports() -> Reports:
    """What the server logs."""
    return Reports()


@pytest.fixture
async def start(make_config: Callable[..., Config], reports: Reports) -> AsyncIterator[Start]:
    """Starts servers. At the end each is stopped, and must have let go of all it held."""
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    async with contextlib.AsyncExitStack() as stack:

        async def start(**overrides: object) -> Server:
            server = Server(make_config(**overrides), reports)
            await server.start()
            stack.push_async_callback(_stop, server)
            return server

        yield start
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")
    assert unhandled == []
    assert reports.faults == []


async def _stop(server: Server) -> None:
    async with asyncio.timeout(20):
        await server.stop()
    assert server.connections == 0
    assert server._services.sessions == set()
    assert server._services.budget.held_bytes == 0
    assert server._listener._permits._value == server._listener.max_connections


@pytest.fixture
async def connect(start: Start) -> AsyncIterator[Connect]:
    """Opens connections that speak bytes; those that are still open at the end are cut."""
    peers: list[Peer] = []

    async def connect(server: Server, **given: object) -> Peer:
        peer = await Peer.connect(server, **given)
        peers.append(peer)
        return peer

    yield connect
    for peer in peers:
        await peer.close()


@pytest.fixture(params=["plain", "tls"])
def tls(request: pytest.FixtureRequest) -> bool:
    """Both kinds of connection."""
    return request.param == "tls"
