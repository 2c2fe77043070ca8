"""What peers can make the server hold: half values, replies that nobody reads, and requests for far too much."""

from __future__ import annotations

import asyncio

import pytest

from kvsd.protocol.messages import Fail, Get, Set, Success, encode
from kvsd.table.medium import Medium
from tests.conftest import Connect, Start
from tests.server.peers import Peer, until

from .conftest import Launch
from .target import KIB, MIB, Target, Witness, crowd

LOOPS = ["uvloop"]

VALUE_BYTES = 10 * MIB
MEMORY_BYTES = 64 * MIB


async def is_as_before(target: Target) -> None:
    """Nobody's memory is held any more: the largest value can be stored and read."""
    await target.close_peers()
    await target.until_left()
    peer = await target.peer()
    value = bytes(VALUE_BYTES)
    await peer.say(Set(b"large", value))
    assert await peer.hear_one() == Success(None)
    await peer.say(Get(b"large"))
    assert await peer.hear_one() == Success(value)


@pytest.mark.slow
async def test_a_thousand_half_received_values_are_bounded_and_refused_as_busy(launch: Launch, tls: bool) -> None:
    target = launch(tls=tls, memory_bytes=MEMORY_BYTES)
    count, half_bytes = 1_000, 768 * KIB
    request = encode(Set(b"k", bytes(VALUE_BYTES)))
    witness = Witness(await target.peer())

    async def begin(_: int) -> Peer:
        peer = await target.peer()
        await peer.say(request[:half_bytes])
        return peer

    async with target.memory(f"{count} half values") as memory:
        attack = asyncio.create_task(crowd(count, begin))
        await witness.is_served_during(attack)
        await (await target.peer()).ping()
    # What was sent is several times what may be held.
    assert count * half_bytes > 5 * MEMORY_BYTES
    assert memory.growth_bytes < MEMORY_BYTES + target.overhead_bytes(count)

    # The refused ones are told so as soon as they are through, and their conversation goes on.
    for peer in attack.result()[::200]:
        await peer.say(request[half_bytes:], Get(b"k"))
        refused, absent = await peer.hear(2)
        assert isinstance(refused, Fail)
        assert (refused.code, absent) == ("BUSY", Success(None))
    await is_as_before(target)


@pytest.mark.slow
async def test_thousands_of_pipelined_gets_are_answered_in_order_and_in_bounded_memory(
    launch: Launch, tls: bool
) -> None:
    target = launch(tls=tls, memory_bytes=MEMORY_BYTES)
    count = 26_000
    values = [bytes([number]) * (32 * KIB) for number in range(7)]
    peer, witness = await target.peer(), Witness(await target.peer())
    await peer.say(*(Set(b"%d" % number, value) for number, value in enumerate(values)))
    await peer.hear(len(values))
    gets = b"".join(encode(Get(b"%d" % (number % len(values)))) for number in range(count))
    replies = [encode(Success(value)) for value in values]

    async def read_all() -> None:
        asking = asyncio.create_task(peer.say(gets))
        for number in range(count):
            await peer.expect(replies[number % len(replies)])
        await asking

    async with target.memory(f"{count} pipelined gets") as memory:
        await witness.is_served_during(read_all())
    assert memory.growth_bytes < 16 * MIB
    await is_as_before(target)


@pytest.mark.slow
async def test_readers_that_never_read_are_bounded_and_cut(launch: Launch, tls: bool) -> None:
    """Each asks for 260 GB."""
    memory_bytes, count = 256 * MIB, 20
    target = launch(tls=tls, memory_bytes=memory_bytes, write_timeout_seconds=1)
    owner = await target.peer()
    await owner.say(Set(b"k", bytes(VALUE_BYTES)))
    await owner.hear_one()
    witness = Witness(owner)
    gets = encode(Get(b"k")) * 26_000

    async def ask(_: int) -> None:
        peer = await target.peer(receive_bytes=32 * KIB)
        peer.writer.transport.pause_reading()
        peer.writer.write(gets)

    async with target.memory(f"{count} readers that do not read") as memory:
        await crowd(count, ask)
        await witness.is_served_during(target.until_left(1))
    # Each of the server's four reading workers holds the entry beside its value, and what was freed lingers a while.
    reading_bytes = 8 * VALUE_BYTES
    assert memory.growth_bytes < memory_bytes + reading_bytes + target.overhead_bytes(count)
    await is_as_before(target)


async def test_gets_that_find_no_memory_are_refused_before_anything_is_read(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them stand in one request: were each value read first, all others would wait for seconds."""
    server = await start(tls=False, memory_bytes=MIB, max_value_bytes=MIB, cache_bytes=0)
    hoarder, greedy = await connect(server), await connect(server)
    await greedy.say(Set(b"k", bytes(600_000)))
    assert await greedy.hear_one() == Success(None)
    await hoarder.say(encode(Set(b"h", bytes(900_000)))[:-1])
    await until(lambda: server._services.budget.held_bytes > 800_000, "not counted")
    sizes: list[int] = []
    read_cached = Medium.read_cached

    def count(medium: Medium, fd: int, size: int, offset: int) -> bytes | None:
        sizes.append(size)
        return read_cached(medium, fd, size, offset)

    monkeypatch.setattr(Medium, "read_cached", count)
    await greedy.say(*[Get(b"k")] * 1_000)
    heard = await greedy.hear(1_000)
    assert {message.code for message in heard if isinstance(message, Fail)} == {"BUSY"}
    assert sizes == []
