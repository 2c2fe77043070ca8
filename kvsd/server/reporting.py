"""The server's log: one structlog logger, for people on a terminal and JSON lines elsewhere.

Owns: levels, format and destination, and the rate of lines that peers can cause. Nothing that holds a value, a password
or key material is ever passed to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Final, Protocol, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from kvsd.config import LogFormat, LogLevel
from kvsd.server.stderr import Stderr

LINES_A_MINUTE: Final = 10
"""Lines of each kind that strangers can cause; further ones are counted."""

_SHOWN_CHARS: Final = 200

_LEVELS: Final = logging.getLevelNamesMapping()


class _Lines:
    """Writes to `stream` if there is one. The server goes on when nobody reads its log any more, or a disk is full."""

    def __init__(self, stream: TextIO | Stderr | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.write(text + "\n")
                self._stream.flush()

    debug = info = warning = error = critical = line


def make_reporter(level: LogLevel, log_format: LogFormat) -> FilteringBoundLogger:
    """A logger to stderr. It touches no global configuration: an embedding program keeps its own."""
    stderr: TextIO | Stderr | None = sys.stderr  # None where the process was started without one
    on_terminal = stderr is not None and stderr.isatty()
    as_json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not on_terminal)
    processors: list[Processor] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso")]
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Not the default, which shows the variables of each frame where rich is installed: passwords among them.
        plain = structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=on_terminal, exception_formatter=plain))
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Lines(stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level.upper()]),
    )
    if isinstance(stderr, Stderr):
        stderr.on_loss = lambda count: logger.warning("log lines were lost, since nobody took them", count=count)
    return logger


class Reporter(Protocol):
    """The part of a structured logger that a server uses."""

    def debug(self, event: str, **fields: object) -> object: ...
    def info(self, event: str, **fields: object) -> object: ...
    def warning(self, event: str, **fields: object) -> object: ...
    def error(self, event: str, **fields: object) -> object: ...
    def critical(self, event: str, **fields: object) -> object: ...


class LimitedReporter:
    """Passes on so many lines a minute of each kind, and then their number: peers can cause lines, and fill a disk.

    A kind is an event at a table. What is less than info is for who looks for it, and not limited.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._loop = asyncio.get_running_loop()
        self._counts: Counter[tuple[str, object]] = Counter()
        """The number of lines of each kind since the minute began."""
        self._is_counting = False

    def debug(self, event: str, **fields: object) -> None:
        self._reporter.debug(event, **fields)

    def info(self, event: str, **fields: object) -> None:
        if self._has_room(event, fields):
            self._reporter.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        if self._has_room(event, fields):
            self._reporter.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        if self._has_room(event, fields):
            self._reporter.error(event, **fields)

    def critical(self, event: str, **fields: object) -> None:
        if self._has_room(event, fields):
            self._reporter.critical(event, **fields)

    def _has_room(self, event: str, fields: Mapping[str, object]) -> bool:
        kind = event, fields.get("table")
        self._counts[kind] += 1
        if not self._is_counting:
            self._is_counting = True
            # From a thread, too: those that write hints have something to say.
            self._loop.call_soon_threadsafe(self._loop.call_later, 60, self.end_minute)
        return self._counts[kind] <= LINES_A_MINUTE

    def end_minute(self) -> None:
        """Say how many lines were left out since the minute began."""
        self._is_counting = False
        counts, self._counts = self._counts, Counter()
        for (event, table), count in counts.items():
            if count > LINES_A_MINUTE:
                where = {} if table is None else {"table": table}
                self._reporter.warning("lines were left out", about=event, count=count - LINES_A_MINUTE, **where)


def shown(text: str) -> str:
    """Show what a peer has sent, or a text that may quote it: on one line, and not longer than a line is."""
    cut = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)
