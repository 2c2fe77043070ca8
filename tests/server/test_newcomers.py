"""Who has not logged in: the order in which they give way, and the bound for each address."""

from __future__ import annotations

import asyncio

import pytest

from kvsd.server.newcomers import SILENT_SECONDS, SPEAKING_SECONDS, Newcomer, Newcomers


@pytest.fixture
async def tasks() -> list[Newcomer]:
    async def stay() -> None:
        await asyncio.Event().wait()

    return [asyncio.create_task(stay()) for _ in range(4)]


def dismissed(tasks: list[Newcomer]) -> list[int]:
    return [number for number, task in enumerate(tasks) if task.cancelling()]


async def test_the_silent_give_way_before_those_that_speak_and_the_oldest_first(tasks: list[Newcomer]) -> None:
    newcomers = Newcomers(10)
    for number, task in enumerate(tasks):
        newcomers.add(task, "a", number / 100)
    newcomers.speaks(tasks[0])
    assert newcomers.make_way(SILENT_SECONDS) == pytest.approx(0.01)
    assert dismissed(tasks) == []
    for number in (1, 2, 3):
        assert newcomers.make_way(SILENT_SECONDS + 0.03) == 0
        assert dismissed(tasks) == list(range(1, number + 1))
    assert newcomers.make_way(SILENT_SECONDS + 0.03) == pytest.approx(SPEAKING_SECONDS - SILENT_SECONDS - 0.03)
    assert newcomers.make_way(SPEAKING_SECONDS) == 0
    assert dismissed(tasks) == [0, 1, 2, 3]
    assert newcomers.make_way(SPEAKING_SECONDS) is None


async def test_who_has_logged_in_or_left_never_gives_way(tasks: list[Newcomer]) -> None:
    newcomers = Newcomers(10)
    for task in tasks:
        newcomers.add(task, "a", 0)
    newcomers.speaks(tasks[0])
    for task in tasks:
        newcomers.discard(task)
        newcomers.discard(task)
        newcomers.speaks(task)
    assert newcomers.make_way(1_000) is None
    assert len(newcomers) == 0
    assert dismissed(tasks) == []


async def test_an_address_beyond_its_bound_loses_its_oldest_and_no_other_ones(tasks: list[Newcomer]) -> None:
    newcomers = Newcomers(2)
    for task, address in zip(tasks, ("a", "b", "a", "a"), strict=True):
        newcomers.add(task, address, 0)
    assert dismissed(tasks) == [0]
    assert len(newcomers) == 3
