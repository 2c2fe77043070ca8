"""When the calls of an asyncio client must end: one timer for all of them.

Owns: which call is late, and cancelling it. Knows nothing of calls. All have the same time, so they are late in the
order in which they began. An `asyncio.timeout` for each takes a third of a call's processor time, and makes a heap of
timers that grows with the calls that wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Deadline:
    """The end of the time for one call, which the running task makes."""

    __slots__ = ("_cancelling", "at", "has_passed", "task")

    def __init__(self, at: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("calls of an asyncio client are made in a task")
        self.task = task
        self.at = at
        self.has_passed = False
        self._cancelling = task.cancelling()

    def takes_back(self) -> bool:
        """Tell whether the CancelledError that has just come is this deadline's, and nobody else's as well."""
        return self.has_passed and self.task.uncancel() <= self._cancelling


class Deadlines:
    """The deadlines of the calls that are under way."""

    def __init__(self) -> None:
        self._open: OrderedDict[Deadline, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, at: float) -> Deadline:
        """Have the running task cancelled at `at`, on its loop's clock, unless `end` comes first."""
        deadline = Deadline(at)
        self._open[deadline] = None
        if self._timer is None:
            self._set_timer(at)
        return deadline

    def extend(self, deadline: Deadline, at: float) -> None:
        """Later than it was; no other is later."""
        deadline.at = at
        self._open.move_to_end(deadline)

    def end(self, deadline: Deadline) -> None:
        """The call is over."""
        self._open.pop(deadline, None)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self, at: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(at, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._open:
            first = next(iter(self._open))
            if first.at > now:
                self._set_timer(first.at)
                return
            del self._open[first]
            first.has_passed = True
            first.task.cancel()
