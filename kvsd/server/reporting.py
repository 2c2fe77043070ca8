"""The server's log: one structlog logger, for people on a terminal and JSON lines elsewhere.

Owns: levels, format and destination. Nothing that holds a value, a password or key material is ever passed to it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from kvsd.config import LogFormat, LogLevel

_LEVELS: Final = logging.getLevelNamesMapping()


class _Lines:
    """Writes to `stream` if there is one. The server goes on when nobody reads its log any more, or a disk is full."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def line(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.write(text + "\n")
                self._stream.flush()

    debug = info = warning = error = critical = line


def make_reporter(level: LogLevel, log_format: LogFormat) -> FilteringBoundLogger:
    """A logger to stderr. It touches no global configuration: an embedding program keeps its own."""
    stderr: TextIO | None = sys.stderr  # None where the process was started without one
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
    return logger
