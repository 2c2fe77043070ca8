"""What is told beforehand of memory and disk, against tables that were really written and read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvsd.server import offline
from kvsd.table import hint, sizing
from kvsd.table.medium import Medium
from tests.table.driver import Table

JUST_FULL = 2**20 * 2 // 3
"""So many keys a dict of a million slots holds; with one more it doubles, which is the worst point."""
WINDOWS = 1 << 20
"""What a start needs beside the keys, however many there are: 1.5 bytes a key here, nothing for many."""

CHILD = """
import json, sys
from pathlib import Path
from kvsd.table.log import Log, LogOptions
from kvsd.table.store import Store

def memory(what):
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

before = memory("VmRSS")
store = Store(Log(Path(sys.argv[1]), LogOptions()), cache_bytes=0)
store.recover()
at_rest = memory("VmRSS")
if sys.argv[2] == "ordered":
    for _ in store.build_order():
        pass
keys = len(store)
store.index.put(b"one more", 0)  # in memory alone
json.dump({"keys": keys, "at_rest": at_rest - before, "peak": memory("VmHWM") - before}, sys.stdout)
store.log.close()
"""


@pytest.mark.parametrize(
    ("keys", "key_bytes", "value_bytes", "segment_bytes"),
    [
        (1, 1, 0, 1 << 20),
        (5_000, 20, 100, 1 << 20),
        (2_500, 20, 100, 64 << 10),
        (7, 20, 70_000, 64 << 10),  # each longer than a segment is meant to be
        (40, 60_000, 10, 1 << 20),  # keys that make a block of a hint long before it has a thousand
        (356 * 3, 20, 100, 65_696),  # the last segment is just full
    ],
)
def test_a_log_and_its_hints_take_what_was_told(
    tmp_path: Path, keys: int, key_bytes: int, value_bytes: int, segment_bytes: int
) -> None:
    table = Table(Medium(), tmp_path, segment_bytes=segment_bytes)
    for number in range(keys):
        table.set(b"%0*d" % (key_bytes, number), bytes(value_bytes))
    table.commit()
    table.stop()
    logs = sorted(table.directory.glob("*.seg"))
    for path in logs:
        hint.write(Medium(), path)
    told = sizing.disk(keys, key_bytes, value_bytes, segment_bytes=segment_bytes, garbage=0)
    assert told.entries == sum(path.stat().st_size for path in logs)
    assert told.hints == sum(path.stat().st_size for path in table.directory.glob("*.hint"))
    assert told.garbage == 0


def test_garbage_is_its_share_of_the_log() -> None:
    told = sizing.disk(1_000, 20, 100, segment_bytes=1 << 20, garbage=0.75)
    assert told.garbage == 3 * (told.entries + told.hints)


@pytest.mark.parametrize("keys", [43_690, 43_691, 100_000])
def test_the_index_is_as_large_as_python_says(keys: int) -> None:
    """Exactly but for the pools' share: CPython's dict and the sizes of its objects are as assumed."""
    index = {b"%020d" % number: sizing.LARGEST_LOCATION - number for number in range(keys)}
    exact = sys.getsizeof(index) + keys * (64 + 48)
    assert exact <= sizing.memory(keys, 20).keys <= 1.01 * exact


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("full")
    offline.write(root, ((b"key:%016d" % number, b"") for number in range(JUST_FULL)))
    return root / "namespaces" / "default" / "default"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("state", "most"), [("unordered", 205), ("ordered", 220)])
def test_a_key_costs_no_more_memory_than_told_and_promised_at_the_worst_point(
    folder: Path, state: str, most: int
) -> None:
    """The promise is 200 bytes; for the moment in which the index doubles it takes 203."""
    command = [sys.executable, "-c", CHILD, str(folder), state]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=100).stdout)
    assert found["keys"] == JUST_FULL
    at_rest, worst = sizing.memory(JUST_FULL, 20), sizing.memory(JUST_FULL + 1, 20)
    assert 0.95 * at_rest.keys <= found["at_rest"] <= at_rest.keys + WINDOWS
    assert found["peak"] <= worst.peak + (worst.order if state == "ordered" else 0) + WINDOWS
    assert found["peak"] / JUST_FULL <= most, found
