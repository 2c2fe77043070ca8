"""Requests a second beside a bare TLS echo server, as ratios in one run.

    python benchmarks/run.py [--rounds 5] [--requests 100000] [--root FOLDER]

Needs a C compiler and OpenSSL's headers for the load generator. Everything listens on loopback, in a temporary folder,
and stops by itself. FOLDER should lie on the disk that is to be measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
VALUE_BYTES = 100
ENTRY_BYTES = 64 + 16 + VALUE_BYTES
KEYS = 100_000


def build(folder: Path) -> Path:
    program = folder / "load"
    command = ["cc", "-O2", "-D_GNU_SOURCE", "-o", program, HERE / "load.c", "-lssl", "-lcrypto"]
    subprocess.run(command, check=True)
    return program


@contextmanager
def kvsd(folder: Path, fsync: str) -> Iterator[int]:
    """A server with the shipped configuration; its port."""
    config = folder / f"config-{fsync}.yaml"
    text = (HERE.parent / "config.yaml").read_text("utf-8")
    config.write_text(
        text.replace("root_dir: data", f"root_dir: data-{fsync}").replace("always\n  seg", f"{fsync}\n  seg")
    )
    config.chmod(0o600)
    command = [sys.executable, "-m", "kvsd", "serve", "--config", config, "--listen-port", "0"]
    environment = {**os.environ, "KVSD_KVSD_FSYNC": fsync}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline().split()[3].rpartition(":")[2])
        finally:
            server.terminate()
            server.wait(30)


@contextmanager
def echo(folder: Path, request_bytes: int, reply: bytes) -> Iterator[int]:
    file = folder / f"reply-{request_bytes}"
    file.write_bytes(reply)
    command = [sys.executable, HERE / "echo.py", folder / "certs/server.pem", folder / "certs/server.key"]
    command += [str(request_bytes), file]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield int(server.stdout.readline())
        finally:
            server.stdin.close()
            server.wait(30)


def load(program: Path, port: int, op: str, requests: int, *, depth: int = 1, keys: int = KEYS) -> float:
    command = [program, "--port", str(port), "--op", op, "--requests", str(requests), "--depth", str(depth)]
    command += ["--keys", str(keys), "--value-bytes", str(VALUE_BYTES)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    per_second: float = json.loads(printed)["per_second"]
    return per_second


def disk(folder: Path, group: int) -> float:
    """Entries a second of the bare disk with `group` of them in each write and sync, into zeros."""
    seconds, count = [], 300
    fd = os.open(folder / "disk", os.O_RDWR | os.O_CREAT)
    try:
        data = b"x" * ENTRY_BYTES * group
        os.pwrite(fd, bytes(len(data) * count), 0)
        os.fsync(fd)
        for number in range(count):
            begin = time.perf_counter()
            os.pwrite(fd, data, number * len(data))
            os.fdatasync(fd)
            seconds.append(time.perf_counter() - begin)
    finally:
        os.close(fd)
    print(f"disk: a sync of {group} entries takes {statistics.median(seconds) * 1e3:.3f} ms (median)")
    return group / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--root", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.root) as name:
        folder = Path(name)
        program = build(folder)
        disk_rate = disk(folder, 25)
        reply_to_get = b"*2\r\n#\x03$100\r\n" + b"v" * VALUE_BYTES + b"\r\n"
        set_bytes = len(b"*3\r\n#\x05+key:000000000000\r\n$100\r\n\r\n") + VALUE_BYTES
        get_bytes = len(b"*2\r\n#\x06+key:000000000000\r\n")
        figures: dict[str, list[float]] = {}
        with (
            kvsd(folder, "always") as port,
            echo(folder, get_bytes, reply_to_get) as for_get,
            echo(folder, set_bytes, b"*2\r\n#\x03|") as for_set,
        ):
            load(program, port, "fill", KEYS, depth=16)
            measured = {
                "echo of a get": lambda: load(program, for_get, "get", options.requests),
                "get": lambda: load(program, port, "get", options.requests),
                "get, 16 deep": lambda: load(program, port, "get", options.requests * 4, depth=16),
                "echo of a set": lambda: load(program, for_set, "set", options.requests),
                "set": lambda: load(program, port, "set", options.requests),
                "set, one key": lambda: load(program, port, "set", options.requests, keys=1),
                "set, 16 deep": lambda: load(program, port, "set", options.requests * 4, depth=16),
            }
            for _ in range(options.rounds):
                for what, measure in measured.items():
                    figures.setdefault(what, []).append(measure())
    for what, rates in figures.items():
        print(f"{what:15} {statistics.median(rates):10,.0f}/s   from {min(rates):,.0f} to {max(rates):,.0f}")

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(figures[a], figures[b], strict=True))

    print(f"get / echo                {ratio('get', 'echo of a get'):.2f}   (aim 0.6)")
    print(f"set / echo                {ratio('set', 'echo of a set'):.2f}   (aim 0.4 where a sync takes 0.2 ms)")
    print(f"set / disk, groups of 25  {statistics.median(figures['set']) / disk_rate:.2f}   (aim 0.7 elsewhere)")
    print(f"set one key / many        {ratio('set, one key', 'set'):.2f}   (aim 1)")
    print(f"get 16 deep / get         {ratio('get, 16 deep', 'get'):.2f}   (aim 2.5)")
    print(f"set 16 deep / set         {ratio('set, 16 deep', 'set'):.2f}   (aim 2.5)")


if __name__ == "__main__":
    main()
