"""A hundred thousand calls at once: the time is linear, the memory bounded, and the order that of the callers."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from kvsd import aio
from kvsd.client import aio_connection, calls
from kvsd.client.settings import ConnectSettings
from kvsd.client.sync import Client
from kvsd.client.turns import Turns
from kvsd.errors import Timeout
from kvsd.protocol.messages import Success, encode

from .fake import LOGIN, NULL, WELCOME, FakeServer, Peer

Settings = Callable[..., ConnectSettings]

FEW, MANY = 10_000, 100_000
GET = encode(calls.get("key").message)


def plain_settings(port: int) -> ConnectSettings:
    return ConnectSettings(username="kvsduser", password="secret", port=port, disable_tls=True, timeout_seconds=100.0)


def quick(peer: Peer) -> None:
    """Answer each request, all of one length, with null: in another thread, whose time does not count."""
    peer.log_in()
    peer.socket.settimeout(60)  # a hundred thousand tasks take their time before the first has sent anything
    size = len(encode(calls.set_("0000000", "v").message))
    rest = 0
    while data := peer.socket.recv(1 << 20):
        count, rest = divmod(rest + len(data), size)
        peer.socket.sendall(NULL * count)


ITEMS = {f"{n:07}": "v" for n in range(MANY)}


async def gathered(client: aio.Client, count: int) -> None:
    await asyncio.gather(*(client.set(f"{n:07}", "v") for n in range(count)))


async def set_many(client: aio.Client, count: int) -> None:
    await client.set_many({key: "v" for key, _ in zip(ITEMS, range(count), strict=False)})


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Without the garbage collector: it looks at all that is alive, again and again, whoever has made it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def is_linear(measure: Callable[[int], float]) -> bool:
    """Judged by the best of three: a machine that is busy with other things has less of a cache for the many."""
    measure(FEW)
    ratios = (measure(MANY) / measure(FEW) for _ in range(3))
    return any(ratio <= 12 for ratio in ratios)


@pytest.mark.slow
@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("action", [gathered, set_many])
def test_the_time_of_many_calls_is_linear(action: Callable[[aio.Client, int], Awaitable[None]]) -> None:
    """Processor time of this thread, so that the server's does not count."""
    with FakeServer(quick) as server, asyncio.Runner() as runner:
        client = aio.Client(plain_settings(server.port))

        def measure(count: int) -> float:
            started = time.thread_time()
            runner.run(action(client, count))
            return time.thread_time() - started

        assert is_linear(measure)
        runner.run(client.close())


@pytest.mark.slow
def test_the_time_of_many_blocking_calls_is_linear() -> None:
    with FakeServer(quick) as server, Client(plain_settings(server.port)) as client:

        def measure(count: int) -> float:
            items = {key: "v" for key, _ in zip(ITEMS, range(count), strict=False)}
            started = time.thread_time()
            client.set_many(items)
            return time.thread_time() - started

        assert is_linear(measure)


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["blocking", "asyncio"])
def test_many_sets_take_no_more_memory_than_few(shell: str) -> None:
    some = dict.fromkeys(list(ITEMS)[: 2 * FEW], "v")

    async def with_asyncio(port: int) -> None:
        async with aio.Client(plain_settings(port)) as client:
            await client.set_many(some)

    with FakeServer(quick) as server:
        tracemalloc.start()
        if shell == "asyncio":
            asyncio.run(with_asyncio(server.port))
        else:
            with Client(plain_settings(server.port)) as client:
                client.set_many(some)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.slow
def test_the_end_of_many_that_wait_is_linear_too() -> None:
    """All of them give up at once, while the connection is opened and while the server does not answer."""

    def silent(peer: Peer) -> None:
        peer.expect(LOGIN)
        peer.send(WELCOME)
        peer.wait_for_end()

    async def give_up(port: int, count: int) -> float:
        settings = ConnectSettings(
            username="kvsduser", password="secret", port=port, disable_tls=True, timeout_seconds=60.0
        )
        async with aio.Client(settings) as client:
            tasks = [asyncio.create_task(client.get("key")) for _ in range(count)]
            await asyncio.sleep(0)
            started = time.thread_time()
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks[::2])
            while client._connection is None:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            return time.thread_time() - started

    with FakeServer(silent) as server:
        few = asyncio.run(give_up(server.port, FEW))
        many = asyncio.run(give_up(server.port, 4 * FEW))
    assert many < 12 * few


async def test_who_came_first_goes_first_and_a_newcomer_waits_behind(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aio_connection, "MAX_IN_FLIGHT", 2)
    answer = threading.Event()
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.log_in()
        size = len(encode(calls.get("0").message))
        for number in range(8):
            if number == 2:
                assert answer.wait(10)
                peer.send(encode(Success(b"v")) * 2)
            seen.append(peer.read(size))
            if number >= 2:
                peer.send(encode(Success(b"v")))
        peer.wait_for_end()

    with FakeServer(script) as server:
        async with asyncio.timeout(10), aio.Client(plain_settings(server.port)) as client:
            first = [asyncio.create_task(client.get(str(n))) for n in range(6)]
            while len(seen) < 2:
                await asyncio.sleep(0)
            later = asyncio.create_task(client.get("6"))
            await asyncio.sleep(0)
            first[3].cancel()
            answer.set()
            assert await asyncio.gather(*first[:3], *first[4:], later, client.get("7"), client.get("8")) == [b"v"] * 8
    assert seen == [encode(calls.get(str(n)).message) for n in (0, 1, 2, 4, 5, 6, 7, 8)]


async def test_a_call_that_was_never_sent_says_that_it_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_connection, "MAX_IN_FLIGHT", 1)

    def silent(peer: Peer) -> None:
        peer.log_in()
        peer.expect(GET)
        peer.wait_for_end()

    with FakeServer(silent) as server:
        settings = ConnectSettings(
            username="kvsduser", password="secret", port=server.port, disable_tls=True, timeout_seconds=0.2
        )
        async with asyncio.timeout(10), aio.Client(settings) as client:
            sent, waited = await asyncio.gather(client.get("key"), client.set("key", "v"), return_exceptions=True)
    assert isinstance(sent, Timeout)
    assert "no reply" in str(sent)
    assert isinstance(waited, Timeout)
    assert "waited 0.2 s for its turn" in str(waited)
    assert not waited.may_be_applied


async def test_a_turn_that_its_task_cannot_take_is_counted_once() -> None:
    turns = Turns()
    tasks = [asyncio.create_task(turns.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    turns.grant(2)
    tasks[0].cancel()
    await asyncio.wait(tasks[:2])
    assert (turns.granted, turns.is_line) == (0, True)
    tasks[2].cancel()
    await asyncio.wait(tasks[2:])
    assert (turns.granted, turns.is_line) == (0, False)
