"""Where the crash tests keep their files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where the system has such: replays write files by the thousand, and none has to last."""
    if os.access(MEMORY, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="kvsd-", dir=MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path
