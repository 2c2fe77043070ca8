"""A live server's conversation: what is answered to which bytes, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import socket
import threading
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsd.errors import Busy
from kvsd.protocol import engine
from kvsd.protocol.messages import (
    Authenticate,
    Delete,
    Fail,
    Get,
    Hello,
    Ping,
    Set,
    Success,
    Unknown,
    Welcome,
    encode,
)
from kvsd.server import Server, session, slot
from kvsd.server.authentication import Authenticator, Principal
from kvsd.server.names import DEFAULT_TABLE
from kvsd.server.session import Session
from kvsd.table.actor import TableActor
from kvsd.table.budget import Budget
from kvsd.table.medium import Medium
from kvsd.table.request import Request
from tests.conftest import Connect, Start

from .peers import LOGIN, NULL, REFUSED, VECTORS, Reports, client_context, until

LOOPS = ["asyncio", "uvloop"]

KIB = 1 << 10
MIB = 1 << 20


def budget(server: Server) -> int:
    return server._services.budget.held_bytes


def sessions(server: Server) -> set[Session]:
    return server._services.sessions


@pytest.fixture
def quick_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_LINGER_SECONDS", 0.05)


# The Rust program's client, played from captured bytes


async def test_the_rust_client_is_answered_with_the_rust_servers_bytes(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls), login=False)
    for request, reply in [
        ("authenticate", NULL),
        ("get", VECTORS["get missing reply"]),
        ("set", VECTORS["set reply"]),
        ("get", encode(Success(b"rust"))),
        ("set", VECTORS["set overwrite reply"]),
        ("delete", encode(Success(b"rust"))),
        ("delete", VECTORS["delete missing reply"]),
        ("set empty key", VECTORS["set reply"]),
        ("set utf-8", VECTORS["set reply"]),
        ("set empty value", VECTORS["set reply"]),
    ]:
        await peer.say(VECTORS[request])
        await peer.expect(reply)
    await peer.say(Get(b""), Get("空鍵".encode()), Get(b"e"))
    await peer.expect(encode(Success(b"x")) + encode(Success("値".encode())) + encode(Success(b"")))


async def test_pipelined_requests_are_answered_as_the_rust_server_does(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls), login=False)
    await peer.say(LOGIN, Set(b"p", b"1"), Get(b"p"), Delete(b"p"))
    await peer.expect(NULL + VECTORS["pipelined set,get,delete"])


async def test_a_ping_comes_back_with_its_own_time_and_ours(start: Start, connect: Connect, tls: bool) -> None:
    peer = await connect(await start(tls=tls))
    await peer.say(VECTORS["ping"])
    [sent_time] = re.findall(rb"T[^\r]+\r\n", VECTORS["ping"])
    head = b"*3\r\n#\x01" + sent_time
    await peer.expect(head)
    assert re.fullmatch(
        rb"T\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3,9})?\+00:00\r\n", await peer.reader.readuntil(b"\r\n")
    )
    await peer.say(Ping(None, None))
    await peer.expect(b"*3\r\n#\x01|T")


@pytest.mark.parametrize("credentials", [("kvsduser", "wrong"), ("nobody", "secret"), ("", ""), ("kvsduser", "")])
async def test_wrong_credentials_get_the_captured_bytes_and_a_close(
    start: Start, connect: Connect, tls: bool, credentials: tuple[str, str], quick_linger: None
) -> None:
    peer = await connect(await start(tls=tls), login=False)
    await peer.say(Authenticate(*credentials), Get(b"k"))
    assert await peer.rest() == REFUSED


@pytest.mark.parametrize(
    "first", [Ping(None, None), Get(b"k"), Set(b"k", b"v"), Hello(1, ()), Success(None), Unknown(200)]
)
async def test_a_first_message_that_is_no_authenticate_is_refused(
    start: Start, connect: Connect, first: Ping, quick_linger: None
) -> None:
    server = await start(tls=False)
    peer = await connect(server, login=False)
    await peer.say(first, LOGIN, Set(b"k", b"v"))
    assert await peer.rest() == encode(Fail("UNAUTHENTICATED", "the first message must be Authenticate"))
    assert server.entries == 0


async def test_a_client_that_comes_too_late_is_told_so(
    start: Start, connect: Connect, tls: bool, quick_linger: None
) -> None:
    peer = await connect(await start(tls=tls, authenticate_timeout_milliseconds=50), login=False)
    await peer.say(LOGIN[:10])
    assert await peer.rest() == encode(Fail("UNAUTHENTICATED", "no Authenticate within 50 ms"))


async def test_credentials_that_come_byte_by_byte_are_taken(start: Start, connect: Connect, tls: bool) -> None:
    peer = await connect(await start(tls=tls), login=False)
    await peer.say_slowly(LOGIN)
    await peer.expect(NULL)


@pytest.mark.parametrize(
    "message",
    [Authenticate("kvsduser", "secret"), Success(None), Success(b"v"), Fail("X", "y"), Welcome(1, ()), Unknown(8)],
)
async def test_a_message_out_of_place_is_refused_and_the_connection_stays(
    start: Start, connect: Connect, message: Success
) -> None:
    peer = await connect(await start(tls=False))
    await peer.say(Set(b"k", b"v"), message, Get(b"k"))
    done, refused, value = await peer.hear(3)
    assert done == Success(None)
    assert isinstance(refused, Fail)
    assert refused.code == "UNEXPECTED_MESSAGE"
    assert value == Success(b"v")


async def test_hello_is_welcomed(start: Start, connect: Connect, tls: bool) -> None:
    peer = await connect(await start(tls=tls))
    await peer.say(Hello(7, ("streams",)))
    assert await peer.hear_one() == Welcome(1, ())
    await peer.say(Hello(1, ("streams", "versions", "versions")))
    assert await peer.hear_one() == Welcome(1, ("versions",))


async def test_only_a_client_that_asked_for_versions_is_told_them(start: Start, connect: Connect) -> None:
    store = engine.Store(None, None, b"k", b"v", None, None)
    peer = await connect(await start())
    await peer.say(Hello(1, ()), store)
    assert await peer.hear(2) == [Welcome(1, ()), Success(None)]
    await peer.say(Hello(1, ("versions",)), store, engine.Fetch(None, None, b"k"), Set(b"k", b"v"))
    _, number, entry, done = await peer.hear(4)
    assert number == engine.Number(entry.version)
    assert done == Success(None)


# Limits


async def test_a_key_or_value_up_to_twice_the_limit_is_refused_and_the_stream_stays_in_step(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls, max_key_bytes=10, max_value_bytes=1000))
    await peer.say(
        Set(b"k" * 11, b"v"),
        Set(b"k", bytes(1001)),
        Set(b"k", bytes(2000)),
        Get(b"k" * 20),
        Delete(b"k" * 11),
        Get(b"k"),
    )
    codes = [message.code if isinstance(message, Fail) else message for message in await peer.hear(6)]
    assert codes == ["INVALID_KEY", "INVALID_VALUE", "INVALID_VALUE", "INVALID_KEY", "INVALID_KEY", Success(None)]


async def test_a_key_and_a_value_of_full_length_are_stored(start: Start, connect: Connect, tls: bool) -> None:
    peer = await connect(await start(tls=tls))
    key, value = b"k" * 1024, b"v" * (10 * MIB)
    await peer.say(Set(key, value))
    await peer.expect(NULL)
    await peer.say(Get(key))
    await peer.expect(encode(Success(value)))


async def test_the_fail_about_a_value_beyond_twice_the_limit_reaches_a_peer_that_still_sends(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls, max_value_bytes=1000))
    # More than the system's buffers hold: a server that closed at once would reset the connection.
    sending = asyncio.create_task(peer.say(b"*3\r\n#\x05+k\r\n$9999999\r\n", bytes(9_999_999)))
    fail = await peer.hear_one()
    assert isinstance(fail, Fail)
    assert "9999999 bytes is too long" in fail.message
    await peer.expect_end()
    await asyncio.gather(sending, return_exceptions=True)


async def test_what_was_complete_before_a_malformed_message_is_answered_first(
    start: Start, connect: Connect, tls: bool, quick_linger: None
) -> None:
    peer = await connect(await start(tls=tls))
    await peer.say(Set(b"k", b"v"), Get(b"k"), b"*2\r\nnonsense", Get(b"k"))
    done, value, fail = await peer.hear(3)
    assert (done, value) == (Success(None), Success(b"v"))
    assert isinstance(fail, Fail)
    assert fail.code == "UNDEFINED"
    await peer.expect_end()


@pytest.mark.parametrize(
    "poison",
    [
        b"*3\r\n#\x05+k\r\n$18446744073709551615\r\n",
        b"*18446744073709551615\r\n",
        b"*3\r\n#\x01Tnonsense\r\n|",
        b"*2\r\n#\x06?",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"*2\r\n#\x06+\xff\r\n",
        b"*0\r\n",
        b"*-1\r\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("login", [False, True], ids=["before", "after"])
async def test_poison_before_or_after_login_gets_a_fail_and_a_close(
    start: Start, connect: Connect, poison: bytes, login: bool, quick_linger: None
) -> None:
    server = await start(tls=False)
    peer = await connect(server, login=login)
    await peer.say(poison)
    assert isinstance(await peer.hear_one(), Fail)
    await peer.expect_end()
    await (await connect(server)).ping()


async def test_line_ends_in_a_key_are_data_and_no_further_request(start: Start, connect: Connect, tls: bool) -> None:
    peer = await connect(await start(tls=tls))
    key = b"k\r\n*2\r\n#\x07+victim\r\n"
    await peer.say(Set(b"victim", b"alive"), Set(key, b"v"), Get(key), Get(b"victim"))
    assert await peer.hear(4) == [Success(None), Success(None), Success(b"v"), Success(b"alive")]


# Order


def conversation() -> tuple[bytes, list[object]]:
    """Requests of all kinds, and their replies; None stands for a ping's."""
    requests = [
        Set(b"a", b"1"), Ping(None, None), Get(b"a"), Set(b"a", b"22"), Delete(b"a"), Ping(None, None),
        Ping(None, None), Get(b"a"), Set(b"\r\n", b"a\r\nb"), Get(b"\r\n"), Unknown(77), Set(b"a", b""),
        Get(b"a"), Delete(b"b"),
    ]  # fmt: skip
    replies = [
        Success(None), None, Success(b"1"), Success(None), Success(b"22"), None, None,
        Success(None), Success(None), Success(b"a\r\nb"), Fail, Success(None), Success(b""), Success(None),
    ]  # fmt: skip
    return b"".join(map(encode, requests)), replies


