"""The same scripts against both clients, in the clear and over TLS: what they promise alike."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kvsd.client.settings import ConnectSettings
from kvsd.errors import (
    AuthenticationError,
    Busy,
    CannotConnect,
    ClientUnusable,
    ConnectionLost,
    ConnectionRefused,
    InvalidValue,
    KvsdError,
    ProtocolError,
    RequestError,
    StorageError,
    Timeout,
    UnexpectedMessage,
)
from kvsd.protocol.messages import Fail, Ping, Success, Welcome, encode

from .fake import LOGIN, NULL, PATIENCE_SECONDS, SHELLS, VECTORS, WELCOME, FakeServer, Peer, Script, replay

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

GET = VECTORS["get"]
SET = VECTORS["set"]
DELETE = VECTORS["delete"]
RUST = encode(Success(b"rust"))


@pytest.fixture(params=list(SHELLS))
def shell(request: pytest.FixtureRequest) -> type:
    return SHELLS[request.param]


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_the_captured_conversation_of_the_rust_server_is_understood_in_any_pieces(
    shell: type, context: Context, settings: Settings, piece_bytes: int
) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        for request, reply in (
            (VECTORS["set"], VECTORS["set reply"]),
            (VECTORS["set"], VECTORS["set overwrite reply"]),
            (VECTORS["set empty key"], VECTORS["set reply"]),
            (VECTORS["set utf-8"], VECTORS["set reply"]),
            (VECTORS["set empty value"], VECTORS["set reply"]),
            (VECTORS["get"], VECTORS["get reply binary"]),
            (VECTORS["get"], VECTORS["get missing reply"]),
            (VECTORS["delete"], VECTORS["delete reply"]),
            (VECTORS["delete"], VECTORS["delete missing reply"]),
        ):
            peer.expect(request)
            peer.send(reply, piece_bytes)
        ping = peer.read(len(VECTORS["ping"]))
        assert ping.startswith(b"*3\r\n#\x01T")
        assert ping.endswith(b"+00:00\r\n|")
        peer.send(VECTORS["ping reply"], piece_bytes)
        peer.wait_for_end()

    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        assert client.set("hello", "rust") is None
        assert client.set(b"hello", b"rust") is None
        assert client.set("", "x") is None
        assert client.set("空鍵", "値") is None
        assert client.set("e", "") is None
        assert client.get("hello") == b"a\r\nb\x00\xff"
        assert client.get(b"hello") is None
        assert client.delete("hello") == b"new"
        assert client.delete("hello") is None
        assert 0 < client.ping() < 10


def test_bad_credentials_name_the_server_and_never_the_password(
    shell: type, context: Context, settings: Settings
) -> None:
    def script(peer: Peer) -> None:
        peer.expect(LOGIN)
        peer.send(VECTORS["bad credentials reply"])

    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        with pytest.raises(AuthenticationError, match=f"127.0.0.1:{server.port} refused the user name") as caught:
            client.get("hello")
        assert "secret" not in str(caught.value)
        with pytest.raises(AuthenticationError):
            client.set("hello", "rust")
        assert server.connections == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("UNEXPECTED_MESSAGE", UnexpectedMessage),
        ("INVALID_VALUE", InvalidValue),
        ("CORRUPT_LOG", StorageError),
        ("FROM_THE_FUTURE", RequestError),
    ],
)
def test_a_refused_request_leaves_the_connection_in_step(
    shell: type, context: Context, settings: Settings, code: str, error: type[KvsdError]
) -> None:
    script = replay([SET, GET], [encode(Fail(code, "for a reason")), RUST])
    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        with pytest.raises(error, match="for a reason"):
            client.set("hello", "rust")
        assert client.get("hello") == b"rust"
        assert server.connections == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        encode(Ping(None, None)),
        encode(Fail("UNDEFINED", "out of step")),
        b"*2\r\n#\x03$99999999999999999999\r\n",
        b"*2\r\n#\x03+text\r\n",
    ],
    ids=["foreign", "mismatch", "undefined", "length", "frame"],
)
def test_a_reply_that_makes_no_sense_ends_the_connection_and_not_the_client(
    shell: type, context: Context, settings: Settings, garbage: bytes
) -> None:
    with (
        FakeServer(replay([SET], [garbage]), replay([GET], [RUST]), context=context) as server,
        shell(settings(server.port)) as client,
    ):
        with pytest.raises(ProtocolError):
            client.set("hello", "rust")
        assert client.get("hello") == b"rust"
        assert server.connections == 2


def test_a_reply_that_nobody_asked_for_is_never_taken_for_the_next_one(
    shell: type, context: Context, settings: Settings
) -> None:
    stale = encode(Success(b"stale"))
    with (
        FakeServer(replay([GET], [RUST + stale]), replay([GET], [RUST]), context=context) as server,
        shell(settings(server.port)) as client,
    ):
        for _ in range(2):
            try:
                assert client.get("hello") == b"rust"
            except ProtocolError:
                continue


def test_busy_is_tried_again_on_the_same_connection_even_for_a_set(
    shell: type, context: Context, settings: Settings
) -> None:
    busy = encode(Fail("BUSY", "too much to do"))
    script = replay([SET, SET, SET], [busy, busy, NULL])
    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        client.set("hello", "rust")
        assert server.connections == 1


def test_busy_at_login_is_tried_again(shell: type, context: Context, settings: Settings) -> None:
    def full(peer: Peer) -> None:
        peer.expect(LOGIN)
        peer.send(encode(Fail("BUSY", "too many logins")))
        peer.wait_for_end()

    with (
        FakeServer(full, full, replay([SET], [NULL]), context=context) as server,
        shell(settings(server.port)) as client,
    ):
        client.set("hello", "rust")
        assert server.connections == 3


def test_a_server_that_stays_busy_is_reported_as_busy_within_the_timeout(
    shell: type, context: Context, settings: Settings
) -> None:
    def busy(peer: Peer) -> None:
        peer.log_in()
        while True:
            try:
                peer.expect(GET)
            except AssertionError:
                return
            peer.send(encode(Fail("BUSY", "too much to do")))

    with (
        FakeServer(busy, context=context) as server,
        shell(settings(server.port, timeout_seconds=0.15)) as client,
        pytest.raises(Busy, match="too much to do"),
    ):
        client.get("hello")


def test_a_pause_that_takes_too_long_ends_with_what_it_followed(
    shell: type, context: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with much to do wakes a sleeper late; nobody waited for a turn behind other calls."""
    nap, snooze = time.sleep, asyncio.sleep
    monkeypatch.setattr(time, "sleep", lambda _: nap(0.5))
    monkeypatch.setattr(asyncio, "sleep", lambda _: snooze(0.5))
    busy = replay([GET], [encode(Fail("BUSY", "too much to do"))])
    with (
        FakeServer(busy, context=context) as server,
        shell(settings(server.port, timeout_seconds=0.3)) as client,
        pytest.raises(Busy, match="too much to do"),
    ):
        client.get("hello")


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_was_closed_while_idle_is_reopened_without_a_word(
    shell: type, context: Context, settings: Settings, reset: bool
) -> None:
    def short(peer: Peer) -> None:
        peer.log_in()
        peer.expect(SET)
        peer.send(NULL)
        if reset:
            peer.reset()

    with FakeServer(short, context=context) as server, shell(settings(server.port)) as client:
        for _ in range(3):
            client.set("hello", "rust")
            server.wait_for_last()
        assert server.connections == 3


