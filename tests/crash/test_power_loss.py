"""Power cuts at every operation of a busy miniature minute of a table's actor, with all its threads."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsd.table.log import LogOptions
from kvsd.table.request import Delete, Get, Set
from kvsd.table.segment import parse_name
from kvsd.types import Fsync
from tests.crash.recording import Recording, cut_everywhere
from tests.table.driver import ticking
from tests.table.medium import Call, FaultyMedium

SEGMENT_BYTES = 4_096
KEYS = [b"key-%d" % number for number in range(6)]


pytestmark = pytest.mark.usefixtures("miniature")


async def client(recording: Recording, rng: random.Random, requests: int) -> None:
    for _ in range(requests):
        operations = []
        for _ in range(rng.choice((1, 1, 2, 6))):
            key = rng.choice(KEYS)
            value = rng.randbytes(rng.choice((0, 30, 200, 900)))
            operations.append(rng.choices((Set(key, value), Delete(key), Get(key)), (6, 2, 1))[0])
        await recording.ask(*operations)


async def busy_minute(recording: Recording, rng: random.Random, *, runs: int = 4) -> None:
    """Three clients at a time; every second run dies somewhere, the others end with a SEAL."""
    for number in range(runs):
        async with recording.run(dies_at=rng.randint(5, 40) if number % 2 else None):
            await asyncio.gather(*(client(recording, random.Random(rng.random()), 5) for _ in range(3)))
    async with recording.run():
        pass


def assert_busy(recording: Recording) -> None:
    """What the recording is for has happened in it."""
    counts = recording.medium.counts
    assert counts[Call.CREATE] > 12  # rolls, and the successors that each start makes
    assert counts[Call.TRUNCATE] > 6  # each SEAL cuts its file
    zeros = [o for o in recording.medium.operations if o.call is Call.WRITE and o.offset and not o.data.strip(b"\0")]
    assert recording.options.fsync is Fsync.NEVER or zeros
    assert any(operation.name.endswith(".log.tmp") for operation in recording.medium.operations)
    named = [parse_name(Path(o.target).name) for o in recording.medium.operations if o.call is Call.RENAME]
    assert len({name[0] for name in named if name}) > 6
    if recording.options.fsync is Fsync.ALWAYS:
        assert any(generation for name in named if name for generation in name[1:])  # a compaction


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_power_cut_after_any_operation_loses_nothing_promised(
    scratch: Path, pool: ThreadPoolExecutor, fsync: Fsync
) -> None:
    options = LogOptions(fsync, SEGMENT_BYTES, ticking())
    recording = Recording(FaultyMedium(scratch / "a"), pool, options)
    await busy_minute(recording, random.Random(1))
    assert_busy(recording)
    cut_everywhere(recording, scratch / "b", cuts=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2, 7))
@pytest.mark.parametrize("fsync", Fsync)
async def test_many_power_cuts_after_any_operation_lose_nothing_promised(
    scratch: Path, pool: ThreadPoolExecutor, fsync: Fsync, seed: int
) -> None:
    options = LogOptions(fsync, SEGMENT_BYTES, ticking())
    recording = Recording(FaultyMedium(scratch / "a"), pool, options)
    await busy_minute(recording, random.Random(seed))
    cut_everywhere(recording, scratch / "b", cuts=10, seed=seed)