def check_conversation(heard: list[object], expected: list[object]) -> None:
    for message, reply in zip(heard, expected, strict=True):
        match reply:
            case None:
                assert isinstance(message, Ping)
            case type():
                assert isinstance(message, reply)
            case _:
                assert message == reply


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 1000])
async def test_replies_come_in_request_order_however_the_bytes_are_cut(
    start: Start, connect: Connect, tls: bool, piece_bytes: int
) -> None:
    peer = await connect(await start(tls=tls))
    requests, replies = conversation()
    await peer.say_slowly(requests, piece_bytes)
    check_conversation(await peer.hear(len(replies)), replies)


async def test_replies_come_in_request_order_for_a_cut_at_every_byte(start: Start, connect: Connect) -> None:
    peer = await connect(await start(tls=False))
    requests, replies = conversation()
    for cut in range(1, len(requests)):
        await peer.say(requests[:cut])
        await asyncio.sleep(0)
        await peer.say(requests[cut:], Delete(b"\r\n"), Delete(b"a"))
        check_conversation(await peer.hear(len(replies) + 2), [*replies, Success(b"a\r\nb"), Success(b"")])


async def test_thousands_of_alternating_requests_in_one_read_keep_their_order(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls))
    count = 2_000
    await peer.say(*(Set(b"k", b"%d" % n) if n % 2 else Ping(None, None) for n in range(count)), Get(b"k"))
    heard = await peer.hear(count + 1)
    assert heard[-1] == Success(b"%d" % (count - 1))
    assert all(isinstance(message, Success if n % 2 else Ping) for n, message in enumerate(heard[:-1]))


