"""What the crash tests share: worker threads, a place for their files, and small measures."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvsd.table.segment import Segment

MEMORY = Path("/dev/shm")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the system has such: replays write files by the thousand, and none has to last."""
    if os.access(MEMORY, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="kvsd-", dir=MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """As in a server: commits, fills and syncs of one table may run at the same time."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros in chunks that fit small segments, hints of many blocks, and no sweep unless a test asks for one."""
    monkeypatch.setattr("kvsd.table.log.FIRST_FILL_BYTES", 512)
    monkeypatch.setattr("kvsd.table.log.MAX_FILL_BYTES", 2_048)
    monkeypatch.setitem(Segment.create.__kwdefaults__, "fill_bytes", 512)
    monkeypatch.setattr("kvsd.table.actor._SWEEP_SECONDS", 1_000_000.0)
    monkeypatch.setattr("kvsd.table.hint._BLOCK_ENTRIES", 3)
