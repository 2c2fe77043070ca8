"""Permits: taken before accept, back exactly once however a connection ends, and none lost to a tired system."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from kvsd.errors import ConfigError
from kvsd.server import listener
from kvsd.server.connection import Connection
from kvsd.server.listener import Listener, bind

from .peers import PATIENCE_SECONDS, Reports, until

LOOPS = ["asyncio", "uvloop"]

FULL = "connection limit reached; new clients wait in the backlog"
EXHAUSTED = "cannot accept; waiting for connections to close"


class Echo(Connection):
    """Sends back what comes, ends at `bye`, and has a fault at `bug`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = bytearray(1024)
        self.on_admitted()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self.buffer[:nbytes])
        if data == b"bug":
            raise RuntimeError("a fault of ours")
        if data == b"bye":
            self.transport.close()
        else:
            self.transport.write(data)


Listen = Callable[..., Listener]


@pytest.fixture
def context(certificate_dir: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_dir / "server.pem", certificate_dir / "server.key")
    return context


@pytest.fixture
async def listen(reports: Reports) -> AsyncIterator[Listen]:
    """Starts listeners; at the end each is stopped, and must have all its permits back."""
    listeners: list[Listener] = []

    def listen(
        max_connections: int = 1, context: ssl.SSLContext | None = None, sockets: list[socket.socket] | None = None
    ) -> Listener:
        made = Listener(
            sockets or bind("127.0.0.1", 0, 16),
            Echo,
            max_connections=max_connections,
            max_unauthenticated_per_address=max_connections,
            context=context,
            reporter=reports,
        )
        made.start()
        listeners.append(made)
        return made

    yield listen
    async with asyncio.timeout(PATIENCE_SECONDS):
        for made in listeners:
            await made.stop()
            made.abort()
            await made.wait_closed()
            assert made._permits._value == made.max_connections
            assert all(listening.fileno() == -1 for listening in made._sockets)
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "tasks are left")


@pytest.fixture(autouse=True)
async def unhandled() -> list[dict[str, object]]:
    """What the loop could not hand to anyone: only what a test expects."""
    contexts: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


def address(made: Listener, index: int = 0) -> tuple[str, int]:
    host, port, *_ = made._sockets[index].getsockname()
    return host, port


