"""`kvsd serve` with a clock: `python -m tests.hostile.clocked serve --config FILE`.

A line on stdin starts or ends a measurement. At its end a line on stdout tells, in milliseconds, the most processor
time that two successive turns of the event loop have taken. A ping that arrives just behind a look at the sockets waits
for the rest of that turn, and at most for the whole of the next one, so none waits for longer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Collection

from kvsd.cli.main import main
from kvsd.config import Config
from kvsd.server import Server, process


class Clock:
    """Ticks once in each turn of the loop while it measures, and leaves the processor alone otherwise."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_ticking = False
        self._last = self._before = self._longest = 0.0
        self._loop.add_reader(0, self._switch)

    def _switch(self) -> None:
        if not os.read(0, 100):
            self._loop.remove_reader(0)
            return
        self._is_ticking = not self._is_ticking
        if self._is_ticking:
            self._before = self._longest = 0.0
            self._last = time.thread_time()
            self._loop.call_soon(self._tick)
        else:
            os.write(1, b"%.3f\n" % (self._longest * 1000))

    def _tick(self) -> None:
        if not self._is_ticking:
            return
        now = time.thread_time()
        turn = now - self._last
        self._longest = max(self._longest, self._before + turn)
        self._last, self._before = now, turn
        self._loop.call_soon(self._tick)


def serve_clocked(config: Config, on_ready: Callable[[Server], None], stop_signals: Collection[signal.Signals]) -> None:
    clocks: list[Clock] = []

    def ready(started: Server) -> None:
        clocks.append(Clock())
        on_ready(started)

    serve(config, ready, stop_signals)


serve = process.serve
process.serve = serve_clocked
sys.exit(main())
