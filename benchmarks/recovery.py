"""How fast a table is recovered, and what its keys cost in memory.

    python benchmarks/recovery.py [--keys 1000000] [--rounds 3] [--root FOLDER]

Writes a table of 20-byte keys and 100-byte values, and recovers it in processes of its own: from its log, with every
checksum, and from its hints; then sorts its keys, as the first scan does. All that once more after a tenth of the keys
have been overwritten and a tenth deleted, by a second run. Each figure is the median of the rounds. Ten million keys
take 2.7 GB of disk, which are given back, and a quarter of an hour.

A rate alone says little on a machine that others use, too. So that for each second of the processor's time, without the
waits, is told beside it; and its ratio to a bare loop in the same process, which unpacks and checks one entry over and
over and does nothing else. Memory is what the process has grown by, for
each key, deleted ones included. Linux only.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from zlib import crc32

from kvsd.server import offline
from kvsd.table import hint
from kvsd.table.entry import HEADER, HEADER_BYTES
from kvsd.table.log import Log, LogOptions
from kvsd.table.medium import Medium
from kvsd.table.store import Store

TABLE = "namespaces/default/default"
VALUE = b"v" * 100
ONE_IN = 10
"""So many keys for one that is overwritten, and one that is deleted."""


def key(number: int) -> bytes:
    return b"key:%016d" % number


def open_store(root: Path) -> Store:
    store = Store(Log(root / TABLE, LogOptions()), cache_bytes=0)
    store.recover()
    return store


def wear(root: Path, keys: int) -> None:
    """Overwrite some keys and delete others, and stop in order."""
    store = open_store(root)
    for number in range(0, keys, ONE_IN):
        store.set(key(number), VALUE)
        store.delete(key(number + ONE_IN // 2))
        if number % 50_000 == 0 or number + ONE_IN >= keys:
            commit = store.take()
            assert commit is not None
            commit.append.run()
            store.committed(commit)
    store.log.finish().run()
    store.log.close()


def write_hints(root: Path) -> None:
    for path in sorted((root / TABLE).glob("*.seg")):
        if path.stat().st_size > 128 << 10:  # all but the empty one of the last start
            hint.write(Medium(), path)


def remove_hints(root: Path) -> None:
    for path in (root / TABLE).glob("*.hint"):
        path.unlink()


# In a process of its own


def measure(root: Path) -> dict[str, float]:
    """Recover the table and sort its keys; rates in a second, memory in bytes a key."""
    before = memory("VmRSS")
    begin, begin_cpu = time.perf_counter(), time.process_time()
    store = open_store(root)
    figures = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - begin_cpu}
    keys = len(store.index)
    figures |= {"keys": keys, "live": len(store)}
    figures |= {"index": (memory("VmRSS") - before) / keys, "index, peak": (memory("VmHWM") - before) / keys}
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.perf_counter()
    for _ in store.build_order():
        pass
    figures["order seconds"] = time.perf_counter() - begin
    figures |= {"order": (memory("VmRSS") - before) / keys, "order, peak": (memory("VmHWM") - before) / keys}
    store.log.close()
    return figures | {"bare": bare_loop()}


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def bare_loop(entries: int = 500_000) -> float:
    data = bytes(HEADER_BYTES + len(key(0)) + len(VALUE))
    begin = time.process_time()
    for _ in range(entries):
        HEADER.unpack_from(data, 0)
        crc32(data[8:HEADER_BYTES])
        crc32(data[HEADER_BYTES:])
    return entries / (time.process_time() - begin)


# In ours


def report(what: str, root: Path, entries: int, rounds: int) -> None:
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        command = [sys.executable, __file__, "--measure", str(root)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    median = {name: statistics.median(figures[name] for figures in found) for name in found[0]}
    ratio = statistics.median(entries / figures["cpu"] / figures["bare"] for figures in found)
    print(f"{what}: {median['keys']:,.0f} keys, {median['keys'] - median['live']:,.0f} of them deleted")
    print(f"  {entries / median['seconds']:,.0f} entries/s; {entries / median['cpu']:,.0f} a second of the processor's")
    print(f"  {ratio:.2f} of a bare loop")
    print(f"  sorted in {median['order seconds']:.1f} s")
    for stage in ("index", "order"):
        print(f"  bytes a key with the {stage}: {median[stage]:.0f}, at the peak {median[f'{stage}, peak']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="where to make a temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory(dir=options.root) as name:
        root = Path(name)
        offline.write(root, ((key(number), VALUE) for number in range(options.keys)))
        entries = options.keys
        for state in ("fresh", "worn"):
            if state == "worn":
                wear(root, options.keys)
                remove_hints(root)
                entries += 2 * len(range(0, options.keys, ONE_IN))
            report(f"{state}, from the log", root, entries, options.rounds)
            begin = time.perf_counter()
            write_hints(root)
            print(f"hints written in {time.perf_counter() - begin:.1f} s")
            report(f"{state}, from hints", root, entries, options.rounds)


if __name__ == "__main__":
    main()
