"""A program of its own, for what cannot be done within a test: `python circumstances.py CELL plain|tls`.

Each cell is a way in which programs use a client, or are interrupted, against a real server. It ends with 0 where each
value was right, or the error clear and in time; never with another's value, or an OK for what was not stored.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kvsd
import kvsd.aio

ROUNDS = 30
CELLS: dict[str, Callable[[Daemon], None]] = {}


class Daemon:
    """A server in a process of its own, which can be stopped, killed and started on the same port."""

    def __init__(self, *, tls: bool) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._tls = tls
        self._port = 0
        self.start()

    def start(self) -> None:
        content = {
            "server": {
                "listen_port": self._port,
                "disable_tls": not self._tls,
                "tls_certificate": "c.pem",
                "tls_key": "c.key",
                "tls_auto": True,
            },
            "kvsd": {"fsync": "never", "users": [{"username": "u", "password": "p"}]},
        }
        path = self._folder / "config.yaml"
        path.write_text(json.dumps(content))
        path.chmod(0o600)
        command = [sys.executable, "-m", "kvsd", "serve", "--config", str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        ready = re.search(r":([0-9]+) ", self.process.stdout.readline())
        assert ready is not None
        self._port = int(ready[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def access(self) -> dict[str, Any]:
        access: dict[str, Any] = {"host": "127.0.0.1", "port": self._port, "username": "u", "password": "p"}
        return {**access, **({"ca": self._folder / "ca.pem"} if self._tls else {"disable_tls": True})}

    def connect(self, **given: Any) -> kvsd.Client:
        return kvsd.connect(**{"timeout": 5, **self.access, **given})

    def connect_aio(self, **given: Any) -> Any:
        return kvsd.aio.connect(**{"timeout": 5, **self.access, **given})


def cell(function: Callable[[Daemon], None]) -> Callable[[Daemon], None]:
    CELLS[function.__name__] = function
    return function


def own(db: kvsd.Client, name: str) -> None:
    """Use `db` as nobody else does, and see nothing but that."""
    for n in range(ROUNDS):
        db.set(f"{name}:{n}", f"{name} {n}")
        assert db.get(f"{name}:{n}") == f"{name} {n}".encode()


def all_stored(db: kvsd.Client, name: str) -> None:
    assert db.get_many([f"{name}:{n}" for n in range(ROUNDS)]) == [f"{name} {n}".encode() for n in range(ROUNDS)]


async def own_aio(db: kvsd.aio.Client, name: str) -> None:
    await asyncio.gather(*(db.set(f"{name}:{n}", f"{name} {n}") for n in range(ROUNDS)))
    for n, value in enumerate(await asyncio.gather(*(db.get(f"{name}:{n}") for n in range(ROUNDS)))):
        assert value == f"{name} {n}".encode()


def in_child(action: Callable[[], None]) -> int:
    """The pid of a process that carries `action` out after a fork."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            action()
            status = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def is_told(call: Callable[[], object], error: type[BaseException], seconds: float = 2.0) -> None:
    """`call` ends with `error`, in time."""
    started = time.monotonic()
    try:
        call()
    except error:
        assert time.monotonic() - started < seconds
    else:
        raise AssertionError(f"no {error.__name__}")


@cell
def fork_blocking(daemon: Daemon) -> None:
    """A scan and a batch are under way."""
    db = daemon.connect()
    own(db, "before")
    scan = db.keys("before:")
    assert next(scan) == b"before:0"

    def go_on(name: str) -> None:
        assert len(list(scan)) == ROUNDS - 1
        own(db, name)

    with db.batch() as steps:
        steps.set("common", "1")
        children = [in_child(lambda name=f"child {n}": go_on(name)) for n in range(3)]  # type: ignore[misc] # bound now
        go_on("parent")
    assert all(map(ended_well, children))
    assert db.get("common") == b"1"
    for name in ("before", "parent", "child 0", "child 1", "child 2"):
        all_stored(db, name)
    db.close()


