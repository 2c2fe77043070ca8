"""How long one client can keep the server from all others: no message, however many of it come, holds a ping up.

The bar is 20 ms of the server's processor, by its own clock, for every message type at its limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from kvsd.protocol import administration as admin
from kvsd.protocol import engine
from kvsd.protocol.administration import AdministrationType
from kvsd.protocol.engine import EngineType
from kvsd.protocol.frames import Time
from kvsd.protocol.messages import (
    Authenticate,
    Delete,
    Fail,
    Get,
    Hello,
    Message,
    MessageType,
    Ping,
    Set,
    Success,
    Welcome,
    encode,
)
from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS, MAX_KEY_BYTES, MAX_VALUE_BYTES

from .target import KIB, MIB, Target

LOOPS = ["uvloop"]

BAR_MS = 20.0
ATTACK_SECONDS = 1.0

KEYS = MAX_BATCH_STEPS
"""So many are in the table, which is a page of a scan."""
FRAMES = 5_003
TEXT = "x" * (8 * KIB)
LONG_KEY = b"k" * MAX_KEY_BYTES
NAMES = (None, None)
UNKNOWN = 200


def key(number: int) -> bytes:
    return b"key:%06d" % number


def batch(*steps: engine.Step) -> engine.Batch:
    return engine.Batch(*NAMES, steps)


def sets(value: bytes) -> engine.Batch:
    return batch(*(engine.Store(*NAMES, key(number), value, 3_600_000, None) for number in range(MAX_BATCH_STEPS)))


def pairs(name: str) -> admin.Pairs:
    return tuple((name, "default") for _ in range((FRAMES - 3) // 2))


def many(message_type: int, frame: bytes, count: int = FRAMES) -> bytes:
    return b"*%d\r\n#%c" % (count, message_type) + frame * (count - 1)


CASES: dict[int, list[Message | bytes]] = {
    MessageType.PING: [Ping(None, None), Ping(Time(1), Time(1))],
    MessageType.AUTHENTICATE: [Authenticate("kvsduser", "secret"), Authenticate(TEXT, TEXT)],
    MessageType.SUCCESS: [Success(None), Success(bytes(MAX_VALUE_BYTES))],
    MessageType.FAIL: [Fail("", ""), b"*3\r\n#\x04" + b"+%b\r\n" % TEXT.encode() * 2],
    MessageType.SET: [Set(b"s", b""), Set(LONG_KEY, bytes(MAX_VALUE_BYTES)), Set(b"\r\n", b""), Set(key(1), b"")],
    MessageType.GET: [Get(b"absent"), Get(key(0)), Get(LONG_KEY), Get(b"large"), Get(b"\r\n"), Get(LONG_KEY * 2)],
    MessageType.DELETE: [Delete(b"absent"), Delete(LONG_KEY), Delete(b"\r\n")],
    MessageType.HELLO: [Hello(1, ()), many(32, b"+1\r\n"), many(32, b"+1\r\n", 400)],
    MessageType.WELCOME: [Welcome(1, ()), many(33, b"+1\r\n")],
    EngineType.USE: [engine.Use("default", "default"), engine.Use("default", "absent"), engine.Use(TEXT, TEXT)],
    EngineType.FETCH: [engine.Fetch(*NAMES, key(0)), engine.Fetch(*NAMES, b"large")],
    EngineType.ENTRY: [engine.Entry(b"", 1, 1, 1)],
    EngineType.STORE: [engine.Store(*NAMES, b"s", b"", 1, None), engine.Store(*NAMES, b"s", b"", None, 1)],
    EngineType.REMOVE: [engine.Remove(*NAMES, b"absent"), engine.Remove(*NAMES, key(0), 1)],
    EngineType.UPDATE: [
        engine.Update(*NAMES, b"number", "incr", b"1"),
        engine.Update(*NAMES, b"text", "append", b"x"),
        engine.Update(*NAMES, b"large", "append", b"x"),
        engine.Update(*NAMES, b"large", "expire", b"3600000"),
        engine.Update(*NAMES, b"text", TEXT, b"x"),
    ],
    EngineType.BATCH: [
        batch(engine.Store(*NAMES, b"s", b"")),
        sets(b""),
        sets(bytes(MAX_BATCH_BYTES // MAX_BATCH_STEPS - 10)),
        batch(*(engine.Remove(*NAMES, key(number)) for number in range(KEYS, KEYS + MAX_BATCH_STEPS))),
        batch(*(engine.Check(b"absent", 0) for _ in range(MAX_BATCH_STEPS))),
        batch(*(engine.Check(b"", 0) for _ in range((FRAMES - 3) // 3))),
    ],
    EngineType.EXISTS: [engine.Exists(*NAMES, key(0)), engine.Exists("default", "absent", key(0))],
    EngineType.COUNT: [engine.Count(*NAMES, b"", None), engine.Count(*NAMES, b"a", b"z")],
    EngineType.NUMBER: [engine.Number(1)],
    EngineType.MISMATCH: [engine.Mismatch(1, TEXT)],
    EngineType.READ: [engine.Read(*NAMES, key(0)), engine.Read("default", "default", key(0))],
    EngineType.SCAN: [
        engine.Scan(*NAMES, b"", None, KEYS, values=True),
        engine.Scan(*NAMES, b"", None, KEYS, values=False),
        engine.Scan(*NAMES, b"", None, 1, values=True),
    ],
    EngineType.PAGE: [engine.Page(None, ()), many(65, b"|", 2) + many(65, b"+k\r\n", FRAMES - 1)],
    AdministrationType.TABLE_CREATE: [
        admin.TableCreate(None, "default"),
        admin.TableCreate(None, TEXT, pairs("fsync")),
    ],
    AdministrationType.TABLE_LIST: [admin.TableList(None)],
    AdministrationType.TABLE_INFO: [admin.TableInfo(*NAMES)],
    AdministrationType.TABLE_SETTINGS: [
        admin.TableSettings(*NAMES),
        admin.TableSettings(*NAMES, pairs("cache_bytes")),
        admin.TableSettings(*NAMES, pairs(TEXT[:1_000])),
    ],
    AdministrationType.TABLE_DROP: [admin.TableDrop(None, "default"), admin.TableDrop(None, TEXT)],
    AdministrationType.TABLE_REOPEN: [admin.TableReopen(None, "absent")],
    AdministrationType.NAMESPACE_CREATE: [admin.NamespaceCreate("default"), admin.NamespaceCreate(TEXT)],
    AdministrationType.NAMESPACE_LIST: [admin.NamespaceList()],
    AdministrationType.NAMESPACE_DROP: [admin.NamespaceDrop("default"), admin.NamespaceDrop(TEXT)],
    AdministrationType.COMPACT: [admin.Compact(*NAMES, "status"), admin.Compact(*NAMES, TEXT)],
    AdministrationType.REPORT: [admin.Report(b"{}")],
    UNKNOWN: [
        many(UNKNOWN, b"", 1),
        many(UNKNOWN, b"|"),
        many(UNKNOWN, b"+x\r\n"),
        many(UNKNOWN, b"$1\r\nx\r\n"),
        many(UNKNOWN, b"T2026-01-01T00:00:00+00:00\r\n"),
    ],
}
"""Type → its messages, as short and as long as they may be, and as costly."""

TYPES: list[IntEnum] = [*MessageType, *EngineType, *AdministrationType]


def name_of(message_type: int) -> str:
    return next((known.name.lower() for known in TYPES if known == message_type), "unknown")


def test_every_message_type_has_a_case() -> None:
    assert set(CASES) == {*TYPES, UNKNOWN}
    for message_type, cases in CASES.items():
        for case in cases:
            head = case if isinstance(case, bytes) else encode(case)
            assert head[head.index(b"#") + 1] == message_type


@pytest.fixture(scope="module", params=["tls", "plain"])
def target(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate_dir: Path
) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("turns")
    with Target(folder, certificate_dir, tls=request.param == "tls", program="tests.hostile.clocked") as target:
        asyncio.run(fill(target))
        yield target


async def fill(target: Target) -> None:
    peer = await target.peer()
    await peer.say(Set(b"large", bytes(4 * MIB)), sets(b"v" * 900))
    assert await peer.hear(2) == [Success(None), Success(None)]
    await peer.say(engine.Count(*NAMES, b"a", None))  # sorts the keys
    await peer.hear_one()
    await target.close_peers()


@pytest.mark.slow
@pytest.mark.parametrize("message_type", CASES, ids=name_of)
async def test_no_ping_waits_long_for_what_one_client_sends(target: Target, message_type: int) -> None:
    waits = {}
    for number, case in enumerate(CASES[message_type]):
        raw = case if isinstance(case, bytes) else encode(case)
        count = min(max(300 * KIB // len(raw), 1), 4_000)
        # Twice, where it is long: the same code takes longer where others share the processor's caches.
        for _ in range(2):
            async with target.longest_wait() as longest:
                await attack(target, raw, count)
            if longest[0] < BAR_MS:
                break
        waits[number, len(raw), count] = longest[0]
    print(waits)  # noqa: T201 - the figures are what one runs it for
    assert max(waits.values()) < BAR_MS, waits


async def attack(target: Target, raw: bytes, count: int) -> None:
    """Send `raw` so often as fast as the server takes it, until it is done with all of them, or for a while."""
    peer = await target.peer()
    sending = asyncio.create_task(peer.say(raw * count + b"the end"))
    with contextlib.suppress(TimeoutError, ConnectionError, ssl.SSLError):
        async with asyncio.timeout(ATTACK_SECONDS):
            while await peer.reader.read(1 << 20):
                pass
    sending.cancel()
    await asyncio.wait([sending])
    await target.close_peers()
    await target.until_left()
