"""A disk that fails under a server: the table turns read-only, reads go on, and a restart has all that was promised."""

from __future__ import annotations

import errno
import random
import shutil
from copy import deepcopy
from pathlib import Path

import pytest

from kvsd.client.aio import Client
from kvsd.errors import CorruptLog, ReadOnly, TableUnavailable
from tests.crash.faulty_server import serve_on
from tests.crash.ledger import Ledger
from tests.table.medium import COUNTED, Call, FaultyMedium

KEYS = [b"key-%d" % number for number in range(4)]


async def write_all(client: Client, ledger: Ledger) -> None:
    """Sets and deletes over three segments."""
    for size in (10, 900, 400):
        for key in KEYS:
            await ledger.set(client, key, key * (size // len(key)))
        await ledger.delete(client, KEYS[0])


async def count_calls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """What there is to fail in a run: its recovery, its writes, its end."""
    medium = FaultyMedium(folder)
    async with serve_on(medium, monkeypatch) as (_, client):
        await write_all(client, Ledger())
    return sum(medium.counts[call] for call in COUNTED)


async def meet_the_failure(client: Client, ledger: Ledger) -> None:
    try:
        await write_all(client, ledger)
    except ReadOnly as error:
        assert "read-only since its log failed: [Errno 5]" in str(error)
        assert "kvsd table reopen default/default" in str(error)
        with pytest.raises(ReadOnly):
            await client.set(b"late", b"")
        with pytest.raises(ReadOnly):
            await client.delete(KEYS[1])
    await ledger.verify(client, restarted=False)


async def fail_and_restart(folder: Path, monkeypatch: pytest.MonkeyPatch, *, at: int, forever: bool) -> None:
    """EIO in the `at`-th call of a run, and in all behind it or not; then a restart, and one after a power cut."""
    ledger, medium = Ledger(), FaultyMedium(folder / "before")
    medium.fail(errno.EIO, at=at, forever=forever)
    async with serve_on(medium, monkeypatch) as (server, client):
        if server.tables.unavailable:
            with pytest.raises(TableUnavailable, match=r"cannot be opened: \[Errno 5\]"):
                await client.set(b"k", b"v")
        else:
            await meet_the_failure(client, ledger)
    medium.heal()
    # A failed sync loses pages and marks them clean: they can be read until the power goes.
    survivor = medium.disk(seed=at).survivors(random.Random(at), folder / "after")
    for healthy in (medium, survivor):
        async with serve_on(healthy, monkeypatch) as (server, client):
            assert (server.tables.unavailable, server.entries) == (0, await deepcopy(ledger).verify(client))
            assert await client.get(b"late") is None


@pytest.mark.parametrize("forever", [False, True], ids=["once", "from then on"])
async def test_eio_in_any_call_loses_nothing_acknowledged(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, forever: bool
) -> None:
    calls = await count_calls(scratch / "count", monkeypatch)
    assert calls > 50
    for at in range(1, calls + 1):
        try:
            await fail_and_restart(scratch / "run", monkeypatch, at=at, forever=forever)
        except BaseException as error:
            error.add_note(f"EIO in call {at}")
            raise
        shutil.rmtree(scratch / "run")


async def test_a_read_that_fails_concerns_its_own_key_alone(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, medium = Ledger(), FaultyMedium(scratch / "data")
    async with serve_on(medium, monkeypatch) as (_, client):
        await write_all(client, ledger)
        # Not once: a hint or a compaction that reads beside it might take the failure.
        medium.fail(errno.EIO, calls={Call.READ}, forever=True)
        with pytest.raises(CorruptLog, match="cannot be read"):
            await client.get(KEYS[1])
        medium.heal()
        await ledger.verify(client, restarted=False)
        await ledger.set(client, KEYS[1], b"anew")
        await ledger.verify(client, restarted=False)
