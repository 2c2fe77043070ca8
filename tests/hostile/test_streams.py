"""Bytes without end or sense, before and after login: a Fail that says why, a close, and next to no memory."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from itertools import repeat

import pytest

from kvsd.protocol.decoder import Decoder
from kvsd.protocol.messages import Fail

from .conftest import Launch
from .target import KIB, Target, Witness

LOOPS = ["uvloop"]

PIECE_BYTES = 64 * KIB

# What is sent first, and what is sent behind it for as long as the server takes it.
ATTACKS: dict[str, tuple[bytes, bytes]] = {
    "no protocol of ours": (b"GET / HTTP/1.1\r\n", b"Host: x\r\n"),
    "a frame count without an end": (b"*", b"1"),
    "a frame count of 2^64-1": (b"*18446744073709551615\r\n#\x05", b"+a\r\n"),
    "a String without an end": (b"*3\r\n#\x05+", b"a"),
    "a line that ends in CR only": (b"*3\r\n#\x06+", b"a\r"),
    "a size without an end": (b"*3\r\n#\x05+k\r\n$", b"1"),
    "a value of 2^64-1 bytes": (b"*3\r\n#\x05+k\r\n$18446744073709551615\r\n", b"v"),
    "a value of 9 GB": (b"*3\r\n#\x05+k\r\n$9999999999\r\n", b"v"),
    "a time without an end": (b"*3\r\n#\x01T", b"2"),
    "an unknown frame": (b"*3\r\n#\x05?", b"?"),
    "an unknown frame of an unknown type": (b"*3\r\n#\xff\x00", b"\x00"),
    "a message of 9,999 frames": (b"*9999\r\n#\xff", b"|"),
    "frames of an unknown type without an end": (b"*1024\r\n#\xff", b"$65536\r\n" + bytes(65_536) + b"\r\n"),
    "a second message type": (b"*3\r\n#\x06#\x06", b"#"),
}


def endless(attack: str) -> Iterator[bytes]:
    head, rest = ATTACKS[attack]
    yield head
    yield from repeat(rest * (PIECE_BYTES // len(rest) or 1))


async def outcome(target: Target, attack: str, *, login: bool) -> None:
    """The attacker sends until the connection ends; the first that it hears must be a Fail."""
    peer = await target.peer(login=login)

    async def send() -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for piece in endless(attack):
                await peer.say(piece)
                await asyncio.sleep(0.005)  # leaves the processor to others; it is much all the same

    sending = asyncio.create_task(send())
    try:
        decoder = Decoder()
        decoder.feed(await peer.rest())
        assert isinstance(decoder.next_message(), Fail), attack
    finally:
        sending.cancel()
        await asyncio.wait([sending])


@pytest.mark.parametrize("tls", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tls", "plain"])
async def test_streams_without_end_or_sense_get_a_fail_a_close_and_no_memory(launch: Launch, tls: bool) -> None:
    attacks = [(attack, login) for attack in ATTACKS for login in (False, True)]
    target = launch(tls=tls, max_tcp_connections=len(attacks) + 1)
    witness = Witness(await target.peer())
    async with target.memory(f"{len(attacks)} endless streams") as memory:
        await witness.is_served_during(
            asyncio.gather(*(outcome(target, attack, login=login) for attack, login in attacks))
        )
    assert memory.growth_bytes < target.overhead_bytes(len(attacks))
    await target.until_left(1)