def cut(request: bytes, reply: bytes = b"") -> Script:
    """Log in, read just so much of a request, send just so much of a reply, and close."""

    def script(peer: Peer) -> None:
        peer.log_in()
        peer.expect(request)
        peer.send(reply)

    return script


def test_a_get_survives_a_server_that_closes_at_any_point(shell: type, context: Context, settings: Settings) -> None:
    points = [cut(GET[:size]) for size in range(0, len(GET), 5)]
    points += [cut(GET, RUST[:size]) for size in range(len(RUST))]
    for point in points:
        with (
            FakeServer(point, replay([GET], [RUST]), context=context) as server,
            shell(settings(server.port)) as client,
        ):
            assert client.get("hello") == b"rust"
        assert server.connections == 2


@pytest.mark.parametrize("method", ["set", "delete"])
def test_a_write_is_never_repeated_once_it_was_sent(
    shell: type, context: Context, settings: Settings, method: str
) -> None:
    request, arguments = {"set": (SET, ("hello", "rust")), "delete": (DELETE, ("hello",))}[method]
    for size in range(len(NULL)):
        with (
            FakeServer(cut(request, NULL[:size]), context=context) as server,
            shell(settings(server.port)) as client,
            pytest.raises(ConnectionLost, match="may have been carried out") as caught,
        ):
            getattr(client, method)(*arguments)
        assert caught.value.may_be_applied
        assert server.connections == 1


