"""The server's log: one structlog logger, for people on a terminal and JSON lines elsewhere.

Owns: levels, format and destination. Nothing that holds a value, a password or key material is ever passed to it.
"""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from kvsd.config import LogFormat, LogLevel

_LEVELS: Final = logging.getLevelNamesMapping()


def make_reporter(level: LogLevel, log_format: LogFormat) -> FilteringBoundLogger:
    """A logger to stderr. It touches no global configuration: an embedding program keeps its own."""
    on_terminal = sys.stderr.isatty()
    as_json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not on_terminal)
    processors: list[Processor] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso")]
    if as_json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=on_terminal))
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level.upper()]),
    )
    return logger
