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
from kvsd.errors import CannotConnect, Conflict, ConnectionLost, Timeout
from tests.crash.history import ABSENT, Call, Operation, Recorder, check
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


class Worker:
    """One call after the other, each written down, until one fails."""

    def __init__(self, client: Client, recorder: Recorder, rng: random.Random, words: Iterator[bytes]) -> None:
        self._client = client
        self._recorder = recorder
        self._rng = rng
        self._words = words
        self._versions = dict.fromkeys(KEYS, ABSENT)
        """The last that this worker was told of each key; the others go on meanwhile."""

    async def run(self) -> None:
        calls = [self._set, self._set_if_version, self._get, self._entry, self._delete]
        with contextlib.suppress(ConnectionLost, CannotConnect, Timeout):
            while True:
                await self._rng.choices(calls, (3, 3, 3, 3, 1))[0](self._rng.choice(KEYS))

    @contextlib.contextmanager
    def _recorded(
        self, key: bytes, call: Call, word: bytes | None = None, if_version: int | None = None
    ) -> Iterator[Operation]:
        operation = self._recorder.start(key, call, word, if_version=if_version)
        try:
            yield operation
        except (ConnectionLost, CannotConnect, Timeout) as error:
            if not error.may_be_applied:
                self._recorder.withdraw(key, operation)
            raise

    def _value(self, word: bytes) -> bytes:
        return word * self._rng.choice((1, 1, 100, 10_000))

    async def _set(self, key: bytes) -> None:
        word = next(self._words)
        with self._recorded(key, Call.SET, word) as operation:
            await self._client.set(key, self._value(word))
            self._recorder.finish(operation)

    async def _set_if_version(self, key: bytes) -> None:
        word, version = next(self._words), self._versions[key]
        with self._recorded(key, Call.SET, word, version) as operation:
            try:
                if version == ABSENT:
                    await self._client.set(key, self._value(word), if_absent=True)
                else:
                    await self._client.set(key, self._value(word), if_version=version)
            except Conflict as conflict:
                assert conflict.version is not None
                self._versions[key] = conflict.version
                self._recorder.finish(operation, version=conflict.version)
            else:
                self._recorder.finish(operation)

    async def _get(self, key: bytes) -> None:
        with self._recorded(key, Call.GET) as operation:
            self._recorder.finish(operation, whole(await self._client.get(key)))

    async def _entry(self, key: bytes) -> None:
        with self._recorded(key, Call.GET) as operation:
            entry = await self._client.entry(key)
            self._versions[key] = ABSENT if entry is None else entry.version
            self._recorder.finish(operation, entry and whole(entry.value), version=self._versions[key])

    async def _delete(self, key: bytes) -> None:
        with self._recorded(key, Call.DELETE) as operation:
            self._recorder.finish(operation, whole(await self._client.delete(key)))


async def generation(server: ServerProcess, recorder: Recorder, rng: random.Random, words: Iterator[bytes]) -> None:
    """All clients at work on one run of the server, from its start to its end."""
    server.start()
    async with asyncio.timeout(60), contextlib.AsyncExitStack() as clients:
        tasks = [
            Worker(client, recorder, random.Random(rng.random()), words).run()
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
    check(recorder)
    assert min(map(len, recorder.operations.values())) > 10 * kills
    conditional = [o for of_key in recorder.operations.values() for o in of_key if o.if_version is not None]
    outcomes = {(o.if_version == ABSENT, o.version is None) for o in conditional}
    assert len(outcomes) == 4, "conditions of either kind must hold, and must fail"


async def test_calls_are_linearizable_through_kills_and_restarts(tmp_path: Path) -> None:
    await kill_and_check(tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [2, 3])
async def test_many_calls_are_linearizable_through_many_kills(tmp_path: Path, seed: int) -> None:
    await kill_and_check(tmp_path, kills=8, seed=seed)
