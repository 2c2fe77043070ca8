"""The server as a process: its event loop, its signals, and how it ends.

Owns: what each signal means at each moment, and how long a stop waits for the disk. Must not know what a server is made
of.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from kvsd.config import Config
from kvsd.server import stderr
from kvsd.server.reporting import make_reporter
from kvsd.server.server import Server

DISK_GRACE_SECONDS: Final = 5.0
"""Time beyond the drain, for the last syncs of one more table. Everything acknowledged is on disk before."""

_FULL_COLLECTION_EVERY: Final = 10_000
"""Collections of the middle generation, of which each stands for thousands of new objects."""


def serve(config: Config, on_ready: Callable[[Server], None], stop_signals: Collection[signal.Signals]) -> None:
    """Run until one of `stop_signals` and drain then; a second signal ends the process at once.

    One that comes before the server is ready ends the start, and `on_ready` is not called. SIGHUP stops the server in
    the same way where it tells that the process's terminal is gone; else it is ignored.

    Raises ConfigError where the server cannot start. Uses uvloop where it runs.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, on_ready, stop_signals))


async def _serve(config: Config, on_ready: Callable[[Server], None], stop_signals: Collection[signal.Signals]) -> None:
    loop = asyncio.get_running_loop()
    reporter = make_reporter(config.server.log_level, config.server.log_format)
    server = Server(config, reporter)
    loop.set_exception_handler(partial(_report, reporter))
    starting = loop.create_task(server.start())
    stopping = asyncio.Event()

    def look_at_disk(open_before: float) -> None:
        if server.open_tables < open_before:  # they close, one after the other
            loop.call_later(DISK_GRACE_SECONDS, look_at_disk, server.open_tables)
            return
        if server.open_tables:
            reporter.critical("the disk does not answer; stopping without it")
        stderr.drain()
        # A thread that hangs would keep sys.exit waiting.
        os._exit(1 if server.open_tables else 0)

    def stop(number: int) -> None:
        name = signal.Signals(number).name
        if stopping.is_set():
            # Everything acknowledged is on disk; a thread that hangs in a sync would keep sys.exit waiting.
            reporter.warning("stopping at once", signal=name)
            stderr.drain()
            os._exit(128 + number)
        reporter.info("draining", signal=name)
        loop.call_later(config.server.drain_timeout_seconds, look_at_disk, math.inf)
        stopping.set()
        starting.cancel()

    for number in stop_signals:
        loop.add_signal_handler(number, stop, number)
    _heed_hangup(loop, reporter, stop)
    try:
        await starting
        try:
            if not stopping.is_set():
                _spare_the_collector()
                on_ready(server)
            await stopping.wait()
        finally:
            await server.stop()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    reporter.info("stopped")


def _spare_the_collector() -> None:
    """Keep the garbage collector from walking through all that lives long: 10 ms at a start, 100 with a million keys.

    What comes and goes is found in the young generations; we make no cycles that last, and a connection leaves none.
    """
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _FULL_COLLECTION_EVERY)


def _heed_hangup(loop: asyncio.AbstractEventLoop, reporter: FilteringBoundLogger, stop: Callable[[int], None]) -> None:
    """Have SIGHUP stop the server only where its terminal has gone, unless it was started to ignore it (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            stop(signal.SIGHUP)
        else:
            reporter.warning("SIGHUP is ignored: a changed configuration or certificate takes a restart")

    loop.add_signal_handler(signal.SIGHUP, hang_up)


def _has_terminal() -> bool:
    """Tell whether there is a terminal that the process belongs to, or writes to."""
    with suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
        return True
    return any(map(os.isatty, range(3)))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _report(reporter: FilteringBoundLogger, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the loop could not hand to anyone. A peer's broken TLS is its own affair, the rest our fault."""
    error = context.get("exception")
    if isinstance(error, OSError):
        reporter.debug(context["message"], error=str(error))
    else:
        reporter.error(context["message"], exc_info=error)
