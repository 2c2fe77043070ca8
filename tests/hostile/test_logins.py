"""Who guesses passwords, many at once and without end: bounded work, and no harm to those who know theirs."""

from __future__ import annotations

import asyncio

import pytest

from kvsd.protocol.messages import Authenticate, Fail, encode
from kvsd.server.authentication import hash_password
from tests.server.peers import REFUSED

from .conftest import Launch
from .target import MIB, Target, Witness

LOOPS = ["uvloop"]

HASHING_BYTES = 2 * 19 * MIB
"""Two verifications run at a time, each with the memory that our hashes ask for."""


async def guess(target: Target, password: str) -> str:
    """How the server refuses `password`."""
    peer = await target.peer(login=False)
    await peer.say(Authenticate("kvsduser", password))
    refused = await peer.hear_one()
    await peer.close()
    assert isinstance(refused, Fail)
    assert refused.code == "BUSY" or encode(refused) == REFUSED
    return refused.code


async def test_hundreds_of_guesses_at_once_are_bounded_and_a_good_client_logs_in(launch: Launch) -> None:
    target = launch(tls=False, password_hash=hash_password("secret"))
    count = 300
    async with target.memory(f"{count} guesses") as memory:
        attack = asyncio.gather(*(guess(target, f"guess {number}") for number in range(count)))
        async with target.connect() as client:
            await client.set("k", "v")
        outcomes = await attack
    assert set(outcomes) == {"BUSY", "UNAUTHENTICATED"}
    assert memory.growth_bytes < HASHING_BYTES + target.overhead_bytes(count)
    assert "guess " not in target.log


@pytest.mark.slow
async def test_endless_guesses_do_not_keep_out_whom_the_server_knows(launch: Launch) -> None:
    target = launch(tls=False, password_hash=hash_password("secret"))
    witness = Witness(await target.peer())
    refusals: list[str] = []
    is_over = False

    async def guess_on(number: int) -> None:
        while not is_over:
            refusals.append(await guess(target, f"guess {number} {len(refusals)}"))

    async def come_and_go() -> None:
        for _ in range(20):
            await (await target.peer()).close()

    guessing = asyncio.gather(*map(guess_on, range(80)))
    while "BUSY" not in refusals:
        await witness.is_served()
    await witness.is_served_during(come_and_go())
    is_over = True
    await guessing