class Wire(asyncio.Transport):
    """A transport that only remembers, for what must be seen write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return not self.is_open

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...


def deliver(conversation: Session, data: bytes) -> None:
    """One read that brings `data`."""
    conversation.get_buffer(-1)[: len(data)] = data
    conversation.buffer_updated(len(data))


async def test_all_replies_to_one_read_leave_in_one_write(start: Start) -> None:
    server = await start(tls=False)
    wire, conversation = Wire(), Session(server._services)
    conversation.connection_made(wire)
    deliver(conversation, LOGIN)
    await until(lambda: wire.written, "no reply to the credentials")
    for read in ([Ping(None, None)] * 16, [Set(b"k", b"v")] * 16, [Get(b"k")] * 16, [Unknown(50), Hello(1, ())]):
        wire.written.clear()
        deliver(conversation, b"".join(map(encode, read)))
        await until(lambda: wire.written, "no reply")
        assert len(wire.written) == 1
    conversation.connection_lost(None)


async def test_a_request_behind_pings_does_not_hold_them_back(start: Start) -> None:
    server = await start(tls=False)
    wire, conversation = Wire(), Session(server._services)
    conversation.connection_made(wire)
    deliver(conversation, LOGIN)
    await until(lambda: wire.written, "no reply to the credentials")
    wire.written.clear()
    deliver(conversation, encode(Ping(None, None)) + encode(Get(b"k")) + encode(Ping(None, None)))
    assert len(wire.written) == 1
    await until(lambda: len(wire.written) == 2, "no reply")
    conversation.connection_lost(None)


class Table(TableActor):
    """Its mailbox only: the test answers."""

    def __init__(self) -> None:
        self.mailbox = asyncio.Queue()

    def asked(self) -> list[Request]:
        return [self.mailbox.get_nowait() for _ in range(self.mailbox.qsize())]


async def test_the_rest_of_a_cut_request_goes_before_all_that_came_behind_it(start: Start) -> None:
    server = await start(tls=False)
    table = Table()
    server.dispatcher.add(DEFAULT_TABLE, table.mailbox)
    wire, conversation = Wire(), Session(server._services)
    conversation.connection_made(wire)
    deliver(conversation, LOGIN)
    await until(lambda: wire.written, "no reply to the credentials")
    wire.written.clear()

    for keys in (b"abc", b"d", b"e"):
        deliver(conversation, b"".join(encode(Get(b"%c" % key)) for key in keys))
    cut, *behind = table.asked()
    cut.origin.is_cut = True
    cut.future.set_result([b"1"])
    await until(lambda: wire.written, "what came before the cut is not sent")
    assert table.asked() == []
    for one in behind:  # as the actor does with what comes behind a cut
        one.future.set_result([])
    await until(table.mailbox.qsize, "nothing is asked again")
    again = table.asked()
    assert [[operation.key for operation in one.operations] for one in again] == [[b"b", b"c"], [b"d"], [b"e"]]
    assert not cut.origin.is_cut
    for one in reversed(again):
        one.future.set_result([operation.key for operation in one.operations])
    replies = b"".join(encode(Success(value)) for value in (b"1", b"b", b"c", b"d", b"e"))
    await until(lambda: b"".join(wire.written) == replies, "not all is sent")
    conversation.connection_lost(None)


# Room


@pytest.fixture
def peak(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most that the budget has held, in a list of one."""
    highest = [0]
    hold = Budget.hold

    def recording(self: Budget, size: int) -> bool:
        held = hold(self, size)
        highest[0] = max(highest[0], self.held_bytes)
        return held

    monkeypatch.setattr(Budget, "hold", recording)
    return highest