@cell
def fork_asyncio(daemon: Daemon) -> None:
    async def main() -> None:
        async with daemon.connect_aio() as db:
            await own_aio(db, "before")

            def child() -> None:
                async def use() -> None:
                    await db.get("before:1")

                is_told(lambda: asyncio.run(use()), kvsd.ClientUnusable)

                async def own_client() -> None:
                    async with daemon.connect_aio() as other:
                        await own_aio(other, "child")
                    await db.close()

                asyncio.run(own_client())

            pid = in_child(child)
            await own_aio(db, "parent")
            assert await asyncio.to_thread(ended_well, pid)
            await own_aio(db, "after")

    asyncio.run(main())
    with daemon.connect() as db:
        for name in ("before", "parent", "child", "after"):
            all_stored(db, name)


@cell
def thread_blocking(daemon: Daemon) -> None:
    with daemon.connect(pool_size=3) as db, ThreadPoolExecutor(8) as threads:
        for outcome in [threads.submit(own, db, f"thread {n}") for n in range(8)]:
            outcome.result()
        for n in range(8):
            all_stored(db, f"thread {n}")


@cell
def thread_asyncio(daemon: Daemon) -> None:
    """Calls from the loops of other threads, in debug mode too, which checks where callbacks are made."""

    async def main() -> None:
        async with daemon.connect_aio() as db:

            def elsewhere(debug: bool) -> None:
                async def use() -> None:
                    await db.get("here:1")

                for _ in range(ROUNDS):
                    is_told(lambda: asyncio.run(use(), debug=debug), kvsd.ClientUnusable)

            others = [asyncio.create_task(asyncio.to_thread(elsewhere, debug)) for debug in (False, True)]
            await own_aio(db, "here")
            while not all(other.done() for other in others):
                await own_aio(db, "here")
            await asyncio.gather(*others)

    asyncio.run(main(), debug=True)


@cell
def loop_blocking(daemon: Daemon) -> None:
    with daemon.connect() as db:
        for n in range(2):
            asyncio.run(asyncio.to_thread(own, db, f"run {n}"))


@cell
def loop_asyncio(daemon: Daemon) -> None:
    clients: list[kvsd.aio.Client] = []

    async def first() -> None:
        clients.append(await daemon.connect_aio())
        await own_aio(clients[-1], "first")

    async def second() -> None:
        await own_aio(clients[0], "second")

    asyncio.run(first())
    is_told(lambda: asyncio.run(second()), kvsd.ClientUnusable)
    asyncio.run(clients[0].close())
    asyncio.run(first())


@cell
def cancel_blocking(daemon: Daemon) -> None:
    """Ctrl-C, caught: it cancels what is under way."""
    with daemon.connect(pool_size=1) as db:
        own(db, "here")
        for n in range(ROUNDS):
            timer = threading.Timer(0.0005 * n, signal.raise_signal, [signal.SIGINT])
            try:
                timer.start()
                while True:
                    assert db.get(f"here:{n}") == f"here {n}".encode()
            except KeyboardInterrupt:
                timer.join()
            assert db.get("here:0") == b"here 0"


@cell
def cancel_asyncio(daemon: Daemon) -> None:
    async def main() -> None:
        async with daemon.connect_aio() as db:
            await own_aio(db, "here")
            for turn in range(ROUNDS):
                tasks = [asyncio.create_task(db.get(f"here:{n}")) for n in range(ROUNDS)]
                for _ in range(turn % 5):
                    await asyncio.sleep(0)
                for task in tasks[turn % 3 :: 3]:
                    task.cancel()
                for n, outcome in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                    assert outcome == f"here {n}".encode() or isinstance(outcome, asyncio.CancelledError)

    asyncio.run(main())


