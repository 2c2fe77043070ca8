"""Timers after a pause of the whole process: what had arrived in time counts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from kvsd.server.timer import LATE_SECONDS, Timer, patience

LOOPS = ["asyncio", "uvloop"]

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near, far


def stop_process() -> None:
    """As SIGSTOP does: nothing runs, and time passes."""
    time.sleep(2 * LATE_SECONDS + 0.02)


@pytest.mark.parametrize("stopped_by", ["a timer before it", "a callback", "a reader"])
async def test_a_timer_that_comes_late_is_stopped_by_what_had_arrived(pair: Pair, stopped_by: str) -> None:
    near, far = pair
    loop, timer, fired = asyncio.get_running_loop(), Timer(), []
    loop.add_reader(near, lambda: (near.recv(100), timer.stop()))

    def stop() -> None:
        far.send(b"in time")
        stop_process()

    timer.set(LATE_SECONDS / 2, fired.append, "late")
    match stopped_by:
        case "a timer before it":
            loop.call_later(0, stop)
        case "a callback":
            loop.call_soon(stop)
        case _:
            stop()
    await asyncio.sleep(3 * LATE_SECONDS)
    loop.remove_reader(near)
    assert fired == []


async def test_a_late_timer_fires_where_nothing_had_arrived() -> None:
    timer, fired = Timer(), asyncio.Event()
    timer.set(0, fired.set)
    stop_process()
    async with asyncio.timeout(5):
        await fired.wait()
    assert not timer.is_set


@pytest.mark.parametrize("rounds", range(4))
async def test_a_late_timer_can_be_stopped_until_it_fires(rounds: int) -> None:
    timer, fired = Timer(), []
    timer.set(0, fired.append, 1)
    stop_process()
    for _ in range(rounds):
        if not fired:
            await asyncio.sleep(0)
    before = list(fired)
    timer.stop()
    await asyncio.sleep(0.01)
    assert fired == before


async def test_patience_ends_a_wait_and_not_one_whose_end_had_arrived(pair: Pair) -> None:
    near, far = pair
    with pytest.raises(TimeoutError):
        async with patience(0.01):
            await asyncio.Event().wait()
    loop = asyncio.get_running_loop()

    async def wait_for(condition: Callable[[], None]) -> bytes:
        async with patience(LATE_SECONDS / 2):
            loop.call_soon(condition)
            return await loop.sock_recv(near, 100)

    assert await wait_for(lambda: (far.send(b"in time"), stop_process())) == b"in time"
