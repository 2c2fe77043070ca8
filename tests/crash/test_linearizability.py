"""Concurrent clients on a few keys, and a server that is killed and restarted under them: one order explains it all."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsd.client.aio import Client
from kvsd.errors import ConnectionLost, Timeout
from tests.crash.history import Call, Recorder, check
from tests.crash.process import ServerProcess

CONNECTIONS = 3
TASKS = 3
"""On each connection."""
KEYS = (b"a", b"b", b"c")


def whole(value: bytes | None) -> bytes | None:
    """The word that `value` repeats; large values keep a commit on its way for longer."""
    if value is None:
        return None
    word = value[: value.index(b" ") + 1]
    assert value == word * (len(value) // len(word)), "a value is torn"
    return word


async def work(client: Client, recorder: Recorder, rng: random.Random, words: Iterator[bytes]) -> None:
    """One call after the other, each written down, until one fails."""
    while True:
        key = rng.choice(KEYS)
        call = rng.choices((Call.SET, Call.GET, Call.DELETE), (4, 5, 1))[0]
        word = next(words) if call is Call.SET else None
        operation = recorder.start(key, call, word)
        found = None
        try:
            match call:
                case Call.SET:
                    assert word is not None
                    await client.set(key, word * rng.choice((1, 1, 100, 10_000)))
                case Call.GET:
                    found = whole(await client.get(key))
                case Call.DELETE:
                    found = whole(await client.delete(key))
        except (ConnectionLost, Timeout) as error:
            if not error.may_be_applied:
                recorder.withdraw(key, operation)
            return
        recorder.finish(operation, found)


async def generation(server: ServerProcess, recorder: Recorder, rng: random.Random, words: Iterator[bytes]) -> None:
    """All clients at work on one run of the server, from its start to its end."""
    server.start()
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as clients:
        tasks = [
            work(client, recorder, random.Random(rng.random()), words)
            for _ in range(CONNECTIONS)
            for client in [await clients.enter_async_context(server.connect())]
            for _ in range(TASKS)
        ]
        asyncio.get_running_loop().call_later(rng.uniform(0.05, 0.6), server.kill)
        await asyncio.gather(*tasks)
    assert not server.is_running, "connections ended before the kill"


async def kill_and_check(folder: Path, *, kills: int, seed: int) -> None:
    rng, recorder = random.Random(seed), Recorder()
    words = (b"%d " % number for number in itertools.count())
    with ServerProcess(folder) as server:
        for _ in range(kills):
            await generation(server, recorder, rng, words)
        server.start()
        async with asyncio.timeout(60), server.connect() as client:
            for key in KEYS:
                operation = recorder.start(key, Call.GET)
                recorder.finish(operation, whole(await client.get(key)))
    assert min(map(len, recorder.operations.values())) > 10 * kills
    check(recorder)


async def test_calls_are_linearizable_through_kills_and_restarts(tmp_path: Path) -> None:
    await kill_and_check(tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 5))
async def test_many_calls_are_linearizable_through_many_kills(tmp_path: Path, seed: int) -> None:
    await kill_and_check(tmp_path, kills=8, seed=seed)
