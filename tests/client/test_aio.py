"""The asyncio client: sharing one connection, backpressure, losses, closing."""

from __future__ import annotations

import asyncio
import gc
import ssl
import threading
from collections.abc import Callable

import pytest

from kvsd.aio import Client, connect
from kvsd.client import aio_connection, calls
from kvsd.client.acquaintance import Acquaintance
from kvsd.client.aio_connection import Connection
from kvsd.client.settings import ConnectSettings
from kvsd.client.tls import client_context
from kvsd.errors import AuthenticationError, ClientUnusable, ConnectionLost, ProtocolError, Timeout
from kvsd.protocol.messages import Success, encode

from .fake import NULL, VECTORS, EchoServer, FakeServer, Peer, replay

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

GET = VECTORS["get"]
SET = VECTORS["set"]
RUST = encode(Success(b"rust"))


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> object:
    """No complaint to the loop, and no task, survives a test."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    before = asyncio.all_tasks()
    yield
    gc.collect()
    async with asyncio.timeout(5):
        while asyncio.all_tasks() - before - {asyncio.current_task()}:
            await asyncio.sleep(0)
    assert complaints == []


async def open_connection(settings: ConnectSettings) -> Connection:
    return await Connection.open(settings, Acquaintance(settings), client_context(settings))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_concurrent_first_calls_share_one_connection(context: Context, settings: Settings) -> None:
    async with EchoServer(1, context) as server, Client(settings(server.port)) as client, asyncio.timeout(10):
        first = asyncio.create_task(client.get("never mind"))
        others = [asyncio.create_task(client.get(str(n))) for n in range(100)]
        await turns(2)
        first.cancel()
        assert await asyncio.gather(*others) == [str(n)[::-1].encode() for n in range(100)]
        assert server.connections == 1


async def test_requests_of_one_turn_of_the_loop_leave_in_one_write(context: Context, settings: Settings) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.log_in()
        seen.append(peer.socket.recv(65_536))
        peer.send(RUST * 3)
        peer.wait_for_end()

    with FakeServer(script, context=context) as server:
        connection = await open_connection(settings(server.port))
        results = await asyncio.gather(*(connection.run(calls.get("hello")) for _ in range(3)))
        await connection.close()
    assert results == [b"rust"] * 3
    assert seen == [GET * 3]


async def test_no_more_replies_are_due_than_the_limit_even_when_callers_have_left(
    settings: Settings, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_connection, "MAX_IN_FLIGHT", 4)
    answer = threading.Event()
    early: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.log_in()
        early.append(peer.read(4 * len(GET)))
        assert answer.wait(10)
        peer.send(RUST * 4)
        for _ in range(6):
            peer.expect(GET)
            peer.send(RUST)
        peer.wait_for_end()

    with FakeServer(script, context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            leaving = [asyncio.create_task(client.get("hello")) for _ in range(4)]
            while not early:
                await asyncio.sleep(0)
            for task in leaving[1:]:
                task.cancel()
            others = [asyncio.create_task(client.get("hello")) for _ in range(6)]
            await turns(20)
            connection = client._connection
            assert connection is not None
            assert len(connection._conversation) == 4
            answer.set()
            assert await asyncio.gather(leaving[0], *others) == [b"rust"] * 7


async def test_callers_wait_while_the_server_does_not_read(settings: Settings, context: Context) -> None:
    value = bytes(512 * 1024)
    request = b"*3\r\n#\x05+hello\r\n$%d\r\n%b\r\n" % (len(value), value)
    read = threading.Event()

    def script(peer: Peer) -> None:
        peer.log_in()
        assert read.wait(10)
        for _ in range(60):
            assert peer.read(len(request)) == request
            peer.send(NULL)
        peer.wait_for_end()

    with FakeServer(script, context=context) as server:
        async with asyncio.timeout(20), Client(settings(server.port)) as client:
            tasks = [asyncio.create_task(client.set("hello", value)) for _ in range(60)]
            while client._connection is None or client._connection.has_room:
                await asyncio.sleep(0)
            await turns(50)
            connection = client._connection
            assert connection._transport is not None
            assert connection._transport.get_write_buffer_size() < 3 * len(request)
            assert len(connection._conversation) < 60
            read.set()
            await asyncio.gather(*tasks)


async def test_a_lost_connection_fails_every_waiting_write_and_the_next_call_opens_another(
    settings: Settings, context: Context
) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        peer.expect(SET * 5)
        peer.send(NULL)

    with FakeServer(script, replay([SET], [NULL]), context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            outcomes = await asyncio.gather(*(client.set("hello", "rust") for _ in range(5)), return_exceptions=True)
            assert outcomes[0] is None
            assert len({id(outcome) for outcome in outcomes}) == 5
            for outcome in outcomes[1:]:
                assert isinstance(outcome, ConnectionLost)
                assert outcome.may_be_applied
            await client.set("hello", "rust")


async def test_a_malformed_reply_is_told_to_its_caller_and_a_loss_to_those_behind(
    settings: Settings, context: Context
) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        peer.expect(SET * 3)
        peer.send(NULL + b"?")
        peer.wait_for_end()

    with FakeServer(script, context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            first, second, third = await asyncio.gather(
                *(client.set("hello", "rust") for _ in range(3)), return_exceptions=True
            )
    assert first is None
    assert isinstance(second, ProtocolError)
    assert isinstance(third, ConnectionLost)
    assert third.may_be_applied
    assert "was given up: a message does not begin" in str(third)


async def test_a_write_that_never_left_is_sent_on_another_connection(settings: Settings, context: Context) -> None:
    with FakeServer(replay([], []), replay([SET], [NULL]), context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            connection = client._connection = await Connection.open(client._settings, client._server, client._context)
            call = asyncio.create_task(client.set("hello", "rust"))
            # In the same turn of the loop, so before the collected requests are written.
            end = asyncio.create_task(connection.abort())
            await asyncio.gather(call, end)
        assert server.connections == 2


async def test_an_end_that_a_held_up_loop_has_not_read_is_seen_before_anything_is_sent(
    settings: Settings, context: Context
) -> None:
    def short(peer: Peer) -> None:
        peer.log_in()
        peer.expect(SET)
        peer.send(NULL)

    with FakeServer(short, context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            for _ in range(3):
                await client.set("hello", "rust")
                server.wait_for_last()  # blocks the loop
        assert server.connections == 3


async def test_an_opening_that_fails_when_every_caller_has_left_leaves_no_complaint(
    settings: Settings, context: Context
) -> None:
    arrived, left = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        arrived.set()
        assert left.wait(10)

    with FakeServer(script, context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port)) as client:
            call = asyncio.create_task(client.get("hello"))
            while not arrived.is_set():
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            left.set()
            while client._opening is not None:
                await asyncio.sleep(0)


async def test_a_silent_connection_gets_no_more_calls_and_keeps_those_it_has(
    settings: Settings, context: Context
) -> None:
    answer = threading.Event()

    def stuck(peer: Peer) -> None:
        peer.log_in()
        peer.expect(GET)
        assert answer.wait(10)
        peer.expect(SET)
        peer.send(RUST + NULL)
        peer.wait_for_end()

    with FakeServer(stuck, replay([GET], [RUST]), context=context) as server:
        async with asyncio.timeout(10), Client(settings(server.port, timeout_seconds=0.15)) as client:
            first = client._connection = await Connection.open(client._settings, client._server, client._context)
            with pytest.raises(Timeout, match="no reply"):
                await client.get("hello")
            late = asyncio.create_task(first.run(calls.set_("hello", "rust")))
            assert await client.get("hello") == b"rust"
            answer.set()
            await late
            assert server.connections == 2


async def test_a_retired_connection_ends_in_time_whatever_the_server_does(settings: Settings, context: Context) -> None:
    def stuck(peer: Peer) -> None:
        peer.log_in()
        peer.wait_for_end()

    with FakeServer(stuck, context=context) as server:
        async with asyncio.timeout(10):
            connection = await open_connection(settings(server.port))
            connection.retire(0.01)
            with pytest.raises(ConnectionLost, match="was silent"):
                await connection.run(calls.set_("hello", "rust"))
            await connection.abort()
            assert connection._retirement is not None
            assert connection._retirement.cancelled()


async def test_a_failure_and_a_cancellation_in_one_turn_leave_no_complaint(
    settings: Settings, context: Context
) -> None:
    with FakeServer(replay([GET], [b""]), context=context) as server:
        async with asyncio.timeout(10):
            connection = await open_connection(settings(server.port))
            call = asyncio.create_task(connection.run(calls.get("hello")))
            await turns(3)
            connection._conversation.end(None)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await connection.close()


async def test_closing_fails_the_calls_that_wait(settings: Settings, context: Context) -> None:
    asked = threading.Event()

    def silent(peer: Peer) -> None:
        peer.log_in()
        peer.expect(SET * 3)
        asked.set()
        peer.wait_for_end()

    with FakeServer(silent, context=context) as server:
        async with asyncio.timeout(10):
            client = Client(settings(server.port))
            waiting = [asyncio.create_task(client.set("hello", "rust")) for _ in range(3)]
            while not asked.is_set():
                await asyncio.sleep(0)
            await client.close()
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, ConnectionLost)
                assert outcome.may_be_applied
                assert "is closed" in str(outcome)
            await client.close()


async def test_closing_while_the_connection_is_being_opened_ends_both(settings: Settings, context: Context) -> None:
    arrived = threading.Event()

    def silent(peer: Peer) -> None:
        arrived.set()
        peer.wait_for_end()

    with FakeServer(silent, context=context) as server:
        async with asyncio.timeout(10):
            client = Client(settings(server.port))
            waiting = asyncio.create_task(client.get("hello"))
            while not arrived.is_set():
                await asyncio.sleep(0)
            await client.close()
            with pytest.raises(ConnectionLost, match="is closed"):
                await waiting


async def test_a_server_that_does_not_say_goodbye_cannot_hold_up_a_close(
    settings: Settings, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_connection, "GOODBYE_SECONDS", 0.05)
    closed = threading.Event()

    def rude(peer: Peer) -> None:
        peer.log_in()
        assert closed.wait(10)

    with FakeServer(rude, context=context) as server:
        async with asyncio.timeout(5):
            client = Client(settings(server.port))
            call = asyncio.create_task(client.set("hello", bytes(20 * 1024 * 1024)))
            while client._connection is None:
                await asyncio.sleep(0)
            await turns(20)
            await client.close()
        closed.set()
        with pytest.raises(ConnectionLost):
            await call


async def test_connect_can_be_awaited_and_entered(settings: Settings, context: Context) -> None:
    async with EchoServer(1, context) as server, asyncio.timeout(10):
        ca = settings(server.port).ca
        given = {"port": server.port, "username": "kvsduser", "password": "secret", "disable_tls": context is None}
        client = await connect(ca=ca, **given)
        assert await client.get("abc") == b"cba"
        await client.close()
        async with connect(ca=ca, **given) as client:
            assert await client.get("abc") == b"cba"
            assert await client.ping() > 0
        with pytest.raises(ClientUnusable, match="is closed"):
            await client.get("abc")


async def test_connect_reports_refused_credentials_and_leaves_nothing_open(
    settings: Settings, context: Context
) -> None:
    def script(peer: Peer) -> None:
        peer.expect(VECTORS["authenticate"])
        peer.send(VECTORS["bad credentials reply"])

    with FakeServer(script, context=context) as server:
        resolved = settings(server.port)
        async with asyncio.timeout(10):
            with pytest.raises(AuthenticationError, match="refused the user name"):
                async with connect(
                    port=server.port,
                    username="kvsduser",
                    password="secret",
                    ca=resolved.ca,
                    disable_tls=resolved.disable_tls,
                ):
                    pass


async def test_insecure_is_warned_of(settings: Settings) -> None:
    with pytest.warns(RuntimeWarning, match="not verified"):
        connect(username="kvsduser", password="secret", insecure=True)
