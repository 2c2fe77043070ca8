"""What the engine can, through both clients, over TLS and down to the disk."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kvsd import Entry, aio, connect
from kvsd.client import calls, sync
from kvsd.config import Config
from kvsd.errors import Conflict, InvalidKey, InvalidValue, TableNotFound, UnexpectedMessage
from kvsd.protocol.messages import Fail, encode
from kvsd.server import Server
from kvsd.types import MAX_BATCH_STEPS

from .fake import FakeServer, Peer
from .test_against_server import access, config, running

__all__ = ["config", "running"]

MANY = 1_234


class Blocking:
    """The blocking client, called from a thread, so that one test does for both."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*args: object, **named: object) -> Any:
            def run() -> Any:
                result = method(*args, **named)
                return list(result) if inspect.isgenerator(result) else result

            return await asyncio.to_thread(run)

        return call

    @property
    def tables(self) -> Blocking:
        return Blocking(self._client.tables)

    @property
    def namespaces(self) -> Blocking:
        return Blocking(self._client.namespaces)

    def table(self, name: str, **named: object) -> Blocking:
        return Blocking(self._client.table(name, **named))

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[Any]:
        steps: list[Callable[[Any], None]] = []

        class Recorder:
            def __getattr__(self, name: str) -> Callable[..., None]:
                return lambda *args, **named: steps.append(lambda batch: getattr(batch, name)(*args, **named))

        yield Recorder()

        def run() -> None:
            with self._client.batch() as batch:
                for step in steps:
                    step(batch)

        await asyncio.to_thread(run)