@cell
def timeout_blocking(daemon: Daemon) -> None:
    with daemon.connect(timeout=0.5) as db:
        own(db, "here")
        daemon.process.send_signal(signal.SIGSTOP)
        is_told(lambda: db.get("here:1"), kvsd.Timeout)
        is_told(lambda: db.incr("n"), TimeoutError)
        daemon.process.send_signal(signal.SIGCONT)
        own(db, "again")


@cell
def timeout_asyncio(daemon: Daemon) -> None:
    async def main() -> None:
        async with daemon.connect_aio(timeout=0.5) as db:
            await own_aio(db, "here")
            daemon.process.send_signal(signal.SIGSTOP)
            for outcome in await asyncio.gather(*(db.get("here:1") for _ in range(5)), return_exceptions=True):
                assert isinstance(outcome, kvsd.Timeout)
            daemon.process.send_signal(signal.SIGCONT)
            await own_aio(db, "again")

    asyncio.run(main())


@cell
def restart_blocking(daemon: Daemon) -> None:
    with daemon.connect() as db, daemon.connect(wait=30) as patient, ThreadPoolExecutor(1) as threads:
        own(db, "before")
        own(patient, "patient")
        daemon.kill()
        is_told(lambda: db.get("before:1"), kvsd.ConnectionRefused)
        is_told(lambda: db.set("k", "v"), ConnectionRefusedError)
        waiting = threads.submit(own, patient, "waiting")
        daemon.start()
        waiting.result()
        own(db, "after")
        for name in ("before", "patient", "waiting", "after"):
            all_stored(db, name)


@cell
def restart_asyncio(daemon: Daemon) -> None:
    async def main() -> None:
        async with daemon.connect_aio() as db, daemon.connect_aio(wait=30) as patient:
            await own_aio(db, "before")
            daemon.kill()
            for outcome in await asyncio.gather(*(db.get("before:1") for _ in range(5)), return_exceptions=True):
                assert isinstance(outcome, kvsd.ConnectionRefused)
            waiting = asyncio.create_task(own_aio(patient, "waiting"))
            await asyncio.sleep(0)
            await asyncio.to_thread(daemon.start)
            await waiting
            await own_aio(db, "after")
        async with daemon.connect_aio() as db:
            assert await db.count() == 3 * ROUNDS

    asyncio.run(main())


@cell
def gevent_blocking(daemon: Daemon) -> None:
    import gevent

    with daemon.connect(pool_size=3) as db:
        jobs = [gevent.spawn(own, db, f"greenlet {n}") for n in range(8)]
        gevent.joinall(jobs, raise_error=True, timeout=20)
        assert all(job.successful() for job in jobs)
        with gevent.Timeout(0.001, False):
            while True:
                db.get("greenlet 1:1")
        pid = in_child(lambda: own(db, "child"))
        own(db, "parent")
        assert ended_well(pid)
        for name in (*(f"greenlet {n}" for n in range(8)), "parent", "child"):
            all_stored(db, name)


@cell
def eventlet_blocking(daemon: Daemon) -> None:
    import eventlet

    with daemon.connect(pool_size=3) as db:
        jobs = [eventlet.spawn(own, db, f"thread {n}") for n in range(8)]
        for job in jobs:
            job.wait()
        with eventlet.Timeout(0.001, False):
            while True:
                db.get("thread 1:1")
        for n in range(8):
            all_stored(db, f"thread {n}")


@cell
def gevent_asyncio(daemon: Daemon) -> None:
    cancel_asyncio(daemon)


@cell
def eventlet_asyncio(daemon: Daemon) -> None:
    cancel_asyncio(daemon)


def main(name: str, kind: str) -> None:
    daemon = Daemon(tls=kind == "tls")
    try:
        if name.startswith("gevent"):
            import gevent.monkey

            gevent.monkey.patch_all()
        if name.startswith("eventlet"):
            import eventlet

            eventlet.monkey_patch()
        CELLS[name](daemon)
    finally:
        daemon.kill()


if __name__ == "__main__":
    main(*sys.argv[1:])