class Client:
    """A blocking socket's worth of client, on the loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, made: Listener, context: ssl.SSLContext | None = None, index: int = 0) -> Client:
        name = None if context is None else "localhost"
        return cls(*await asyncio.open_connection(*address(made, index), ssl=context, server_hostname=name))

    async def echo(self, data: bytes = b"hello") -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.reader.read(100)

    async def end(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def test_at_the_limit_a_client_waits_in_the_backlog_and_is_served_when_another_leaves(
    listen: Listen, reports: Reports
) -> None:
    made = listen(2)
    first, second = await Client.of(made), await Client.of(made)
    assert await first.echo() == await second.echo() == b"hello"
    third = await Client.of(made)
    third.writer.write(b"patience")
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(made) == 2
    await first.end()
    assert await third.echo(b"") == b"patience"
    assert len(made) == 2
    assert reports.count(FULL) == 1
    for client in (second, third):
        await client.end()


async def test_the_limit_is_told_once_and_again_only_after_there_was_room(listen: Listen, reports: Reports) -> None:
    made = listen(20)
    for told in (1, 2):
        clients = [await Client.of(made) for _ in range(25)]
        await until(lambda: len(made) == 20, "not accepted")
        for client in clients[:5]:
            await client.end()
            await until(lambda: len(made) == 20, "nobody followed")
        assert reports.count(FULL) == told
        for client in clients[5:]:
            await client.end()
        await until(lambda: len(made) == 0, "not ended")


async def test_the_last_permit_serves_a_client_of_either_address(listen: Listen, reports: Reports) -> None:
    """A permit for each address, taken while nobody connects there, would lock the clients of the others out."""
    made = listen(1, sockets=[*bind("127.0.0.1", 0, 16), *bind("127.0.0.2", 0, 16)])
    for index in (1, 0, 1, 1, 0, 0):
        client = await Client.of(made, index=index)
        assert await client.echo() == b"hello"
        await client.end()
        await until(lambda: len(made) == 0, "not ended")
    assert reports.count(FULL) <= 6


async def test_nobody_is_told_of_a_full_server_before_anybody_came(listen: Listen, reports: Reports) -> None:
    listen(1, sockets=[*bind("127.0.0.1", 0, 16), *bind("127.0.0.2", 0, 16)])
    for _ in range(20):
        await asyncio.sleep(0)
    assert reports.lines == []


async def close_normally(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made, trust)
    assert await client.echo() == b"hello"
    assert await client.echo(b"bye") == b""
    await client.end()


async def reset(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made, trust)
    assert await client.echo() == b"hello"
    raw = client.writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.end()


async def reset_at_once(made: Listener, trust: ssl.SSLContext | None) -> None:
    raw = socket.create_connection(address(made))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()


async def crash(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made, trust)
    with contextlib.suppress(OSError):
        assert await client.echo(b"bug") == b""
    await client.end()


async def cut(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made, trust)
    assert await client.echo() == b"hello"
    made.abort()
    with contextlib.suppress(OSError):
        assert await client.reader.read() == b""
    await client.end()


async def garbage(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made)
    assert (await client.echo(b"GET / HTTP/1.1\r\n\r\n"))[:2] in {b"", b"\x15\x03"}  # an alert
    await client.end()


async def silence(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made)
    with contextlib.suppress(OSError):
        assert await client.reader.read() == b""
    await client.end()


async def leave_in_handshake(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made)
    client.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    await until(lambda: len(made), "not accepted")
    await client.end()


async def cut_in_handshake(made: Listener, trust: ssl.SSLContext | None) -> None:
    client = await Client.of(made)
    await until(lambda: made._handshakes, "no handshake")
    made.abort()
    with contextlib.suppress(OSError):
        assert await client.reader.read() == b""
    await client.end()


Ending = Callable[[Listener, ssl.SSLContext | None], object]


PLAIN_ENDINGS = [close_normally, reset, reset_at_once, crash, cut]
TLS_ENDINGS = [*PLAIN_ENDINGS, garbage, silence, leave_in_handshake, cut_in_handshake]


@pytest.mark.parametrize("ending", PLAIN_ENDINGS, ids=lambda ending: ending.__name__)
async def test_the_permit_is_back_once_whatever_ends_a_connection(
    listen: Listen, ending: Ending, unhandled: list[dict[str, object]]
) -> None:
    made = listen(1)
    for _ in range(3):
        await ending(made, None)
        await until(lambda: len(made) == 0, "not ended")
    await close_normally(made, None)
    await until(lambda: len(made) == 0, "not ended")
    assert ending is crash or unhandled == []


@pytest.mark.parametrize("ending", TLS_ENDINGS, ids=lambda ending: ending.__name__)
async def test_the_permit_is_back_once_whatever_ends_a_tls_connection(
    listen: Listen,
    context: ssl.SSLContext,
    certificate_dir: Path,
    ending: Ending,
    monkeypatch: pytest.MonkeyPatch,
    unhandled: list[dict[str, object]],
) -> None:
    if ending is silence:
        monkeypatch.setattr(listener, "HANDSHAKE_TIMEOUT_SECONDS", 0.5)
    trust = ssl.create_default_context(cafile=certificate_dir / "ca.pem")
    made = listen(1, context)
    await close_normally(made, trust)  # a loop opens some descriptors for itself at first use
    await until(lambda: len(made) == 0, "not ended")
    descriptors = len(os.listdir("/dev/fd"))
    for _ in range(1 if ending is silence else 3):
        await ending(made, trust)
        await until(lambda: len(made) == 0, "not ended")
    await close_normally(made, trust)
    await until(lambda: len(os.listdir("/dev/fd")) <= descriptors, "a descriptor is left")
    assert ending is crash or unhandled == []


async def test_a_failed_start_of_a_connection_returns_its_permit_and_is_told(
    listen: Listen, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = listen(1)
    with monkeypatch.context() as patch:
        patch.setattr(made, "_make_connection", lambda: 1 / 0)
        client = await Client.of(made)
        with contextlib.suppress(OSError):
            assert await client.reader.read() == b""
        await client.end()
    assert isinstance(reports.take("a connection's task failed")["exc_info"], ZeroDivisionError)
    await close_normally(made, None)


class Tired:
    """A listening socket whose accept fails as told, and then works."""

    def __init__(self, listening: socket.socket, *failures: int) -> None:
        self._listening = listening
        self.failures = [OSError(number, os.strerror(number)) for number in failures]

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            raise self.failures.pop(0)
        return self._listening.accept()

    def __getattr__(self, name: str) -> object:
        return getattr(self._listening, name)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The backoffs, which take no time."""
    seconds: list[float] = []

    async def wait(_: Listener, wanted: float) -> None:
        seconds.append(wanted)

    monkeypatch.setattr(Listener, "_wait_for_a_close", wait)
    return seconds


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EIO])
async def test_exhaustion_backs_off_longer_and_longer_and_is_survived(
    listen: Listen, reports: Reports, waits: list[float], number: int
) -> None:
    made = listen(1, sockets=[cast(socket.socket, Tired(*bind("127.0.0.1", 0, 16), *[number] * 6))])
    await close_normally(made, None)
    assert waits == [1, 2, 4, 8, 8, 8]
    assert [reports.take(EXHAUSTED)["seconds"] for _ in waits] == waits
    # A new exhaustion starts anew.
    cast(Tired, made._sockets[0]).failures = [OSError(number, "")]
    await close_normally(made, None)
    assert waits[6:] == [1]


