"""Hundreds of calls on one connection, many of them cancelled or timed out at random points."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable

import pytest
import uvloop

from kvsd.aio import Client
from kvsd.client.settings import ConnectSettings

from .fake import EchoServer

WAVES = 2
CALLS = 300


async def ask(client: Client, name: str, chance: random.Random) -> bool:
    """Whether the reply was waited for. It must be the one to `name`."""
    method = client.get if chance.random() < 0.7 else client.delete
    try:
        async with asyncio.timeout(chance.uniform(0, 0.01) if chance.random() < 0.3 else None):
            reply = await method(name)
    except (TimeoutError, asyncio.CancelledError):
        return False
    assert reply == name[::-1].encode()
    return True


async def cancel_some(tasks: list[asyncio.Task[bool]], chance: random.Random) -> None:
    for task in chance.sample(tasks, len(tasks) // 3):
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
        task.cancel()


async def waves(
    seed: int, context: ssl.SSLContext | None, settings: Callable[..., ConnectSettings], complaints: list[object]
) -> int:
    """The number of replies that were waited for."""
    asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
    chance = random.Random(seed)
    answered = 0
    async with asyncio.timeout(30), EchoServer(seed, context) as server:
        async with Client(settings(server.port)) as client:
            for wave in range(WAVES):
                names = [f"{wave}-{n}-{chance.randrange(10**6)}" for n in range(CALLS)]
                tasks = [asyncio.create_task(ask(client, name, chance)) for name in names]
                await cancel_some(tasks, chance)
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
                # A task that was cancelled before its first step never came to `ask`.
                assert not [o for o in outcomes if not isinstance(o, bool | asyncio.CancelledError)]
                answered += outcomes.count(True)
            assert await client.get("the last one") == b"eno tsal eht"
        assert server.connections == 1
    return answered


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("seed", range(3))
def test_cancelled_and_timed_out_calls_never_shift_the_replies_of_the_others(
    context: ssl.SSLContext | None,
    settings: Callable[..., ConnectSettings],
    seed: int,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    complaints: list[object] = []
    with asyncio.Runner(debug=True, loop_factory=loop_factory) as runner:
        answered = runner.run(waves(seed, context, settings, complaints))
    assert WAVES * CALLS // 10 < answered < WAVES * CALLS * 9 // 10
    assert complaints == []