@pytest.mark.parametrize("read_bytes", [0, 1, len(LOGIN)])
@pytest.mark.parametrize("sent_bytes", [0, 3])
def test_a_server_that_closes_in_the_middle_of_the_login_is_a_lost_connection(
    shell: type, context: Context, settings: Settings, read_bytes: int, sent_bytes: int
) -> None:
    def script(peer: Peer) -> None:
        peer.expect(LOGIN[:read_bytes])
        peer.send(WELCOME[:sent_bytes])

    with (
        FakeServer(script, context=context) as server,
        shell(settings(server.port)) as client,
        pytest.raises(ConnectionLost),
    ):
        client.set("hello", "rust")
    assert server.connections == 1


def test_a_get_gives_up_after_three_connections(shell: type, context: Context, settings: Settings) -> None:
    with (
        FakeServer(cut(GET), context=context) as server,
        shell(settings(server.port)) as client,
        pytest.raises(ConnectionLost),
    ):
        client.get("hello")
    assert server.connections == 3


def test_the_reason_of_a_server_that_refuses_half_a_request_and_closes_reaches_the_caller(
    shell: type, context: Context, settings: Settings
) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        peer.read(1000)
        peer.send(encode(Fail("INVALID_VALUE", "far too long")))

    with (
        FakeServer(script, context=context) as server,
        shell(settings(server.port)) as client,
        pytest.raises(InvalidValue, match="far too long"),
    ):
        client.set("hello", bytes(30 * 1024 * 1024))


def test_a_reply_that_never_comes_is_a_timeout_that_says_what_may_have_happened(
    shell: type, context: Context, settings: Settings
) -> None:
    def silent(peer: Peer) -> None:
        peer.log_in()
        peer.wait_for_end()

    with (
        FakeServer(silent, context=context) as server,
        shell(settings(server.port, timeout_seconds=0.1)) as client,
        pytest.raises(Timeout, match=r"no reply .* within 0.1 s; .* may have been carried out") as caught,
    ):
        client.set("hello", "rust")
    assert caught.value.may_be_applied


def test_the_reply_of_a_timed_out_call_is_never_taken_for_the_next_one(
    shell: type, context: Context, settings: Settings
) -> None:
    timed_out = threading.Event()

    def late(peer: Peer) -> None:
        peer.log_in()
        peer.expect(GET)
        peer.send(RUST)
        peer.expect(GET)
        assert timed_out.wait(10)
        with suppress(OSError):
            peer.send(encode(Success(b"late")))
        peer.wait_for_end()

    with (
        FakeServer(late, replay([GET], [RUST]), context=context) as server,
        shell(settings(server.port, timeout_seconds=0.15)) as client,
    ):
        assert client.get("hello") == b"rust"
        with pytest.raises(Timeout):
            client.get("hello")
        timed_out.set()
        assert client.get("hello") == b"rust"


