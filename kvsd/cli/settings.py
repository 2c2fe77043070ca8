"""The settings that a command goes by.

Owns: loading them, and telling what was ignored on the way. Must not know what a command does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kvsd.cli.output import Output
from kvsd.config import Config, load


def load_settings(
    config: Path | None,
    output: Output,
    *,
    flags: Mapping[str, tuple[str, object]] | None = None,
    file_required: bool = False,
) -> Config:
    """As `kvsd.config.load`, with its warnings on stderr. Raises ConfigError as that does."""
    settings = load(config, flags=flags, file_required=file_required)
    for warning in settings.warnings:
        output.warning(warning)
    return settings
