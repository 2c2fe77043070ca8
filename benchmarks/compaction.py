"""What a compaction costs those who use the table meanwhile, and what it gives back.

    python benchmarks/compaction.py [--mib 2048] [--requests 50000] [--root FOLDER] [--bytes-per-second 0]

A table of that size is generated, of which each file is half garbage. It is served twice, under the same load of sets
and gets of its keys: without compaction, and with it from the start on. Needs what run.py needs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run import HERE, build

from kvsd.server import offline

VALUE_BYTES = 1_000
ENTRY_BYTES = 64 + 16 + VALUE_BYTES
LAG = 20_000
"""So many entries later a value is replaced."""


def halves(keys: int) -> Iterator[tuple[bytes, bytes]]:
    """Each key twice, the second time `LAG` keys later."""
    for number in range(keys + LAG):
        if number < keys:
            yield b"key:%012d" % number, b"old" * (VALUE_BYTES // 3)
        if number >= LAG:
            yield b"key:%012d" % (number - LAG), b"n" * VALUE_BYTES


@contextmanager
def serve(folder: Path, **settings: object) -> Iterator[tuple[int, int]]:
    """A server of the table with these settings; its port and its process id."""
    config = folder / "config.yaml"
    config.write_text((HERE.parent / "config.yaml").read_text("utf-8"))
    config.chmod(0o600)
    command = [sys.executable, "-m", "kvsd", "serve", "--config", config, "--listen-port", "0"]
    environment = {**os.environ, **{f"KVSD_KVSD_{name.upper()}": str(value) for name, value in settings.items()}}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline().split()[3].rpartition(":")[2]), server.pid
        finally:
            server.terminate()
            server.wait(60)


def load(program: Path, port: int, op: str, requests: int, keys: int) -> tuple[float, float]:
    """Requests a second, and the 99th percentile in milliseconds."""
    command = [program, "--port", str(port), "--op", op, "--requests", str(requests), "--keys", str(keys)]
    command += ["--value-bytes", str(VALUE_BYTES)]
    printed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout)
    return printed["per_second"], printed["p99_ms"]


def size_mib(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*.seg")) / 2**20


def outputs(folder: Path) -> int:
    """Files that a compaction has written or is writing."""
    return sum(1 for path in folder.rglob("*-*.seg*") if "-0000." not in path.name)


def peak_mib(pid: int) -> float:
    """The most memory that the process has had; Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def report(what: str, figures: list[tuple[float, float]]) -> None:
    rates, tails = zip(*figures, strict=True)
    rate, tail = statistics.median(rates), statistics.median(tails)
    print(f"{what:16} {rate:9,.0f}/s   p99 {tail:6.2f} ms, at most {max(tails):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2_048)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes-per-second", type=int, default=0)
    parser.add_argument("--root", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.root) as name:
        folder = Path(name)
        program = build(folder)
        keys = (options.mib << 20) // (2 * ENTRY_BYTES)
        offline.write(folder / "data", halves(keys))
        print(f"{keys:,} keys, {size_mib(folder):,.0f} MiB")
        for compaction in (False, True):
            figures: dict[str, list[tuple[float, float]]] = {"get": [], "set": []}
            settings = {
                "compaction": compaction,
                "compaction_garbage_ratio": 0.4,
                "compaction_bytes_per_second": options.bytes_per_second,
            }
            with serve(folder, **settings) as (port, pid):
                before, rounds, found = size_mib(folder), 0, -1
                while rounds < options.rounds or (compaction and found != (found := outputs(folder))):
                    for op, measured in figures.items():
                        measured.append(load(program, port, op, options.requests, keys))
                    rounds += 1
                for op, measured in figures.items():
                    report(f"{op}, {'compacting' if compaction else 'at rest'}", measured)
                print(f"{before:,.0f} MiB before, {size_mib(folder):,.0f} after; peak memory {peak_mib(pid):,.0f} MiB")


if __name__ == "__main__":
    main()
