"""Knowledge of a log without reading its segments.

Owns: what a catalog remembers of a log, and the names that only a log leaves in a folder. Must not know where that is
remembered, nor judge what is in the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kvsd.table import hint
from kvsd.table.segment_header import parse_name
from kvsd.table.work import RESERVE_NAME

DROPPED_NAME: Final = "dropped"
"""The file that marks the folder of a table that was dropped; in that of a table it means nothing, and is removed."""

TORN: Final = ".torn-"
"""The mark in the name of a segment as an interrupted append has left it, before its number."""


class KnownLog(NamedTuple):
    """A log as it was when it was last closed, or begun: what is found later must be it, and reach as far."""

    table_id: bytes
    """Empty: there is a log, and whose is not known."""
    last_seq: int


def traces(names: Iterable[str]) -> list[str]:
    """The files of a folder that show that there is a log, or was one."""
    return [
        name
        for name in sorted(names)
        if parse_name(name.partition(TORN)[0]) or name.endswith(hint.SUFFIX) or name == RESERVE_NAME
    ]
