"""Trust in the wall clock where what it says cannot be undone: in removing what has expired.

Owns: that judgement, and the file ROOT/clock, which says when the clock was last believed. Must not know what is
removed, nor asyncio. See docs/decisions/0011-clock.md.

The wall clock is believed when it has gone along with the machine's own steady clock for an hour; or where it is where
it was when it was last believed. At a start it is believed unless it is an hour or more ahead of what the file says,
since a machine that was off cannot be told from a clock that is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvsd.server.reporting import Reporter
from kvsd.table.log import now_us
from kvsd.table.medium import Medium

HOLD_SECONDS: Final = 3_600.0
"""A clock that has jumped must be steady for so long; and a start may follow the last sign of life within it."""
_TOLERANCE_SECONDS: Final = 60.0
"""A difference that is a correction, or is not noticed."""
_NAME: Final = "clock"


def wall_seconds() -> float:
    """Since 1970, by the clock that tables go by."""
    return now_us() / 1_000_000


def steady_seconds() -> float:
    """By the clock that nobody sets; it goes on while the machine sleeps, where the system has one that does."""
    boot: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


class WallClock:
    """The wall clock as one data folder knows it. All but `remember` belongs to one thread."""

    def __init__(
        self,
        root: Path,
        reporter: Reporter,
        medium: Medium | None = None,
        *,
        is_new: bool = False,
        wall: Callable[[], float] = wall_seconds,
        steady: Callable[[], float] = steady_seconds,
    ) -> None:
        """`is_new`: the data folder has just been begun, so nothing in it can be lost."""
        self._path = root / _NAME
        self._reporter = reporter
        self._medium = medium or Medium()
        self._wall = wall
        self._steady = steady
        now = wall()
        self._since = steady()
        self._offset = now - self._since
        self._believed: float | None = self._offset
        """Seconds by which the wall clock was ahead of the steady one when it was last believed; None: not yet."""
        seen = now if is_new else self._load()
        if seen is None or now - seen > HOLD_SECONDS:
            self._believed = None
            why = "is far ahead of the last run" if seen is not None else "was never noted in this data folder"
            self._doubt(f"the clock {why}", seen)

    def is_right(self) -> bool:
        """Tell whether what has expired by this clock may be removed for good."""
        steady = self._steady()
        offset = self._wall() - steady
        has_jumped = abs(offset - self._offset) > _TOLERANCE_SECONDS
        self._offset = offset
        if self._believed is not None and abs(offset - self._believed) <= _TOLERANCE_SECONDS:
            self._believed = offset
            self._since = steady
            return True
        if has_jumped:
            self._since = steady
            self._doubt("the clock has jumped", None)
        elif steady - self._since >= HOLD_SECONDS:
            self._believed = offset
            self._reporter.info("the clock is believed again: what has expired is removed")
            return True
        return False

    def _doubt(self, why: str, seen: float | None) -> None:
        self._reporter.warning(
            f"{why}: expired keys and dropped tables are kept for {HOLD_SECONDS / 60:.0f} minutes",
            now=round(self._wall()),
            last_believed=None if seen is None else round(seen),
        )

    def remember(self) -> None:
        """Note that the clock is believed now; any thread may. What fails only makes the next start more careful."""
        new = self._path.with_name(_NAME + ".new")
        try:
            fd = self._medium.open(new, create=True)
            try:
                self._medium.write(fd, [b"%d\n" % self._wall()], 0)
            finally:
                self._medium.close(fd)
            self._medium.rename(new, self._path)
        except OSError as error:
            self._reporter.warning("the clock could not be noted", path=str(self._path), error=str(error))

    def _load(self) -> float | None:
        try:
            return float(int(self._path.read_bytes()[:20]))
        except (OSError, ValueError):
            return None