class Halt:
    """Keeps the only table from serving until `end`."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def begin(self) -> None:
        [table] = self._server.tables._open_tables
        assert table.running is not None
        table.running.cancel()
        await asyncio.wait([table.running])

    def end(self) -> None:
        for table in self._server.tables._open_tables:
            if table.running.done():
                table.running = asyncio.create_task(table.actor.run())
                table.running.add_done_callback(partial(self._server.tables._open_tables._ended, table))


class StuckDisk:
    """A medium on which no sync ends until `may_go_on`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        sync = Medium.sync

        def wait(medium: Medium, fd: int) -> None:
            assert self.may_go_on.wait(20)
            sync(medium, fd)

        monkeypatch.setattr(Medium, "sync", wait)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckDisk]:
    disk = StuckDisk(monkeypatch)
    yield disk
    disk.may_go_on.set()


async def test_thousands_of_gets_of_a_large_value_are_answered_in_order_and_in_bounded_memory(
    start: Start, connect: Connect, tls: bool, peak: list[int]
) -> None:
    server = await start(tls=tls, max_value_bytes=MIB)
    peer = await connect(server)
    value, count = bytes(50_000), 1_500
    await peer.say(Set(b"k", value), *[Get(b"k")] * count, Set(b"k", b"new"), Get(b"k"), Ping(None, None), Delete(b"k"))
    await peer.expect(NULL + encode(Success(value)) * count + NULL + encode(Success(b"new")))
    ping, old = await peer.hear(2)
    assert isinstance(ping, Ping)
    assert old == Success(b"new")
    # What a Request is cut at, the value beyond that, and the operations that wait.
    assert peak[0] < 2 * MIB


