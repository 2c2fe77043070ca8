"""The least rate: whoever holds memory with what it has begun moves on, or goes."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from kvsd.protocol.messages import Fail, Get, Ping, Set, Success, encode
from kvsd.server.pace import LEAST_BYTES_PER_SECOND, Pace
from tests.conftest import Connect, Start

from .peers import NULL, Peer, until

LOOPS = ["asyncio", "uvloop"]

KIB = 1 << 10
MIB = 1 << 20


def test_a_window_begins_anew_only_with_enough_bytes_or_an_end() -> None:
    pace = Pace(2)
    enough = 2 * LEAST_BYTES_PER_SECOND
    assert pace.left_seconds(10, 500) == 2
    assert pace.left_seconds(11, 600) == 1
    assert pace.left_seconds(12, 500 + enough) == 2
    assert pace.left_seconds(13.5, 500 + 2 * enough) == 0.5
    assert pace.left_seconds(14, 500 + 2 * enough - 1) == 0
    pace.reset()
    assert pace.left_seconds(15, 0) == 2


@pytest.mark.parametrize("half_bytes", [20, MIB // 2], ids=["a head", "half a value"])
async def test_a_message_that_trickles_does_not_stay_for_ever(
    start: Start, connect: Connect, tls: bool, half_bytes: int
) -> None:
    """Each byte would otherwise begin the idle timeout anew."""
    server = await start(tls=tls, idle_timeout_seconds=0.2)
    peer = await connect(server)
    await peer.say(encode(Set(b"k", bytes(MIB)))[:half_bytes])

    async def trickle() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                await peer.say(b"x")
                await asyncio.sleep(0.02)  # this is what the test is about

    trickling = asyncio.create_task(trickle())
    try:
        fail = await peer.hear_one()
        assert isinstance(fail, Fail)
        assert f"less than {LEAST_BYTES_PER_SECOND} bytes a second" in fail.message
        await until(lambda: server.connections == 0, "not closed")
        assert server._services.budget.held_bytes == 0
    finally:
        trickling.cancel()
        await asyncio.wait([trickling])


async def test_a_message_that_comes_slowly_but_steadily_is_taken(start: Start, connect: Connect) -> None:
    server = await start(tls=False, idle_timeout_seconds=0.2)
    peer = await connect(server)
    message = encode(Set(b"k", bytes(MIB)))
    for at in range(0, len(message), 32 * KIB):
        await peer.say(message[at : at + 32 * KIB])
        await asyncio.sleep(0.02)  # this is what the test is about
    assert await peer.hear_one() == Success(None)


async def test_many_small_messages_each_cut_in_two_are_not_taken_for_one(start: Start, connect: Connect) -> None:
    """A slow line that is always in the middle of some message."""
    server = await start(tls=False, idle_timeout_seconds=0.2)
    peer = await connect(server)
    stream = encode(Get(b"k")) * 60
    for at in range(5, len(stream), 10):
        await peer.say(stream[at - 10 if at > 5 else 0 : at])
        await asyncio.sleep(0.02)  # this is what the test is about
    await peer.say(stream[at:])
    await peer.expect(NULL * 60)


async def test_replies_that_are_taken_a_little_at_a_time_do_not_stay_for_ever(
    start: Start, connect: Connect, tls: bool
) -> None:
    """Each byte that is taken would otherwise begin the write timeout anew."""
    server = await start(tls=tls, write_timeout_seconds=1)
    peer = await connect(server, receive_bytes=4 * KIB)
    peer.writer.transport.pause_reading()
    peer.writer.write(encode(Set(b"k", bytes(10 * MIB))) + encode(Get(b"k")) * 4)
    await until(lambda: server._services.budget.held_bytes > 9 * MIB, "nothing is unsent")

    async def sip() -> None:
        while True:
            take(peer, KIB)
            await asyncio.sleep(0.1)  # this is what the test is about

    sipping = asyncio.create_task(sip())
    try:
        await until(lambda: server.connections == 0, "not cut")
    finally:
        sipping.cancel()
        await asyncio.wait([sipping])


@pytest.mark.slow
async def test_a_reader_that_is_slow_but_steady_is_not_cut(start: Start, connect: Connect, tls: bool) -> None:
    """The system tells of room for more only when a third of its buffer is free: what the peer has taken meanwhile
    counts, too. A value of 10 MiB was cut at 20 KiB a second."""
    server = await start(tls=tls, write_timeout_seconds=1)
    peer = await connect(server, receive_bytes=32 * KIB)
    peer.writer.transport.pause_reading()
    peer.writer.write(encode(Set(b"k", bytes(10 * MIB))) + encode(Get(b"k")))
    await until(lambda: server._services.budget.held_bytes > 5 * MIB, "nothing is unsent")
    taken = 0
    for _ in range(100):
        taken += take(peer, 4 * KIB)
        await asyncio.sleep(0.04)  # this is what the test is about
        assert server.connections == 1, taken


def take(peer: Peer, size: int) -> int:
    """Bytes from the system itself: what reads for the peer takes much at a time."""
    with contextlib.suppress(BlockingIOError):
        return len(os.read(peer.writer.get_extra_info("socket").fileno(), size))
    return 0


async def test_a_reader_that_pauses_for_longer_than_the_idle_timeout_gets_its_whole_reply(
    start: Start, connect: Connect, tls: bool
) -> None:
    """It sends nothing, since it still receives."""
    server = await start(tls=tls, idle_timeout_seconds=0.2)
    peer = await connect(server, receive_bytes=32 * KIB)
    value = bytes(10 * MIB)
    peer.writer.transport.pause_reading()
    peer.writer.write(encode(Set(b"k", value)) + encode(Get(b"k")))
    await until(lambda: server._services.budget.held_bytes > 5 * MIB, "nothing is unsent")
    await asyncio.sleep(0.5)  # this is what the test is about
    peer.writer.transport.resume_reading()
    await peer.expect(NULL + encode(Success(value)))
    await peer.ping()


async def test_replies_that_need_no_table_are_owed_too(start: Start, connect: Connect) -> None:
    """Behind one that the disk holds up, pings and refusals would pile up without a bound."""
    server = await start(tls=False)
    peer = await connect(server)
    actor = server.tables._tables[next(iter(server.tables._tables))].actor
    assert actor is not None
    committing, actor._committer.start = actor._committer.start, lambda: None
    count = 20_000
    await peer.say(Set(b"k", b"v"))
    [one] = server._services.sessions
    await until(lambda: one._replies.turns, "not asked")
    sending = asyncio.create_task(peer.say(encode(Ping(None, None)) * count))
    await until(lambda: one._reading_paused and one._replies.is_held_up, "all is taken")
    assert one._replies._said_bytes < 32 * KIB
    assert server._services.budget.held_bytes < 300 * KIB
    actor._committer.start = committing
    committing()
    await peer.expect(NULL)
    await sending
    reply = await peer.reader.readuntil(b"+00:00\r\n")
    assert reply.startswith(b"*3\r\n#\x01|T")
    await until(lambda: not one._reading_paused, "the rest is not taken")
