"""A real server in a process of its own, under attack: what it holds in memory, and what it says of itself.

Owns: the process, its limits, its config file and its log. It runs as users run it, so on uvloop where that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

import psutil

from kvsd.client import aio
from kvsd.protocol.messages import Get, Success, encode
from tests.server.peers import PASSWORD_HASH, Peer, until

T = TypeVar("T")

KIB: Final = 1 << 10
MIB: Final = 1 << 20

OVERHEAD_BYTES: Final = {"plain": 192 * KIB, "tls": 768 * KIB}
"""What a connection may cost beside its share of `server.memory_bytes`, at the worst.

Behind TLS that is uvloop's read buffer of 256 KiB and OpenSSL's of 341 KiB: a peer that sends much at once makes both
grow, and they stay as they are until it leaves. The rest is what the budget leaves free, and fragments.
"""

_READY: Final = re.compile(r"kvsd ready on 127\.0\.0\.1:(\d+) tls=(?:on|off) .*\n")
_STOP_SECONDS: Final = 20


class Target:
    """Started by entering it. Leaving stops it with SIGTERM, which must go well, and looks for faults in its log."""

    host: Final = "127.0.0.1"

    def __init__(
        self,
        folder: Path,
        certificates: Path,
        *,
        tls: bool = True,
        descriptors: tuple[int, int] | None = None,
        password_hash: str = PASSWORD_HASH,
        storage: dict[str, object] | None = None,
        program: str = "kvsd",
        **settings: object,
    ) -> None:
        """`program` is the module that serves; `settings` are the server's.

        `descriptors` are the soft and the hard limit that the process starts with.
        """
        self.tls = tls
        self.ca_path = certificates / "ca.pem"
        self.port = 0
        self.expected_faults: set[str] = set()
        """What may be logged as an error."""
        self.peers: list[Peer] = []
        self._program = program
        self._descriptors = descriptors
        self._log = folder / "server.log"
        self._config = folder / "config.yaml"
        # YAML reads JSON.
        self._config.write_text(
            json.dumps(
                {
                    "server": {
                        "listen_port": 0,
                        "disable_tls": not tls,
                        "tls_certificate": str(certificates / "server.pem"),
                        "tls_key": str(certificates / "server.key"),
                        "log_format": "json",
                        **settings,
                    },
                    "kvsd": {
                        "root_dir": str(folder / "data"),
                        "users": [{"username": "kvsduser", "password_hash": password_hash}],
                        **(storage or {}),
                    },
                }
            ),
            "utf-8",
        )
        self._config.chmod(0o600)

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", self._program, "serve", "--config", str(self._config)]
        if self._descriptors is not None:
            soft, hard = self._descriptors
            command = ["sh", "-c", f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"', "sh", *command]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = _READY.fullmatch(line)
        if found is None:
            self._end()
            raise AssertionError(f"not ready: {line!r}\n{self.log}")
        self.port = int(found[1])
        self._system = psutil.Process(self._process.pid)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=_STOP_SECONDS)
        self._end()
        if kind is None:
            assert self.faults == []
            assert self._process.returncode == 0, self.log

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    # What it holds

    @property
    def resident_bytes(self) -> int:
        """What the process has in memory now."""
        return self._system.memory_info().rss

    def overhead_bytes(self, connections: int) -> int:
        """What so many may cost beside `server.memory_bytes`."""
        return 8 * MIB + connections * OVERHEAD_BYTES["tls" if self.tls else "plain"]

    @contextlib.asynccontextmanager
    async def memory(self, attack: str) -> AsyncIterator[Memory]:
        """How the process grows within the block; printed for who runs pytest with -s."""
        memory = Memory(self.resident_bytes)

        async def watch() -> None:
            while True:
                memory.peak_bytes = max(memory.peak_bytes, self.resident_bytes)
                await asyncio.sleep(0.01)

        watching = asyncio.create_task(watch())
        try:
            yield memory
            memory.peak_bytes = max(memory.peak_bytes, self.resident_bytes)
            print(f"\n{attack}: {memory.growth_bytes / MIB:.1f} MiB")  # noqa: T201 - the figure is what one runs it for
        finally:
            watching.cancel()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The process stands still within the block, as behind a laptop's lid."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def longest_wait(self) -> AsyncIterator[list[float]]:
        """The milliseconds of its processor that a ping may have waited for within the block, once that is left.

        For `program="tests.hostile.clocked"`.
        """
        waits: list[float] = []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()
        try:
            yield waits
        finally:
            self._process.stdin.write("end\n")
            self._process.stdin.flush()
            waits.append(float(await asyncio.to_thread(self._process.stdout.readline)))

    @property
    def descriptors(self) -> int:
        """Open ones."""
        return self._system.num_fds()

    def limit_descriptors(self, count: int) -> int:
        """From now on no more than `count` can be open; how many could before. Linux only."""
        before, hard = resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self._process.pid, resource.RLIMIT_NOFILE, (count, hard))
        return before

    # What it says

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def logged(self, event: str) -> list[dict[str, object]]:
        return [line for line in self._lines() if line["event"] == event]

    @property
    def faults(self) -> list[dict[str, object]]:
        """What it logged as a failure of its own; a line that is no JSON comes from nowhere good."""
        return [
            line
            for line in self._lines()
            if line["level"] in {"error", "critical"} and line["event"] not in self.expected_faults
        ]

    def _lines(self) -> list[dict[str, object]]:
        return [
            json.loads(line) if line.startswith("{") else {"level": "critical", "event": line}
            for line in self.log.splitlines()
        ]

    # Its clients

    async def peer(self, *, login: bool = True, tls: bool | None = None, receive_bytes: int | None = None) -> Peer:
        """A client that sends exactly what it is told."""
        peer = await Peer.connect(self, login=False, tls=self.tls if tls is None else tls, receive_bytes=receive_bytes)
        self.peers.append(peer)
        if login:
            await peer.log_in()
        return peer

    def connect(self) -> aio.Connecting:
        """A client as users have it."""
        return aio.connect(
            host=self.host,
            port=self.port,
            username="kvsduser",
            password="secret",
            ca=self.ca_path,
            disable_tls=not self.tls,
            timeout=20,
        )

    async def close_peers(self) -> None:
        await asyncio.gather(*(peer.close() for peer in self.peers))
        self.peers.clear()

    async def until_left(self, count: int = 0) -> None:
        """Until the server has let go of all but `count` connections."""
        await until(lambda: len(self._connections()) <= count, "connections are left")

    def _connections(self) -> list[object]:
        return [one for one in self._system.net_connections("tcp") if one.status != psutil.CONN_LISTEN]


@dataclass(slots=True)
class Memory:
    """What a process had at first, and the most that it had since."""

    first_bytes: int
    peak_bytes: int = 0

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.first_bytes


async def crowd(count: int, join: Callable[[int], Awaitable[T]]) -> list[T]:
    """What `join` makes of each number up to `count`; some are at it at a time."""
    gate = asyncio.Semaphore(50)

    async def enter(number: int) -> T:
        async with gate:
            return await join(number)

    return await asyncio.gather(*map(enter, range(count)))


class Witness:
    """A well-behaved client, which must be served whatever others do."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def is_served(self) -> None:
        await self._peer.say(Get(b"witness"))
        await self._peer.expect(encode(Success(None)))

    async def is_served_during(self, attack: Awaitable[object]) -> None:
        attacking = asyncio.ensure_future(attack)
        try:
            while not attacking.done():
                await self.is_served()
                await asyncio.sleep(0.005)
            await attacking
        finally:
            attacking.cancel()
            await asyncio.wait([attacking])