async def test_other_connections_are_served_while_one_asks_for_too_much(
    start: Start, connect: Connect, tls: bool
) -> None:
    server = await start(tls=tls)
    greedy, modest = await connect(server, receive_bytes=32 * KIB), await connect(server)
    await greedy.say(Set(b"k", bytes(MIB)))
    await greedy.expect(NULL)
    await greedy.say(*[Get(b"k")] * 5_000)
    for _ in range(50):
        await modest.say(Get(b"absent"))
        await modest.expect(NULL)


async def test_a_peer_that_does_not_read_is_not_read_from_and_then_cut(
    start: Start, connect: Connect, tls: bool, peak: list[int]
) -> None:
    server = await start(tls=tls, write_timeout_seconds=0.3)
    peer = await connect(server, receive_bytes=32 * KIB)
    peer.writer.transport.pause_reading()
    [conversation] = sessions(server)
    peer.writer.write(encode(Set(b"k", bytes(MIB))) + encode(Get(b"k")) * 100_000)
    await until(lambda: conversation._replies.is_paused and conversation._reading_paused, "not paused")
    held = budget(server)
    assert held > MIB
    await until(lambda: server.connections == 0, "not cut")
    assert peak[0] < 4 * MIB


async def test_what_lies_unsent_behind_tls_is_in_the_budget(start: Start, connect: Connect, peak: list[int]) -> None:
    """The transport takes a whole reply without asking for a pause: the budget must not believe that it has left."""
    server = await start(tls=True)
    async with contextlib.AsyncExitStack() as stack:
        peers = [await connect(server, receive_bytes=16 * KIB) for _ in range(8)]
        await peers[0].say(Set(b"k", bytes(10 * MIB)))
        await peers[0].expect(NULL)
        for peer in peers:
            peer.writer.transport.pause_reading()
            await peer.say(Get(b"k"))
        await until(lambda: all(one._replies.is_paused for one in sessions(server)), "all are answered")
        assert budget(server) >= 8 * 10 * MIB
        for peer in peers:
            stack.push_async_callback(peer.close)


async def test_a_peer_that_reads_slowly_is_not_cut(start: Start, connect: Connect, tls: bool) -> None:
    server = await start(tls=tls, write_timeout_seconds=0.25)
    peer = await connect(server, receive_bytes=64 * KIB)
    value = bytes(5 * MIB)
    await peer.say(Set(b"k", value))
    await peer.expect(NULL)
    await peer.say(Get(b"k"))
    reply, read = encode(Success(value)), b""
    async with asyncio.timeout(30):
        while len(read) < len(reply):
            await asyncio.sleep(0.01)  # this is what the test is about
            data = await peer.reader.read(128 * KIB)
            assert data, f"cut after {len(read)} bytes"
            read += data
    assert read == reply


async def test_a_full_mailbox_makes_sessions_wait_and_loses_nothing(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "MAILBOX_REQUESTS", 2)
    server = await start(tls=False)
    peers = [await connect(server) for _ in range(4)]
    halt = Halt(server)
    await halt.begin()
    for number, peer in enumerate(peers):
        for n in range(10):
            await peer.say(Set(b"%d" % number, b"%d" % n), Ping(None, None), Get(b"%d" % number))
    await until(lambda: all(one._reading_paused for one in sessions(server)), "all found room")
    await peers.pop().close()
    halt.end()
    for peer in peers:
        heard = await peer.hear(30)
        assert heard[2::3] == [Success(b"%d" % n) for n in range(10)]
    await until(lambda: server.connections == 3, "the one that has left stays")


async def test_a_half_received_value_that_finds_no_room_is_refused_and_the_stream_stays_in_step(
    start: Start, connect: Connect, tls: bool
) -> None:
    server = await start(tls=tls, memory_bytes=MIB, max_value_bytes=MIB)
    hoarder, late, modest = [await connect(server) for _ in range(3)]
    value = encode(Set(b"k", bytes(900_000)))
    await hoarder.say(value[:-1000])
    await until(lambda: budget(server) > 800_000, "not counted")
    await late.say(Set(b"late", bytes(500_000)), Get(b"late"), Set(b"late", b"small"), Get(b"late"))
    refused, *others = await late.hear(4)
    assert isinstance(refused, Fail)
    assert refused.code == "BUSY"
    assert others == [Success(None), Success(None), Success(b"small")]
    await modest.say(Set(b"m", b"v"), Get(b"m"))
    assert await modest.hear(2) == [Success(None), Success(b"v")]
    await hoarder.say(value[-1000:])
    assert await hoarder.hear_one() == Success(None)
    await until(lambda: budget(server) == 0, "not given back")
    await late.say(Set(b"late", bytes(500_000)))
    assert await late.hear_one() == Success(None)