async def test_a_close_ends_the_backoff(listen: Listen, monkeypatch: pytest.MonkeyPatch) -> None:
    tired = Tired(*bind("127.0.0.1", 0, 16))
    made = listen(3, sockets=[cast(socket.socket, tired)])
    first = await Client.of(made)
    assert await first.echo() == b"hello"
    tired.failures = [OSError(errno.EMFILE, "")]
    second = await Client.of(made)
    await until(lambda: not tired.failures, "accept was not tried")
    await first.end()
    # Without the close this would take a second.
    async with asyncio.timeout(0.5):
        assert await second.echo() == b"hello"
    await second.end()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ETIMEDOUT])
async def test_a_client_that_went_away_before_accept_holds_nobody_up(
    listen: Listen, reports: Reports, waits: list[float], number: int
) -> None:
    made = listen(1, sockets=[cast(socket.socket, Tired(*bind("127.0.0.1", 0, 16), *[number] * 5))])
    await close_normally(made, None)
    assert waits == []
    assert reports.faults == []


async def test_an_option_that_cannot_be_set_costs_one_connection_only(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some systems that is how a connection which is already reset shows."""
    made = listen(1)
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

        raw = socket.create_connection(address(made))
        patch.setattr(socket.socket, "setsockopt", refuse)
        with raw:
            assert await asyncio.get_running_loop().run_in_executor(None, raw.recv, 1) == b""
    await close_normally(made, None)


@pytest.mark.parametrize("state", ["accepting", "backing off", "full"])
async def test_a_stop_is_not_held_up_and_closes_the_sockets(listen: Listen, reports: Reports, state: str) -> None:
    tired = Tired(*bind("127.0.0.1", 0, 16))
    made = listen(1, sockets=[cast(socket.socket, tired)])
    client = None
    match state:
        case "backing off":
            tired.failures = [OSError(errno.EMFILE, "")]
            client = await Client.of(made)
            await until(lambda: reports.count(EXHAUSTED), "not backing off")
        case "full":
            client = await Client.of(made)
            assert await client.echo() == b"hello"
    where = address(made)
    async with asyncio.timeout(1):
        await made.stop()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by system
        await asyncio.open_connection(*where)
    if state == "full":
        assert await client.echo() == b"hello"
    if client is not None:
        await client.end()


async def test_a_stop_ends_handshakes_and_leaves_conversations_alone(
    listen: Listen, context: ssl.SSLContext, certificate_dir: Path
) -> None:
    made = listen(3, context)
    talking = await Client.of(made, ssl.create_default_context(cafile=certificate_dir / "ca.pem"))
    silent = await Client.of(made)
    await until(lambda: made._handshakes, "no handshake")
    async with asyncio.timeout(1):
        await made.stop()
        with contextlib.suppress(OSError):
            assert await silent.reader.read() == b""
    assert await talking.echo() == b"hello"
    assert len(made) == 1
    for client in (talking, silent):
        await client.end()


async def test_a_stop_swallows_no_connection(listen: Listen) -> None:
    """Each client was served, or is told by a close: none waits for ever."""
    for _ in range(20):
        made = listen(100)
        clients = [socket.create_connection(address(made)) for _ in range(8)]
        for _ in range(3):
            await asyncio.sleep(0)
        await made.stop()
        made.abort()
        await made.wait_closed()
        for client in clients:
            client.settimeout(PATIENCE_SECONDS)
            with client, contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""


# Addresses


def test_several_addresses_share_one_free_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = bind("two.example", 0, 16)
    with contextlib.ExitStack() as stack:
        for listening in sockets:
            stack.callback(listening.close)
        assert [listening.getsockname()[0] for listening in sockets] == ["127.0.0.1", "127.0.0.2"]
        assert len({listening.getsockname()[1] for listening in sockets}) == 1


async def test_ipv6_is_served(listen: Listen) -> None:
    made = listen(1, sockets=bind("::1", 0, 16))
    await close_normally(made, None)


def test_an_address_in_use_is_a_config_error_that_names_it() -> None:
    [taken] = bind("127.0.0.1", 0, 16)
    with taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            bind("127.0.0.1", port, 16)


@pytest.mark.parametrize(
    ("host", "words"),
    [("no-such-host.invalid", "cannot listen on no-such-host.invalid"), ("192.0.2.1", "heck server.listen_host")],
)
def test_an_address_that_is_not_ours_is_a_config_error_that_says_what_to_check(host: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        bind(host, 0, 16)


def test_an_address_that_is_missing_is_passed_over_where_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` may name ::1 although IPv6 is off."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    [listening] = bind("localhost", 0, 16)
    with listening:
        assert listening.getsockname()[0] == "127.0.0.1"


async def test_replies_leave_without_delay(listen: Listen) -> None:
    """Without TCP_NODELAY a reply of two packets waits for an acknowledgement, some 40 ms."""
    made = listen(1)
    client = await Client.of(made)
    assert await client.echo() == b"hello"
    [task] = made._connections
    connection = task.get_coro().cr_frame.f_locals["connection"]  # type: ignore[union-attr]
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    await client.end()
