"""The blocking client: threads, its pool, and what goes out when."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import kvsd
from kvsd.client.conversation import Conversation
from kvsd.client.settings import ConnectSettings
from kvsd.client.sync import Client
from kvsd.errors import ClientUnusable, Timeout
from kvsd.protocol.messages import Success, encode

from .fake import LOGIN, NULL, VECTORS, WELCOME, FakeServer, Peer, replay

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

GET = VECTORS["get"]
RUST = encode(Success(b"rust"))


def test_the_login_and_a_small_first_request_leave_in_one_write(context: Context, settings: Settings) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.socket.recv(65_536))
        peer.send(WELCOME + RUST)
        peer.wait_for_end()

    with FakeServer(script, context=context) as server, Client(settings(server.port)) as client:
        assert client.get("hello") == b"rust"
    assert seen == [LOGIN + GET]


def test_a_large_value_waits_until_the_login_was_accepted(context: Context, settings: Settings) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.socket.recv(65_536))
        peer.send(VECTORS["bad credentials reply"])
        peer.wait_for_end()

    with (
        FakeServer(script, context=context) as server,
        Client(settings(server.port)) as client,
        pytest.raises(kvsd.AuthenticationError),
    ):
        client.set("hello", bytes(4096))
    assert seen == [LOGIN]


def test_the_login_is_no_part_of_a_ping(context: Context, settings: Settings) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.socket.recv(65_536))
        peer.send(WELCOME)
        peer.read(len(VECTORS["ping"]))
        peer.send(VECTORS["ping reply"])
        peer.wait_for_end()

    with FakeServer(script, context=context) as server, Client(settings(server.port)) as client:
        assert client.ping() > 0
    assert seen == [LOGIN]


def test_many_threads_get_their_own_replies_over_few_connections(context: Context, settings: Settings) -> None:
    def echo(peer: Peer) -> None:
        peer.log_in()
        while True:
            try:
                request = peer.read(len(b"*2\r\n#\x06+key-00\r\n"))
            except AssertionError:
                return
            peer.send(encode(Success(request[7:13])))

    with (
        FakeServer(echo, context=context) as server,
        Client(settings(server.port), pool_size=3) as client,
        ThreadPoolExecutor(12) as threads,
    ):
        names = [f"key-{n % 100:02}" for n in range(300)]
        assert list(threads.map(client.get, names)) == [name.encode() for name in names]
        assert server.connections <= 3


def test_connections_are_opened_only_as_they_are_needed(context: Context, settings: Settings) -> None:
    with FakeServer(replay([GET] * 3, [RUST] * 3), context=context) as server:
        with Client(settings(server.port)) as client:
            assert server.connections == 0
            for _ in range(3):
                client.get("hello")
        assert server.connections == 1


def test_a_thread_that_finds_no_free_connection_times_out_with_the_reason(context: Context, settings: Settings) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(peer: Peer) -> None:
        peer.log_in()
        peer.expect(GET)
        asked.set()
        assert answer.wait(10)
        peer.send(RUST)
        peer.wait_for_end()

    with (
        FakeServer(slow, context=context) as server,
        Client(settings(server.port, timeout_seconds=1.0), pool_size=1) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        first = threads.submit(client.get, "hello")
        assert asked.wait(10)
        client._timeout_seconds = 0.05
        with pytest.raises(Timeout, match="raise pool_size") as caught:
            client.get("hello")
        assert not caught.value.may_be_applied
        answer.set()
        assert first.result(10) == b"rust"


def test_a_busy_connection_is_closed_after_its_call_when_the_client_was_closed(
    context: Context, settings: Settings
) -> None:
    asked, answer, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(peer: Peer) -> None:
        peer.log_in()
        peer.expect(GET)
        asked.set()
        assert answer.wait(10)
        peer.send(RUST)
        peer.wait_for_end()
        ended.set()

    with FakeServer(slow, context=context) as server, ThreadPoolExecutor(1) as threads:
        client = Client(settings(server.port))
        call = threads.submit(client.get, "hello")
        assert asked.wait(10)
        client.close()
        answer.set()
        assert call.result(10) == b"rust"
        assert ended.wait(10)
        with pytest.raises(ClientUnusable, match="is closed"):
            client.get("hello")


def test_an_interrupted_call_takes_its_connection_with_it(
    context: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with (
        FakeServer(replay([GET] * 2, [RUST, b"late"]), replay([GET], [RUST]), context=context) as server,
        Client(settings(server.port)) as client,
    ):
        assert client.get("hello") == b"rust"
        monkeypatch.setattr(Conversation, "receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.get("hello")
        assert client.get("hello") == b"rust"


def test_connect_reaches_the_server_that_its_url_names(context: Context, settings: Settings) -> None:
    with FakeServer(replay([GET], [RUST]), context=context) as server:
        ca = settings(server.port).ca
        query = "disable_tls=1" if ca is None else f"ca={ca}"
        with kvsd.connect(f"kvsd://kvsduser:secret@127.0.0.1:{server.port}?{query}") as client:
            assert client.get("hello") == b"rust"


def test_insecure_is_warned_of_and_works_without_any_ca(authority: object) -> None:
    with FakeServer(replay([GET], [RUST]), context=authority.server) as server:
        with pytest.warns(RuntimeWarning, match="not verified"):
            client = kvsd.connect(port=server.port, username="kvsduser", password="secret", insecure=True)
        with client:
            assert client.get("hello") == b"rust"


def test_a_set_of_nothing_is_a_set(context: Context, settings: Settings) -> None:
    with (
        FakeServer(replay([VECTORS["set empty value"]], [NULL]), context=context) as server,
        Client(settings(server.port)) as client,
    ):
        client.set("e", b"")


@pytest.mark.parametrize("value", [7, None, ["list"]])
def test_only_text_and_bytes_are_taken(settings: Settings, value: object) -> None:
    with Client(settings(1)) as client, pytest.raises(TypeError, match="str or bytes"):
        client.set("hello", value)
