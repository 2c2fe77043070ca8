"""Both clients and the Rust program, which ends a connection in answer to Hello."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kvsd.aio import Client
from kvsd.client import acquaintance, calls
from kvsd.client.settings import ConnectSettings
from kvsd.errors import InvalidKey, UnexpectedMessage
from kvsd.protocol.messages import Fail, Success, Welcome, encode

from .fake import NULL, PATIENCE_SECONDS, SHELLS, VECTORS, FakeServer, Peer, RustServer, replay

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

HELLO = encode(calls.hello().message)

BEYOND: list[tuple[str, tuple[object, ...], dict[str, object]]] = [
    ("entry", ("k",), {}),
    ("ttl", ("k",), {}),
    ("expire", ("k", 5), {}),
    ("persist", ("k",), {}),
    ("incr", ("k",), {}),
    ("decr", ("k",), {}),
    ("append", ("k", "v"), {}),
    ("getset", ("k", "v"), {}),
    ("exists", ("k",), {}),
    ("count", (), {}),
    ("set", ("k", "v"), {"ttl": 5}),
    ("set", ("k", "v"), {"if_absent": True}),
    ("set", ("k", "v"), {"if_version": 1}),
    ("delete", ("k",), {"if_version": 1}),
]
"""Calls that types 1 to 7 cannot express."""


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> type:
    return SHELLS[request.param]


def test_the_hello_that_was_tried_on_the_rust_program_is_the_one_that_clients_say() -> None:
    assert VECTORS["hello"] == HELLO


def test_what_a_plain_server_cannot_do_is_told_and_the_answer_remembered(
    shell: type, context: Context, settings: Settings
) -> None:
    rust = RustServer()
    with FakeServer(rust, context=context) as server, shell(settings(server.port)) as client:
        client.set("k", "v")
        for name, arguments, named in BEYOND:
            with pytest.raises(UnexpectedMessage, match="plain get, set and delete"):
                client.do(name, *arguments, **named)
        assert rust.hellos == acquaintance.CLOSES_IN_ANSWER
        assert client.get("k") == b"v"
        assert client.delete("k") == b"v"
        assert client.ping() > 0
        # That of the first set, one for the second Hello, one for the rest.
        assert server.connections == 3


def test_a_server_in_the_place_of_a_plain_one_is_noticed(
    shell: type, context: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    rust = RustServer()
    store = encode(calls.set_("k", "v", ttl=5).message)
    whole = replay([HELLO, store], [encode(Welcome(1, ())), NULL])
    with FakeServer(rust, rust, whole, context=context) as server, shell(settings(server.port)) as client:
        for _ in range(2):
            with pytest.raises(UnexpectedMessage):
                client.do("entry", "k")
        now = time.monotonic() + acquaintance.PLAIN_SECONDS
        monkeypatch.setattr(acquaintance, "monotonic", lambda: now)
        assert client.do("set", "k", "v", ttl=5) is None
        assert (rust.hellos, server.connections) == (2, 3)


def test_one_close_in_answer_to_hello_is_a_restart(shell: type, context: Context, settings: Settings) -> None:
    store = encode(calls.set_("k", "v", ttl=5).message)
    whole = replay([HELLO, store], [encode(Welcome(1, ("versions",))), b"*2\r\n#\x2b+7\r\n"])
    with FakeServer(RustServer(), whole, context=context) as server, shell(settings(server.port)) as client:
        assert client.do("set", "k", "v", ttl=5) == 7
        assert server.connections == 2


def test_connections_that_a_restart_ends_together_count_once(context: Context, settings: Settings) -> None:
    """Several threads say Hello for the first time while the server goes down."""
    threads = 4
    ended = threading.Barrier(threads)
    question, answer = encode(calls.increment("n", 1).message), b"*2\r\n#\x2b+7\r\n"

    def dies(peer: Peer) -> None:
        peer.log_in()
        peer.expect(HELLO)
        ended.wait(PATIENCE_SECONDS)

    def restarts(peer: Peer) -> None:
        peer.log_in()
        peer.expect(HELLO)
        peer.send(encode(Welcome(1, ())))
        with suppress(AssertionError):  # the client has left
            while True:
                peer.expect(question)
                peer.send(answer)

    with (
        FakeServer(*[dies] * threads, restarts, context=context) as server,
        SHELLS["sync"](settings(server.port)) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        assert list(pool.map(lambda _: client.incr("n"), range(threads))) == [7] * threads


def test_a_server_that_answers_unexpected_message_keeps_its_connection(
    shell: type, context: Context, settings: Settings
) -> None:
    refusal = encode(Fail("UNEXPECTED_MESSAGE", ""))
    script = replay([HELLO, VECTORS["get"]], [refusal, encode(Success(b"rust"))])
    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        for _ in range(2):
            with pytest.raises(UnexpectedMessage, match="plain get, set and delete"):
                client.do("incr", "n")
        assert client.get("hello") == b"rust"
        assert server.connections == 1


@pytest.mark.parametrize("key", ["a\rb", "a\nb", "\n", "\r", "\n\r", "空\r鍵"])
def test_a_key_with_a_lone_line_end_reaches_a_plain_server(
    shell: type, context: Context, settings: Settings, key: str
) -> None:
    rust = RustServer()
    with FakeServer(rust, context=context) as server, shell(settings(server.port)) as client:
        client.set(key, "v")
        assert client.get(key) == b"v"
        assert rust.table == {key.encode(): b"v"}
        assert client.delete(key) == b"v"
        assert (rust.hellos, server.connections) == (0, 1)


@pytest.mark.parametrize("key", ["a\r\nb", "\r\n", b"\xff", b"\r\r\n"])
@pytest.mark.parametrize("name", ["get", "set", "delete"])
def test_a_key_that_a_plain_server_cannot_be_told_is_refused_here(
    shell: type, context: Context, settings: Settings, key: str | bytes, name: str
) -> None:
    rust = RustServer()
    with FakeServer(rust, context=context) as server, shell(settings(server.port)) as client:
        with pytest.raises(InvalidKey, match="UTF-8 without CR LF only"):
            client.do(name, key, *(["v"] if name == "set" else []))
        client.set("k", "v")
        assert rust.table == {b"k": b"v"}


def test_another_table_than_the_default_is_beyond_a_plain_server(
    shell: type, context: Context, settings: Settings
) -> None:
    with (
        FakeServer(RustServer(), context=context) as server,
        shell(settings(server.port, table="other")) as client,
        pytest.raises(UnexpectedMessage, match="on default/default only"),
    ):
        client.get("k")


async def test_a_hello_takes_no_other_call_with_it(context: Context, settings: Settings) -> None:
    rust = RustServer()
    with FakeServer(rust, context=context) as server:
        async with asyncio.timeout(20), Client(settings(server.port)) as client:
            before = [asyncio.create_task(client.set(f"before {n}", "v")) for n in range(25)]
            beyond = [asyncio.create_task(client.incr("n")) for _ in range(3)]
            after = [asyncio.create_task(client.set(f"after {n}", "v")) for n in range(25)]
            outcomes = await asyncio.gather(*before, *after, *beyond, return_exceptions=True)
    assert outcomes[:50] == [None] * 50
    assert all(isinstance(outcome, UnexpectedMessage) for outcome in outcomes[50:])
    assert len(rust.table) == 50
    assert rust.hellos == acquaintance.CLOSES_IN_ANSWER


async def test_a_caller_that_leaves_while_hello_is_under_way_takes_nobody_with_it(
    context: Context, settings: Settings
) -> None:
    """And what waits meanwhile goes on behind it, on the same connection."""
    script = replay([HELLO, VECTORS["set"]], [encode(Welcome(1, ())), NULL])
    with FakeServer(script, context=context) as server:
        async with asyncio.timeout(20), Client(settings(server.port)) as client:
            leaving = asyncio.create_task(client.incr("n"))
            while client._connection is None or client._connection._preparing is None:
                await asyncio.sleep(0)
            staying = asyncio.create_task(client.set("hello", "rust"))
            await asyncio.sleep(0)
            leaving.cancel()
            await staying
            assert leaving.cancelled()
        assert server.connections == 1
