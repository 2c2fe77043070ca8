"""How fast a table is recovered, and what its keys cost in memory.

    python benchmarks/recovery.py [--entries 1000000] [--root FOLDER]

Writes entries with 20-byte keys and 100-byte values, then recovers them in a process of its own: from the log, and
from hints.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from kvsd.server import offline
from kvsd.table import hint
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store

TABLE = "namespaces/default/default"


def recover(root: Path, entries: int, how: str) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    store = Store(Log(root / TABLE, LogOptions()), cache_bytes=0)
    begin = time.perf_counter()
    store.recover()
    seconds = time.perf_counter() - begin
    grown = process.memory_info().rss - before
    peak = _peak_rss() - before
    store.log.close()
    print(
        f"{len(store):,} keys: {entries / seconds:,.0f} entries/s {how}, "
        f"{grown / len(store):.0f} bytes a key, {peak / len(store):.0f} at the worst point"
    )


def _peak_rss() -> int:
    status = Path("/proc/self/status")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--recover", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.recover:
        recover(options.recover, options.entries, options.how)
        return
    with tempfile.TemporaryDirectory(dir=options.root) as name:
        items = ((b"key:%016d" % number, b"v" * 100) for number in range(options.entries))
        offline.write(Path(name), items)
        command = [sys.executable, __file__, "--entries", str(options.entries), "--recover", name]
        for _ in range(3):
            subprocess.run([*command, "--how", "with checksums"], check=True)
        begin = time.perf_counter()
        for path in sorted((Path(name) / TABLE).glob("*.log"))[:-1]:
            hint.write(Medium(), path)
        print(f"hints written in {time.perf_counter() - begin:.1f} s")
        for _ in range(3):
            subprocess.run([*command, "--how", "from hints"], check=True)


if __name__ == "__main__":
    main()