class Asyncio:
    """The asyncio client, whose scans become lists."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: object, **named: object) -> Any:
            result = method(*args, **named)
            return collect(result) if inspect.isasyncgen(result) else result

        return call

    @property
    def tables(self) -> Asyncio:
        return Asyncio(self._client.tables)

    @property
    def namespaces(self) -> Asyncio:
        return Asyncio(self._client.namespaces)

    def table(self, name: str, **named: object) -> Asyncio:
        return Asyncio(self._client.table(name, **named))


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.fixture(params=["blocking", "asyncio"])
async def db(running: Server, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    async with asyncio.timeout(60):
        if request.param == "blocking":
            client = connect(**access(running))  # type: ignore[arg-type]
            yield Blocking(client)
            await asyncio.to_thread(client.close)
        else:
            async with aio.connect(**access(running)) as other:  # type: ignore[arg-type]
                yield Asyncio(other)


async def test_an_entry_tells_all_that_is_known_of_a_value(db: Any) -> None:
    assert await db.entry("k") is None
    before = datetime.now(UTC) - timedelta(seconds=1)
    await db.set("k", "v")
    first = await db.entry("k")
    assert isinstance(first, Entry)
    assert (first.value, first.expires_at) == (b"v", None)
    assert before < first.timestamp < datetime.now(UTC) + timedelta(seconds=1)
    await db.set("k", "w", ttl=timedelta(hours=1))
    second = await db.entry("k")
    assert second.version > first.version
    assert timedelta(minutes=59) < second.expires_at - datetime.now(UTC) < timedelta(minutes=61)


async def test_a_conflict_tells_the_version_to_go_on_from(db: Any) -> None:
    await db.set("k", "1", if_absent=True)
    with pytest.raises(Conflict, match="has version") as conflict:
        await db.set("k", "2", if_absent=True)
    await db.set("k", "2", if_version=conflict.value.version)
    with pytest.raises(Conflict):
        await db.delete("k", if_version=conflict.value.version)
    assert await db.delete("k", if_version=(await db.entry("k")).version) == b"2"
    with pytest.raises(Conflict, match="does not exist") as conflict:
        await db.set("k", "3", if_version=7)
    assert conflict.value.version == 0
    with pytest.raises(ValueError, match="exclude each other"):
        await db.set("k", "3", if_version=7, if_absent=True)


async def test_a_set_with_a_condition_or_a_ttl_tells_the_version_to_go_on_from(db: Any) -> None:
    version = await db.set("k", "1", if_absent=True)
    for value in ("2", "3"):
        assert (await db.entry("k")).version == version
        version = await db.set("k", value, if_version=version)
    assert await db.set("k", "4", ttl=60) == (await db.entry("k")).version
    # A table that is named, and the largest value: it does not depend on how a set travels.
    other = db.table("default")
    assert await other.set("k", bytes(300_000), if_version=(await db.entry("k")).version) > version
    assert await other.set("k", "plain") is None
    assert await db.set("k", "plain") is None


async def test_a_compare_and_set_can_begin_with_a_set_that_tells_its_version(db: Any) -> None:
    for table in (db, db.table("default")):
        version = await table.set("k", "1", versioned=True)
        assert version == (await db.entry("k")).version
        assert await table.set("k", "2", if_version=version) > version
        with pytest.raises(Conflict):
            await table.set("k", "3", if_version=version)
        with pytest.raises(TypeError, match="versioned=True"):
            await table.set("k", "3", if_version=await table.set("k", "2"))


async def test_counters_and_other_updates(db: Any) -> None:
    assert await db.incr("n") == 1
    assert await db.incr("n", 41) == 42
    assert await db.decr("n", 50) == -8
    assert await db.append("text", "ab") == 2
    assert await db.append("text", "cd") == 4
    assert await db.getset("text", "new") == b"abcd"
    assert await db.getset("none", "x") is None
    assert await db.getdel("none") == b"x"
    assert [await db.exists("text"), await db.exists("none")] == [True, False]
    with pytest.raises(InvalidValue, match="no integer"):
        await db.incr("text")
    with pytest.raises(InvalidValue, match="the sum is no integer of 64 bits"):
        await db.incr("n", 2**63 - 1) and await db.incr("n", 2**63 - 1)
    with pytest.raises(InvalidValue, match="no integer of 64 bits"):
        await db.incr("n", 2**63)


async def test_keys_expire_and_can_be_kept(db: Any) -> None:
    await db.set("k", "v", ttl=3_600)
    assert await db.persist("k") is True
    assert await db.persist("k") is False
    assert await db.expire("k", timedelta(days=1)) is True
    assert await db.expire("none", 5) is False
    assert 86_000 < await db.ttl("k") <= 86_400
    await db.set("k", "v")
    assert [await db.ttl("k"), await db.ttl("none")] == [None, None]
    await db.set("soon", "v", ttl=0.001)
    while await db.exists("soon"):
        await asyncio.sleep(0)
    assert await db.get("soon") is None
    for ttl in (0, -1, 10**12, float("nan")):
        with pytest.raises(InvalidValue, match="lives for"):
            await db.set("k", "v", ttl=ttl)


async def test_a_batch_is_all_or_nothing(db: Any) -> None:
    await db.set("a", "1")
    version = (await db.entry("a")).version
    async with db.batch() as batch:
        batch.check("a", version)
        batch.set("a", "2", ttl=60)
        batch.set("b", b"\xff\r\n", if_absent=True)
        batch.delete("none")
    assert [await db.get("a"), await db.get("b")] == [b"2", b"\xff\r\n"]

    async def fail(error: type[Exception]) -> None:
        async with db.batch() as batch:
            batch.set("c", "3")
            batch.delete("a", if_version=version)
            if error is ZeroDivisionError:
                raise error

    with pytest.raises(Conflict):
        await fail(Conflict)
    assert await db.get("c") is None
    with pytest.raises(ZeroDivisionError):
        await fail(ZeroDivisionError)
    assert await db.get("c") is None


async def test_the_largest_batch_is_taken_and_a_larger_one_is_refused(db: Any) -> None:
    async with db.batch() as batch:
        for number in range(MAX_BATCH_STEPS):
            batch.set(f"{number:04}", "v" * 100, ttl=1_000, if_version=0)
    assert await db.count() == MAX_BATCH_STEPS
    with pytest.raises(InvalidKey, match="2000 bytes"):
        async with db.batch() as batch:
            batch.set("k" * 2_000, "v")


async def test_scans_and_counts_go_by_prefix_and_bounds(db: Any) -> None:
    await db.set_many({f"user:{number:04}": f"{number}" for number in range(MANY)})
    await db.set("user;", "behind")
    await db.set(b"\xff\xff", "last")
    assert await db.count() == MANY + 2
    assert await db.count("user:") == MANY
    assert await db.count("user:", start="user:0100", end="user:0200") == 100
    assert await db.count(b"\xff") == 1
    found = await db.scan("user:")
    assert found == [(b"user:%04d" % number, b"%d" % number) for number in range(MANY)]
    assert await db.keys("user:12", limit=3) == [b"user:1200", b"user:1201", b"user:1202"]
    assert await db.keys(limit=0) == []
    longest = [b"k" * 1_023 + bytes((number,)) for number in range(3)]
    await db.set_many(dict.fromkeys(longest, b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvsd.client.calls.PAGE_KEYS", 1)
        assert await db.keys("k") == longest
    assert await db.scan("user:", start=found[700][0] + b"\0", limit=600) == found[701:1234]
    assert await db.get_many(["user:0001", "none", "user:0002"]) == [b"1", None, b"2"]


async def test_a_table_that_is_not_there_is_told(db: Any, running: Server) -> None:
    other = db.table("nowhere")
    for call in (other.get("k"), other.set("k", "v"), other.count(), other.keys()):
        with pytest.raises(TableNotFound, match="no table default/nowhere"):
            await call
    same = db.table("default", namespace="default")
    await same.set("k", "v")
    assert await db.get("k") == b"v"
    with pytest.raises(TableNotFound, match="no table default/nowhere"):
        async with aio.connect(**access(running), table="nowhere") as client:  # type: ignore[arg-type]
            await client.get("k")


async def test_what_is_too_large_for_the_server_is_refused(config: Config) -> None:
    from kvsd import server

    small = replace(config, storage=replace(config.storage, max_value_bytes=100, max_key_bytes=10))
    async with asyncio.timeout(30), server.run(small) as daemon, aio.connect(**access(daemon)) as client:  # type: ignore[arg-type]
        await client.set("k", bytes(100), ttl=5)
        with pytest.raises(InvalidValue, match="would have 101 bytes, the limit is 100"):
            await client.append("k", "x")
        with pytest.raises(InvalidValue, match="the limit is 100"):
            await client.set("k", bytes(101), ttl=5)
        with pytest.raises(InvalidKey, match="the limit is 10"):
            await client.incr("k" * 11)
        assert await client.count() == 1


@pytest.mark.parametrize("shell", ["blocking", "asyncio"])
def test_a_plain_server_gets_no_engine_message(shell: str, settings: Any, context: Any) -> None:
    def script(peer: Peer) -> None:
        peer.log_in()
        peer.expect(encode(calls.hello().message))
        peer.send(encode(Fail("UNEXPECTED_MESSAGE", "")))

    def count(port: int) -> None:
        with sync.Client(settings(port)) as client:
            client.incr("n")

    async def count_with_asyncio(port: int) -> None:
        async with aio.Client(settings(port)) as client:
            await client.incr("n")

    with FakeServer(script, context=context) as fake:
        with pytest.raises(UnexpectedMessage, match="plain get, set and delete"):
            count(fake.port) if shell == "blocking" else asyncio.run(count_with_asyncio(fake.port))
        fake.wait_for_last()
