"""Engine calls of both clients against scripted servers: clocks that differ, lies, and ends at awkward moments."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress

import pytest

from kvsd.client import calls
from kvsd.client.parts import PART_BYTES, parts
from kvsd.client.settings import ConnectSettings
from kvsd.errors import Busy, InvalidValue, ProtocolError, Timeout, UnexpectedMessage
from kvsd.protocol import engine
from kvsd.protocol.frames import Time
from kvsd.protocol.messages import Fail, Message, Ping, Set, Welcome, encode

from .fake import NULL, SHELLS, AioShell, FakeServer, Peer, Script

Settings = Callable[..., ConnectSettings]
Context = ssl.SSLContext | None

INCR = engine.Update(None, None, b"n", "incr", b"1")
HELLO = calls.hello().message
BUSY = Fail("BUSY", "too much to do")


@pytest.fixture(params=list(SHELLS))
def run(request: pytest.FixtureRequest) -> Callable[..., object]:
    """Carry out a call with one of the clients."""

    def run(settings: ConnectSettings, name: str, *arguments: object) -> object:
        with SHELLS[request.param](settings) as client:
            if not isinstance(client, AioShell):
                result = getattr(client, name)(*arguments)
                return list(result) if name == "keys" else result
            method = getattr(client._client, name)

            async def collect() -> list[object]:
                return [item async for item in method(*arguments)]

            return client._runner.run(collect() if name == "keys" else method(*arguments))

    return run


def talk(*turns: tuple[Message, Message]) -> Script:
    """Log in, welcome, then each request with its reply; then close."""

    def script(peer: Peer) -> None:
        peer.log_in()
        for request, reply in ((HELLO, Welcome(1, ())), *turns):
            peer.expect(encode(request))
            peer.send(encode(reply))
        peer.wait_for_end()

    return script


def cut_at_hello(peer: Peer) -> None:
    peer.log_in()
    peer.expect(encode(HELLO))


def test_what_a_key_has_left_does_not_depend_on_this_machines_clock(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    entry = engine.Entry(b"v", 1, 0, 95_000_000)
    script = talk((engine.Fetch(None, None, b"k"), entry), (Ping(None, None), Ping(None, Time(90_000_000_000))))
    with FakeServer(script, context=context) as server:
        assert run(settings(server.port), "ttl", "k") == 5.0
    past = talk((engine.Fetch(None, None, b"k"), entry), (Ping(None, None), Ping(None, Time(96_000_000_000))))
    with FakeServer(past, context=context) as server:
        assert run(settings(server.port), "ttl", "k") == 0.0


@pytest.mark.parametrize("reply", [Ping(None, None), engine.Number(1)])
def test_a_server_without_a_clock_makes_no_sense(
    run: Callable[..., object], context: Context, settings: Settings, reply: Message
) -> None:
    script = talk((engine.Fetch(None, None, b"k"), engine.Entry(b"v", 1, 0, 1)), (Ping(None, None), reply))
    with FakeServer(script, context=context) as server, pytest.raises(ProtocolError, match="no reply"):
        run(settings(server.port), "ttl", "k")


@pytest.mark.parametrize("following", [b"", b"k"])
def test_a_scan_that_is_led_back_ends(
    run: Callable[..., object], context: Context, settings: Settings, following: bytes
) -> None:
    page = engine.Page(following, ((b"k", None),))
    script = talk((engine.Scan(None, None, b"k", b"l", 500, False), page))
    with FakeServer(script, context=context) as server, pytest.raises(ProtocolError, match="leads back"):
        run(settings(server.port), "keys", "k")


def test_a_write_whose_hello_was_lost_was_not_sent_and_so_is_tried_again(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    with FakeServer(cut_at_hello, talk((INCR, engine.Number(1))), context=context) as server:
        assert run(settings(server.port), "incr", "n") == 1


def test_a_write_whose_hello_is_lost_each_time_cannot_have_been_carried_out(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    with FakeServer(cut_at_hello, context=context) as server, pytest.raises(UnexpectedMessage) as caught:
        run(settings(server.port), "incr", "n")
    assert "carried out" not in str(caught.value)
    assert server.connections == 2


def test_a_write_whose_hello_gets_no_reply_cannot_have_been_carried_out(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    def silent(peer: Peer) -> None:
        cut_at_hello(peer)
        peer.wait_for_end()

    with FakeServer(silent, context=context) as server, pytest.raises(Timeout) as caught:
        run(settings(server.port, timeout_seconds=0.2), "incr", "n")
    assert not caught.value.may_be_applied
    assert "carried out" not in str(caught.value)


def test_busy_has_only_the_refused_one_of_many_sets_sent_again(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    """A set that was answered must not be repeated: somebody else may have written the key meanwhile."""

    def script(peer: Peer) -> None:
        peer.log_in()
        for key in (b"a", b"b", b"c"):
            peer.expect(encode(Set(key, b"1")))
        peer.send(NULL + encode(BUSY) + NULL)
        peer.expect(encode(Set(b"b", b"1")))
        peer.send(NULL)
        with suppress(OSError):
            assert peer.socket.recv(1) == b""

    with FakeServer(script, context=context) as server:
        assert run(settings(server.port), "set_many", {"a": "1", "b": "1", "c": "1"}) is None


def test_an_error_of_one_of_many_sets_is_told(run: Callable[..., object], context: Context, settings: Settings) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        peer.expect(encode(Set(b"a", b"1")) + encode(Set(b"b", b"1")))
        peer.send(NULL + encode(Fail("INVALID_VALUE", "too long")))
        peer.wait_for_end()

    with FakeServer(script, context=context) as server, pytest.raises(InvalidValue, match="too long"):
        run(settings(server.port), "set_many", {"a": "1", "b": "1"})


def test_busy_for_all_time_ends_with_the_timeout(
    run: Callable[..., object], context: Context, settings: Settings
) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        request = encode(Set(b"a", b"1"))
        with suppress(AssertionError, OSError):
            while True:
                peer.expect(request)
                peer.send(encode(BUSY))

    with FakeServer(script, context=context) as server, pytest.raises((Busy, Timeout)):
        run(settings(server.port, timeout_seconds=0.15), "set_many", {"a": "1"})


def test_many_sets_are_sent_in_parts_of_bounded_size() -> None:
    sizes = [PART_BYTES + 1, 5, PART_BYTES - 5, 1] + [1] * 250
    made = list(parts((calls.set_("k", bytes(size)) for size in sizes), 100))
    assert [[calls.value_bytes(call) for call in part] for part in made[:2]] == [sizes[:1], sizes[1:3]]
    assert [len(part) for part in made[2:]] == [100, 100, 51]
    assert list(parts([], 100)) == []
