"""The descriptors of the process: how many the tables may use, and a warning before there are none.

Owns: these figures. Must not know tables or connections; those who open files meet the limit themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from concurrent.futures import Executor
from typing import Final, NamedTuple

from kvsd.server.reporting import Reporter
from kvsd.table.limits import Limit

_IN_PASSING: Final = 10
"""Descriptors for a moment: a new segment and its folder, both sides of a compaction and of a hint, the catalog …"""
_OF_A_TABLE: Final = 2
"""Descriptors of a table's folder, and of the segment that is written."""
_MAX_SEGMENTS: Final = 10_000
_TO_OPEN: Final = 4
"""Descriptors that the opening of a table takes at once, beside what its closing has given back."""
_WATCH_SECONDS: Final = 10.0
_WARN_SHARE: Final = 0.8
_CALM_SHARE: Final = 0.7
"""Below that the next warning is a new one."""


class TableShare(NamedTuple):
    """The numbers of tables and segments that may be open."""

    tables: int
    segments: int
    """Full ones, beside those that are written."""


def share_of_tables(free: float, max_open_tables: int) -> TableShare:
    """Divide `free` descriptors: half of them for tables, as far as these are wanted, the rest for full segments."""
    free = max(free - _IN_PASSING, 0)
    tables = int(max(1, min(max_open_tables, free // (2 * _OF_A_TABLE))))
    return TableShare(tables, int(max(1, min(free - _OF_A_TABLE * tables, _MAX_SEGMENTS))))


class DescriptorWatch:
    """A warning, once, when four fifths of the descriptors are used."""

    def __init__(self, reporter: Reporter, pool: Executor) -> None:
        self._reporter = reporter
        self._pool = pool
        self._has_warned = False

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.judge(await loop.run_in_executor(self._pool, count), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            await asyncio.sleep(_WATCH_SECONDS)

    def judge(self, used: int | None, limit: int) -> None:
        """`used` of `limit` descriptors are open; None: there was none left to count them."""
        share = 1.0 if used is None else 0.0 if limit == resource.RLIM_INFINITY else used / limit
        if share >= _WARN_SHARE and not self._has_warned:
            self._has_warned = True
            self._reporter.warning(
                f"few {Limit.DESCRIPTORS} are left; {Limit.DESCRIPTORS.remedy}",
                used=limit if used is None else used,
                limit=limit,
            )
        elif share < _CALM_SHARE:
            self._has_warned = False


def check_some_are_left() -> None:
    """Raises OSError where there are too few to open a table; so it is not closed first."""
    with contextlib.ExitStack() as held:
        for _ in range(_TO_OPEN):
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def count() -> int | None:
    """The descriptors that are open; None where there is none left to count them. For a worker: it lists them all."""
    try:
        return len(os.listdir("/dev/fd")) - 1
    except OSError:
        return None
