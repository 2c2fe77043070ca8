"""Our Python clients beside redis-py, each with its own server, over TLS, every write synced.

    pip install redis            # and redis-server from your system's packages
    python benchmarks/clients.py [--rounds 5] [--requests 5000]

One blocking client, and an asyncio client with 50 tasks. Ratios are kvsd / redis in the same round.
"""

import argparse
import asyncio
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from run import kvsd as kvsd_server

import kvsd
import kvsd.aio

TASKS = 50
VALUE = b"v" * 100


@contextmanager
def redis_server(folder: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    certs = folder / "certs"
    command = ["redis-server", "--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--tls-cert-file", str(certs / "server.pem"), "--tls-key-file", str(certs / "server.key")]
    command += ["--tls-ca-cert-file", str(certs / "ca.pem"), "--tls-auth-clients", "no"]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            _wait_for(port)
            yield port
        finally:
            server.terminate()
            server.wait(30)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def blocking(client: Any, operation: str, requests: int) -> float:
    begin = time.perf_counter()
    for number in range(requests):
        key = f"key:{number % 1000}"
        client.get(key) if operation == "get" else client.set(key, VALUE)
    return requests / (time.perf_counter() - begin)


async def concurrent(client: Any, operation: str, requests: int) -> float:
    async def task(first: int) -> None:
        for number in range(first, requests, TASKS):
            key = f"key:{number % 1000}"
            await (client.get(key) if operation == "get" else client.set(key, VALUE))

    begin = time.perf_counter()
    await asyncio.gather(*(task(first) for first in range(TASKS)))
    return requests / (time.perf_counter() - begin)


async def measure(port: int, redis_port: int, ca: Path, rounds: int, requests: int) -> dict[str, list[float]]:
    ours = {"port": port, "username": "kvsduser", "password": "secret", "ca": ca}
    theirs = {"host": "localhost", "port": redis_port, "ssl": True, "ssl_ca_certs": str(ca)}
    figures: dict[str, list[float]] = {}
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        f"rediss://localhost:{redis_port}?ssl_ca_certs={ca}", max_connections=TASKS
    )
    with kvsd.connect(**ours) as our_client, redis.Redis(**theirs) as their_client:
        async with kvsd.aio.connect(**ours) as our_aio, redis.asyncio.Redis(connection_pool=pool) as their_aio:
            for _ in range(rounds):
                for operation in ("set", "get"):
                    for name, client in (("kvsd", our_client), ("redis", their_client)):
                        rate = await asyncio.to_thread(blocking, client, operation, requests)
                        figures.setdefault(f"blocking {operation} {name}", []).append(rate)
                    for name, aio_client in (("kvsd", our_aio), ("redis", their_aio)):
                        rate = await concurrent(aio_client, operation, requests * 4)
                        figures.setdefault(f"asyncio {operation} {name}", []).append(rate)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=5_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with kvsd_server(folder, "always") as port, redis_server(folder) as redis_port:
            arguments = (port, redis_port, folder / "certs/ca.pem", options.rounds, options.requests)
            figures = asyncio.run(measure(*arguments))
    for what, rates in figures.items():
        print(f"{what:20} {statistics.median(rates):10,.0f}/s")
    for what in ("blocking set", "blocking get", "asyncio set", "asyncio get"):
        pairs = zip(figures[f"{what} kvsd"], figures[f"{what} redis"], strict=True)
        print(f"{what:20} kvsd / redis  {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
