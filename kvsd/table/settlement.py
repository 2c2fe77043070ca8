"""The last segment of a run that is over: how it is closed for good, and another begun behind it.

Owns: every change that a start makes to a table's files. Must not judge what is intact; recovery has done that.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from kvsd.table.entry import SEQ_GAP, encode_seal
from kvsd.table.medium import Medium
from kvsd.table.scan import Scan
from kvsd.table.segment import TEMPORARY, Segment, SegmentHeader, parse_name
from kvsd.table.work import RESERVE_NAME

_COPY_BYTES: Final = 4 << 20


class Settlement:
    """What recovery has found, and the job that makes of it a log that can be appended to.

    After a full disk `run` may be tried again; what was found can be read meanwhile.
    """

    may_have_lost_committed: Final = False

    def __init__(self, medium: Medium, directory: Path, segments: list[Segment], *, loose: bool) -> None:
        """For a new table; `settle` says what to do about the last of `segments`."""
        self.medium = medium
        self.directory = directory
        self.segments = segments
        """After `run`, what the log goes on from: the last one is new and empty."""
        self.torn = False
        """An interrupted append is cut off, and set aside."""
        self._loose = loose
        self._scan: Scan | None = None
        self._empty: set[int] = set()
        self._timestamp_us = 0
        self._successor: SegmentHeader | None = None
