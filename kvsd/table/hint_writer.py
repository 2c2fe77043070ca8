"""Writes hints in the background, one after the other.

Owns: the pace, so that nobody waits for the interpreter or the disk because of hints. Must not know what is in them,
nor asyncio.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from pathlib import Path
from typing import Final

from kvsd.errors import KvsdError
from kvsd.table import hint
from kvsd.table.limits import limit_of
from kvsd.table.medium import Medium

_PAUSE_SECONDS: Final = 0.0015
"""After each slice of a quarter of a millisecond: some 60,000 entries a second. The round trip of the loop to a worker
took 170 µs beside it instead of 130, and 1.6 ms at the 99th percentile."""

QUICK_BYTES: Final = 8 << 20
"""So long a segment gets its hint even if somebody waits for it, as at a clean stop: 0.2 s at the most."""


_RETRIES: Final = 2
"""So many of those that met a limit go along with what has just been sealed: a full disk must not fill the log, too."""


class HintWriter:
    """For one table; many tables may share an `executor`, best one with a single thread.

    What fails is told to `failed`, on the worker's thread, and costs no more than a slower start.
    """

    def __init__(self, medium: Medium, executor: Executor, failed: Callable[[Path, Exception], None]) -> None:
        self._medium = medium
        self._executor = executor
        self._failed = failed
        self._stopping = threading.Event()
        self._jobs: set[Future[None]] = set()
        self.last_until = math.inf
        """The moment on the monotonic clock when `add_last` gives up: many tables that stop at once take long."""
        self._later: deque[Path] = deque()
        """Segments whose hint met a limit: with the next ones there may be room, or a descriptor."""

    def add(self, segments: Iterable[Path]) -> None:
        """These are sealed now."""
        later = [self._later.popleft() for _ in range(min(len(self._later), _RETRIES))]
        for path in (*later, *segments):
            job = self._executor.submit(self._write_slowly, path)
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)

    def add_last(self, path: Path, size_bytes: int) -> None:
        """The segment of a clean stop: at once, and only if that is quick; else the next start does it."""
        if size_bytes <= QUICK_BYTES:
            self._write(path, lambda: time.monotonic() > self.last_until)

    def _write_slowly(self, path: Path) -> None:
        if not self._stopping.is_set():
            self._write(path, lambda: self._stopping.wait(_PAUSE_SECONDS))

    def _write(self, path: Path, pause: Callable[[], bool]) -> None:
        try:
            hint.write(self._medium, path, pause)
        except FileNotFoundError:
            pass  # compaction was faster
        except (OSError, KvsdError) as error:
            if limit_of(error) is not None:
                self._later.append(path)
            self._failed(path, error)

    def stop(self) -> None:
        """No more hints; waits until the one under way has been dropped, some milliseconds."""
        self._stopping.set()
        jobs = list(self._jobs)
        wait([job for job in jobs if not job.cancel()])
