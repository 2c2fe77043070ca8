"""Power cuts at every operation of a busy miniature hour of a table's actor, with all its threads."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsd.table import hint, updates
from kvsd.table.request import ABSENT, Batch, Check, Delete, Get, Operation, Set, Update
from kvsd.table.segment_header import parse_name
from kvsd.types import Fsync
from tests.crash.recording import Recording, cut_everywhere
from tests.table.medium import Call, FaultyMedium

SEGMENT_BYTES = 4_096
KEYS = [b"key-%d" % number for number in range(6)]
COLD_KEYS = [b"cold-%d" % number for number in range(20)]
"""Written once, and deleted or expired one by one: their segments are worth keeping, while those of the tombstones are
compacted."""
COUNTERS = [b"count-0", b"count-1"]


pytestmark = pytest.mark.usefixtures("miniature")


def some_expiry(recording: Recording, rng: random.Random) -> int:
    ttl_seconds = rng.choice((0, 0, 10, 30))
    return recording.clock.now_us + ttl_seconds * 1_000_000 if ttl_seconds else 0


def some_write(recording: Recording, rng: random.Random, key: bytes, if_version: int | None = None) -> Set | Delete:
    if rng.random() < 0.25:
        return Delete(key, if_version)
    return Set(key, rng.randbytes(rng.choice((0, 30, 200, 900))), some_expiry(recording, rng), if_version)


async def plain(recording: Recording, rng: random.Random) -> None:
    operations: list[Operation] = []
    for _ in range(rng.choice((1, 1, 2, 6))):
        key, counter = rng.choice(KEYS), rng.choice(COUNTERS)
        count = Update(counter, updates.increment(rng.randint(-5, 5)))
        expire = Update(key, updates.expire(some_expiry(recording, rng)))
        operations.append(rng.choices((some_write(recording, rng, key), Get(key), count, expire), (8, 1, 2, 1))[0])
    await recording.ask(*operations)


async def condition(recording: Recording, rng: random.Random) -> None:
    key = rng.choice(KEYS)
    version = await recording.version(key)
    await recording.ask(some_write(recording, rng, key, rng.choice((version, version, ABSENT, version + 1))))


async def batch(recording: Recording, rng: random.Random) -> None:
    checked = rng.choice(KEYS)
    version = await recording.version(checked)
    writes = [some_write(recording, rng, rng.choice(KEYS)) for _ in range(rng.randint(2, 6))]
    counter = Set(rng.choice(COUNTERS), b"%d" % rng.randrange(100), some_expiry(recording, rng))
    await recording.ask(Batch((Check(checked, rng.choice((version, version, version + 1))), *writes, counter)))


async def cool(recording: Recording, rng: random.Random) -> None:
    """A key that lies in a segment by now that nobody compacts."""
    await recording.ask(Delete(rng.choice(COLD_KEYS)))


async def time(recording: Recording, rng: random.Random) -> None:
    """Sometimes a write anew comes before the sweep."""
    await recording.advance(rng.choice((5, 40)), sweep=rng.random() < 0.7)


async def client(recording: Recording, rng: random.Random, requests: int) -> None:
    for _ in range(requests):
        await rng.choices((plain, condition, batch, cool, time), (6, 3, 3, 1, 3))[0](recording, rng)


async def busy_hour(recording: Recording, rng: random.Random, *, runs: int = 4) -> None:
    """Three clients at a time; every second run dies somewhere, the others end with a SEAL."""
    for number in range(runs):
        async with recording.run(dies_at=rng.randint(5, 60) if number % 2 else None):
            if not number:
                soon = recording.clock.now_us
                expiries = (soon + rng.choice((50, 150, 300, 10_000)) * 1_000_000 for _ in COLD_KEYS)
                await recording.ask(*(Set(key, bytes(700), at) for key, at in zip(COLD_KEYS, expiries, strict=True)))
            await asyncio.gather(*(client(recording, random.Random(rng.random()), 8) for _ in range(3)))
    async with recording.run():
        pass


def assert_busy(recording: Recording) -> None:
    """What the recording is for has happened in it."""
    counts = recording.medium.counts
    assert counts[Call.CREATE] > 12  # rolls, and the successors that each start makes
    assert counts[Call.TRUNCATE] > 6  # each SEAL cuts its file
    zeros = [o for o in recording.medium.operations if o.call is Call.WRITE and o.offset and not o.data.strip(b"\0")]
    assert recording.options.fsync is Fsync.NEVER or zeros
    assert any(operation.name.endswith(".seg.tmp") for operation in recording.medium.operations)
    named = [parse_name(Path(o.target).name) for o in recording.medium.operations if o.call is Call.RENAME]
    assert len({name[0] for name in named if name}) > 6
    assert any(o.target.endswith(hint.SUFFIX) for o in recording.medium.operations if o.call is Call.RENAME)
    for kind in ("batch", "condition held", "conflict", "swept", "logged before it was written anew"):
        assert recording.tally[kind], kind
    if recording.options.fsync is Fsync.ALWAYS:
        assert any(generation for name in named if name for generation in name[1:])  # a compaction


@pytest.mark.parametrize("fsync", Fsync)
async def test_a_power_cut_after_any_operation_loses_nothing_promised(
    scratch: Path, pool: ThreadPoolExecutor, fsync: Fsync
) -> None:
    recording = Recording(FaultyMedium(scratch / "a"), pool, fsync=fsync, segment_bytes=SEGMENT_BYTES)
    await busy_hour(recording, random.Random(1))
    assert_busy(recording)
    cut_everywhere(recording, scratch / "b", cuts=2 if fsync is Fsync.ALWAYS else 1, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("fsync", Fsync)
async def test_many_power_cuts_after_any_operation_lose_nothing_promised(
    scratch: Path, pool: ThreadPoolExecutor, fsync: Fsync, seed: int
) -> None:
    recording = Recording(FaultyMedium(scratch / "a"), pool, fsync=fsync, segment_bytes=SEGMENT_BYTES)
    await busy_hour(recording, random.Random(seed))
    cut_everywhere(recording, scratch / "b", cuts=2, seed=seed)