def test_a_server_that_never_answers_the_login_may_be_full(shell: type, context: Context, settings: Settings) -> None:
    def silent(peer: Peer) -> None:
        peer.wait_for_end()

    with (
        FakeServer(silent, context=context) as server,
        shell(settings(server.port, connect_timeout_seconds=0.1)) as client,
        pytest.raises(Timeout, match=r"accepted no handshake within 0.1 s; it may be full") as caught,
    ):
        client.set("hello", "rust")
    assert not caught.value.may_be_applied
    assert server.connections == 1


def test_nobody_listening_is_reported_at_once_with_what_to_do(shell: type, settings: Settings, free_port: int) -> None:
    with (
        shell(settings(free_port)) as client,
        pytest.raises(ConnectionRefused, match="is `kvsd serve` running there") as caught,
    ):
        client.get("hello")
    assert not caught.value.may_be_applied


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70, "nul\0"])
def test_a_host_that_cannot_be_resolved_is_told(shell: type, settings: Settings, host: str) -> None:
    with shell(settings(1, host=host)) as client, pytest.raises(CannotConnect, match="check the name"):
        client.get("hello")


def test_a_closed_client_says_so(shell: type, settings: Settings) -> None:
    with shell(settings(1)) as client:
        client.close()
        with pytest.raises(ClientUnusable, match="is closed"):
            client.get("hello")


def test_a_key_that_is_no_text_travels_as_bytes(shell: type, context: Context, settings: Settings) -> None:
    script = replay([VECTORS["hello"], b"*2\r\n#\x06$4\r\n\xff\r\n\x00\r\n"], [encode(Welcome(1, ())), RUST])
    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        assert client.get(b"\xff\r\n\x00") == b"rust"


def test_a_value_longer_than_any_buffer_comes_back_whole(shell: type, context: Context, settings: Settings) -> None:
    value = bytes(range(256)) * 20_000
    request = b"*3\r\n#\x05+hello\r\n$%d\r\n%b\r\n" % (len(value), value)
    script = replay([request, GET], [NULL, encode(Success(value))])
    with FakeServer(script, context=context) as server, shell(settings(server.port)) as client:
        client.set("hello", value)
        assert client.get("hello") == value


def test_a_server_that_starts_later_is_waited_for(shell: type, context: Context, settings: Settings) -> None:
    """And the time that this takes is not part of the call's."""
    with socket.socket() as bound, ThreadPoolExecutor(1) as threads:
        bound.bind(("127.0.0.1", 0))
        made = settings(bound.getsockname()[1], wait_seconds=20.0, timeout_seconds=0.5)

        def get() -> object:
            with shell(made) as client:
                return client.get("hello")

        found = threads.submit(get)
        with pytest.raises(TimeoutError):
            found.result(0.6)
        with FakeServer(replay([GET], [RUST]), context=context, listener=bound):
            assert found.result(10) == b"rust"


@pytest.mark.parametrize("context", ["tls"], indirect=True)
def test_a_handshake_that_a_restart_cuts_off_is_part_of_the_wait(
    shell: type, context: Context, settings: Settings
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        made = settings(listener.getsockname()[1], wait_seconds=20.0)

        def get() -> object:
            with shell(made) as client:
                return client.get("hello")

        found = threads.submit(get)
        listener.settimeout(PATIENCE_SECONDS)
        listener.accept()[0].close()
        with FakeServer(replay([GET], [RUST]), context=context, listener=listener):
            assert found.result(10) == b"rust"


def test_waiting_for_a_server_ends(shell: type, settings: Settings, free_port: int) -> None:
    with (
        shell(settings(free_port, wait_seconds=0.1)) as client,
        pytest.raises(ConnectionRefused, match="is `kvsd serve` running there"),
    ):
        client.get("hello")