async def test_a_value_as_large_as_the_whole_budget_can_be_stored_and_read(
    start: Start, connect: Connect, tls: bool
) -> None:
    peer = await connect(await start(tls=tls, memory_bytes=MIB, max_value_bytes=MIB - 2 * KIB))
    value = bytes(MIB - 2 * KIB)
    await peer.say(Set(b"k", value))
    assert await peer.hear_one() == Success(None)
    await peer.say(Get(b"k"))
    assert await peer.hear_one() == Success(value)


async def test_a_large_value_whose_last_byte_comes_alone_is_counted_while_it_waits(
    start: Start, connect: Connect, tls: bool
) -> None:
    server = await start(tls=tls)
    peer = await connect(server)
    halt = Halt(server)
    await halt.begin()
    value = encode(Set(b"k", bytes(MIB)))
    await peer.say(value[:-1])
    await until(lambda: budget(server) > MIB - 64 * KIB, "not counted")
    [conversation] = sessions(server)
    await peer.say(value[-1:])
    await until(lambda: conversation._replies.turns, "not taken")
    assert budget(server) >= MIB
    halt.end()
    assert await peer.hear_one() == Success(None)
    assert budget(server) == 0


async def test_many_waiting_operations_are_counted_although_they_have_no_values(start: Start, connect: Connect) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    halt = Halt(server)
    await halt.begin()
    await peer.say(*[Get(b"k")] * 20_000)
    [conversation] = sessions(server)
    await until(lambda: len(conversation._replies.turns) >= 4, "too little was taken")
    for _ in range(100):
        await asyncio.sleep(0)
    taken = sum(len(turn.operations) for turn in conversation._replies.turns)
    assert taken <= 4_000
    assert budget(server) >= taken * 100
    halt.end()
    await peer.expect(NULL * 20_000)


async def test_a_message_of_many_parts_that_finds_no_room_ends_its_connection(
    start: Start, connect: Connect, quick_linger: None
) -> None:
    """No single value can be refused here, so skipping one would not free the memory."""
    server = await start(tls=False, memory_bytes=MIB, max_value_bytes=MIB)
    peer = await connect(server)
    await peer.say(b"*1024\r\n#\x20+1\r\n", *[b"+%b\r\n" % (b"f" * 8_000)] * 200)
    refused = await peer.hear_one()
    assert isinstance(refused, Fail)
    assert refused.code == "BUSY"
    await peer.expect_end()


# Waiting


async def test_an_idle_connection_is_closed(start: Start, connect: Connect, tls: bool) -> None:
    server = await start(tls=tls, idle_timeout_seconds=0.1)
    peer = await connect(server)
    await peer.ping()
    await peer.expect_end()
    await until(lambda: server.connections == 0, "its permit is not back")


async def test_a_connection_that_waits_for_the_disk_is_not_idle(
    start: Start, connect: Connect, disk: StuckDisk
) -> None:
    server = await start(tls=False, idle_timeout_seconds=0.1)
    peer = await connect(server)
    disk.may_go_on.clear()
    await peer.say(Set(b"k", b"v"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await peer.reader.read(1)
    disk.may_go_on.set()
    assert await peer.hear_one() == Success(None)
    await peer.expect_end()


async def test_zero_turns_the_idle_timeout_off(start: Start, connect: Connect) -> None:
    server = await start(tls=False, idle_timeout_seconds=0)
    await connect(server)
    [conversation] = sessions(server)
    assert not conversation._timer.is_set


class Verification:
    """Holds up the verification of credentials."""

    def __init__(self) -> None:
        self.waiting = 0
        self.may_go_on = asyncio.Event()

    async def verify(self, username: str, password: str) -> Principal:
        self.waiting += 1
        await self.may_go_on.wait()
        return Principal(username)


@pytest.fixture
async def verification(monkeypatch: pytest.MonkeyPatch) -> Verification:
    verification = Verification()
    monkeypatch.setattr(Authenticator, "verify", lambda _, *credentials: verification.verify(*credentials))
    return verification


async def test_the_time_for_authenticating_ends_with_the_arrival_of_the_credentials(
    start: Start, connect: Connect, tls: bool, verification: Verification
) -> None:
    peer = await connect(await start(tls=tls, authenticate_timeout_milliseconds=50), login=False)
    await peer.say(LOGIN, Get(b"k"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await peer.reader.read(1)
    verification.may_go_on.set()
    assert await peer.hear(2) == [Success(None), Success(None)]


async def test_little_is_kept_of_what_comes_behind_credentials_that_are_being_verified(
    start: Start, connect: Connect, verification: Verification
) -> None:
    server = await start(tls=False)
    peer = await connect(server, login=False)
    value = bytes(MIB)
    sending = asyncio.create_task(peer.say(LOGIN, Set(b"k", value), Get(b"k")))
    await until(lambda: verification.waiting, "no verification")
    [conversation] = sessions(server)
    assert conversation._decoder.buffered_bytes <= 8 * KIB
    verification.may_go_on.set()
    assert await peer.hear(3) == [Success(None), Success(None), Success(value)]
    await sending


async def test_too_many_logins_are_told_to_come_back(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, quick_linger: None
) -> None:
    async def busy(*_: object) -> Principal:
        raise Busy("too many logins")

    monkeypatch.setattr(Authenticator, "verify", busy)
    peer = await connect(await start(tls=False), login=False)
    await peer.say(LOGIN)
    assert await peer.rest() == encode(Fail("BUSY", "too many logins"))


# Ends


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "stage",
    ["silent", "half a login", "verification", "idle", "half a value", "disk", "mailbox", "unsent", "cut", "behind"],
)
async def test_a_peer_that_leaves_at_any_stage_leaves_nothing_behind(
    start: Start, connect: Connect, tls: bool, stage: str, how: str, disk: StuckDisk, verification: Verification
) -> None:
    logs_in = stage not in {"silent", "half a login", "verification"}
    if logs_in:
        verification.may_go_on.set()
    server = await start(tls=tls)
    halt = Halt(server)
    peer = await connect(server, login=logs_in, receive_bytes=32 * KIB)
    await until(lambda: sessions(server), "no session")
    [conversation] = sessions(server)
    match stage:
        case "half a login":
            await peer.say(LOGIN[:7])
        case "verification":
            await peer.say(LOGIN)
            await until(lambda: conversation._errand, "no verification")
        case "half a value":
            await peer.say(encode(Set(b"k", bytes(MIB)))[:-1])
            await until(lambda: budget(server) > MIB // 2, "nothing came")
        case "disk":
            disk.may_go_on.clear()
            await peer.say(Set(b"k", bytes(MIB)), Get(b"k"))
            await until(lambda: conversation._replies.turns, "nothing came")
        case "mailbox" | "behind":
            await halt.begin()
            await peer.say(*[Get(b"k"), Ping(None, None)] * (1 if stage == "mailbox" else 100))
            await until(lambda: conversation._replies.turns, "nothing came")
        case "unsent" | "cut":
            peer.writer.transport.pause_reading()
            await peer.say(Set(b"k", bytes(MIB)), *[Get(b"k")] * (4 if stage == "unsent" else 40))
            await until(lambda: conversation._replies.is_paused, "all was sent")
    if how == "reset":
        peer.reset()
    else:
        peer.writer.close()
    # A server that has paused reading notices when it goes on.
    for _ in range(20):
        await asyncio.sleep(0)
    verification.may_go_on.set()
    disk.may_go_on.set()
    halt.end()
    await until(lambda: server.connections == 0, "the connection stays")
    other = await connect(server)
    await other.say(Delete(b"k"), Set(b"k", b"after"), Get(b"k"))
    assert (await other.hear(3))[1:] == [Success(None), Success(b"after")]


async def test_the_memory_of_a_lost_connection_does_not_wait_for_the_garbage_collector(
    start: Start, connect: Connect, tls: bool
) -> None:
    server = await start(tls=tls)
    peer = await connect(server)
    await peer.say(encode(Set(b"k", bytes(MIB)))[:-1])
    await until(lambda: budget(server) > MIB // 2, "nothing came")
    gc.collect()
    gc.disable()
    try:
        lost = weakref.ref(next(iter(sessions(server))))
        await peer.close()
        await until(lambda: lost() is None, "it is kept")
    finally:
        gc.enable()


async def test_a_plain_peer_that_only_half_closes_gets_all_its_replies(start: Start, connect: Connect) -> None:
    server = await start(tls=False)
    peer = await connect(server, login=False)
    await peer.say(LOGIN, Set(b"k", b"v"), Get(b"k"), Ping(None, None), *[Get(b"k")] * 3_000)
    peer.end()
    await peer.expect(NULL * 2 + encode(Success(b"v")))
    assert (await peer.read(6)) == b"*3\r\n#\x01"
    assert (await peer.rest()).endswith(b"+00:00\r\n" + encode(Success(b"v")) * 3_000)
    await until(lambda: server.connections == 0, "the connection stays")


async def test_a_tls_peer_that_says_goodbye_and_reads_nothing_returns_its_permit(start: Start) -> None:
    server = await start(tls=True, write_timeout_seconds=0.2)

    def leave_rudely() -> socket.socket:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        raw.settimeout(10)
        raw.connect((server.host, server.port))
        secured = client_context(server.ca_path).wrap_socket(raw, server_hostname="localhost")
        secured.sendall(LOGIN)
        assert secured.recv(100) == NULL
        secured.sendall(encode(Set(b"k", bytes(8 * MIB))))
        assert secured.recv(100) == NULL
        secured.sendall(encode(Get(b"k")))
        secured.settimeout(0.1)
        with contextlib.suppress(OSError):  # it waits for the server's own goodbye, behind the value
            secured.unwrap()
        return secured

    with await asyncio.to_thread(leave_rudely):
        await until(lambda: server.connections == 0, "the connection stays")


@pytest.mark.parametrize("where", ["before", "after"])
async def test_a_fault_of_ours_is_told_as_internal_and_ends_only_that_connection(
    start: Start, connect: Connect, reports: Reports, monkeypatch: pytest.MonkeyPatch, where: str, quick_linger: None
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    server = await start(tls=False)
    other = await connect(server)
    peer = await connect(server, login=where == "after")
    with monkeypatch.context() as patch:
        if where == "before":
            patch.setattr(Authenticator, "remembered", lambda *_: None)
            patch.setattr(Authenticator, "verify", fail)
            await peer.say(LOGIN, Get(b"k"))
        else:
            patch.setattr(Session, "_answer", lambda *_: 1 / 0)
            await peer.say(Set(b"k", b"v"), Ping(None, None), Set(b"k", b"unseen"))
            await peer.expect(NULL)
        assert await peer.rest() == encode(Fail("INTERNAL", "internal fault; the server's log has the details"))
    assert isinstance(reports.take("internal fault in a session")["exc_info"], RuntimeError | ZeroDivisionError)
    await other.ping()


async def test_a_crash_of_the_table_is_told_and_the_connection_stays(
    start: Start, connect: Connect, reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start(tls=False)
    peer = await connect(server)
    monkeypatch.setattr("kvsd.table.store.Store.get", lambda *_: 1 / 0)
    await peer.say(Set(b"k", b"v"), Get(b"k2"), Ping(None, None), Get(b"k"))
    heard = await peer.hear(4)
    assert [message.code for message in heard if isinstance(message, Fail)] == ["TABLE_UNAVAILABLE"] * 3
    assert isinstance(heard[2], Ping)
    reports.take("the table's actor crashed")


# Fuzz


PIECES = st.sampled_from(
    [
        LOGIN,
        NULL,
        REFUSED,
        *VECTORS.values(),
        b"*",
        b"#",
        b"\r\n",
        b"$5\r\n",
        b"+",
        b"|",
        b"T",
        b"9" * 20,
        encode(Hello(1, ("f",))),
    ]
)


@st.composite
def garbage(draw: st.DrawFn) -> bytes:
    """Messages, some of them damaged, and bytes that are none."""
    data = bytearray(b"".join(draw(st.lists(PIECES | st.binary(max_size=40), max_size=12))))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(login=st.booleans(), reads=st.lists(garbage(), min_size=1, max_size=4))
async def test_no_bytes_bring_the_server_down(
    start: Start, connect: Connect, quick_linger: None, login: bool, reads: list[bytes]
) -> None:
    if not hasattr(start, "fuzzed"):
        start.fuzzed = await start(tls=False)
        start.witness = await connect(start.fuzzed)
    peer = await connect(start.fuzzed, login=login)
    with contextlib.suppress(ConnectionError):
        for read in reads:
            await peer.say(read)
            await asyncio.sleep(0)
        peer.end()
    await peer.rest()
    await start.witness.say(Get(b"witness"))
    await start.witness.expect(NULL)
