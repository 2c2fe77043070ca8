"""How the log of a run that is over is closed for good, and begun anew.

Owns: every change that a start makes to a table's files. Must not judge what is intact: recovery has done that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from kvsd.table import hint
from kvsd.table.entry import SEQ_GAP, encode_seal
from kvsd.table.known import DROPPED_NAME, TORN
from kvsd.table.limits import limit_of
from kvsd.table.medium import Medium
from kvsd.table.progress import RecoveryProgress
from kvsd.table.segment import Segment, seal
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, TEMPORARY, SegmentHeader, parse_name
from kvsd.table.segment_reader import SegmentReader
from kvsd.table.work import RESERVE_NAME

_COPY_BYTES: Final = 4 << 20


class Settlement:
    """Seals the last of the segments that recovery has found, and creates its successor.

    `run` may be tried again after a full disk. Until it succeeds, the segments can be read as they were found.
    """

    may_have_lost_committed: Final = False
    is_cut: Final = True
    """As of a Resume: nothing was written that was not committed."""

    def __init__(
        self,
        medium: Medium,
        directory: Path,
        segments: list[Segment],
        last: SegmentReader | None,
        *,
        superseded: Sequence[Path] = (),
        empty: Collection[int],
        torn: bool,
        timestamp_us: int,
        loose: bool,
        progress: RecoveryProgress,
        seen_seq: int | None = None,
    ) -> None:
        """`last` is the reader that has read the last segment, None in a new table; `empty` are ids without entries;
        `superseded` are files that a compaction has replaced; with `seen_seq`, which may have been seen beside all
        numbers of the log, a gap is left."""
        self.medium = medium
        self.directory = directory
        self.segments = segments
        """After `run` the last one is new and empty, and the last one that was found may be another object."""
        self.begins = last is None
        """There was no log."""
        self.torn = torn
        """Bytes of an interrupted append are cut off, and set aside."""
        self._last = last
        self._superseded = list(superseded)
        self._empty = set(empty)
        self._seen_seq = seen_seq
        self._timestamp_us = timestamp_us
        self._loose = loose
        self._progress = progress
        self._successor: SegmentHeader | None = None

    @property
    def last_seq(self) -> int:
        """The highest number that was found; 0 in a new table."""
        return 0 if self._last is None else self._last.end_seq

    def run(self) -> None:
        """Raises OSError, CorruptLog where the disk does not give back what was just written, or RecoveryAbandoned."""
        if self._successor is None:
            self._remove_leftovers()
            self._successor = self._begin() if self._last is None else self._settle(self._last)
        if not self.segments or self.segments[-1].header is not self._successor:
            # Without zeros: the less room a start needs, the better.
            self.segments.append(Segment.create(self.medium, self.directory, self._successor, fill_bytes=0))
        # The numbers of empty segments live on in their successors' headers.
        for segment in [segment for segment in self.segments if segment.header.segment_id in self._empty]:
            self.medium.unlink(segment.path)
            self.segments.remove(segment)
            segment.close()

    def keep(self) -> None:
        """Where there is no room to settle: make sure that what is read meanwhile is not lost either.

        Written again in its place, as a copy would be, for the sake of pages that a failed sync marked clean. Where
        there is no room even for that, as on file systems that copy on write, what was acknowledged is as safe as it
        was, and reads go on.
        """
        if self._last is not None:
            fd = self._last.segment.fd
            try:
                _copy(self.medium, fd, fd, self._last.accepted_to, self._progress)
                self.medium.sync(fd)
            except OSError as error:
                if limit_of(error) is None:
                    raise

    def _remove_leftovers(self) -> None:
        """Remove what interrupted creations left, the mark of a drop that was taken back, and the reserve, whose room a
        full disk needs now."""
        names = self.medium.names(self.directory)
        leftovers = [
            name
            for name in names
            if name in (RESERVE_NAME, DROPPED_NAME)
            or (name.endswith(TEMPORARY) and parse_name(name.removesuffix(TEMPORARY)))
        ]
        for name in leftovers + hint.leftovers(names):
            # What somebody else has put there, or keeps from being removed, is not in the way.
            with contextlib.suppress(IsADirectoryError, PermissionError):
                self.medium.unlink(self.directory / name)

        if self._superseded:
            # The name of what has replaced them may not be on the medium yet.
            self.medium.sync_directory(self.directory)
            while self._superseded:
                hint.discard(self.medium, self._superseded[-1])
                self.medium.unlink(self._superseded[-1])
                self._superseded.pop()
            self.medium.sync_directory(self.directory)

    def _begin(self) -> SegmentHeader:
        # Only now, and not where the folders are created: a run may have died in between.
        self.medium.sync_parents(self.directory)
        return SegmentHeader.first(self._timestamp_us, loose=self._loose)

    def _settle(self, last: SegmentReader) -> SegmentHeader:
        """Seal the last segment if its own run did not; returns the header of its successor."""
        old, last_seq = last.segment.header, last.end_seq
        is_unused = old.segment_id == 1 and last.size_bytes == SEGMENT_HEADER_BYTES
        if is_unused and not old.loose and not self._loose and self._seen_seq is None:
            # As `begin_log` has left it: nobody has ever appended to it, nor has a sync of its entries failed.
            self.medium.write(last.segment.fd, [old.encode()], 0)
            self.medium.sync(last.segment.fd)
            self._empty.discard(old.segment_id)
            return old
        lost_numbers = last.lost_numbers
        if last.sealed_at is not None:
            _write_seal_again(last, last.sealed_at)
        else:
            # The SEAL itself takes the gap, so that a crash before the successor's creation does not forget it.
            lost_numbers = old.loose
            last_seq += 1 + SEQ_GAP * lost_numbers
            seal_entry = encode_seal(
                mark=old.mark,
                crc_seed=old.crc_seed,
                offset=last.accepted_to,
                count=last.count,
                last_seq=last.last_seq,
                digest=last.digest,
                seq=last_seq,
                timestamp_us=self._timestamp_us,
            )
            self.segments[-1] = _replace_by_sealed_copy(last, seal_entry, self._progress, keep_old=self.torn)
        covered_through = last_seq if last.count else old.covered_from - 1
        if self._seen_seq is not None:
            lost_numbers = True
            last_seq = max(last_seq, self._seen_seq) + SEQ_GAP
        successor = old.successor(covered_through, last_seq, self._timestamp_us, loose=self._loose)
        return replace(successor, epoch=old.epoch + lost_numbers)


def begin_log(medium: Medium, directory: Path, timestamp_us: int) -> bytes:
    """Create the first segment of a log in a folder that is there and holds none; returns the table's id."""
    medium.sync_parents(directory)
    header = SegmentHeader.first(timestamp_us, loose=False)
    Segment.create(medium, directory, header, fill_bytes=0).close()
    return header.table_id


def _write_seal_again(reader: SegmentReader, at: int) -> None:
    """The SEAL may be in the page cache alone, since the sync behind it has failed or was never reached. Were it lost
    once there is a successor, that would be corruption."""
    medium, fd = reader.segment.medium, reader.segment.fd
    seal(medium, fd, at, medium.read(fd, reader.accepted_to - at, at))
    reader.segment.size_bytes = reader.accepted_to


def _replace_by_sealed_copy(
    reader: SegmentReader, seal_entry: bytes, progress: RecoveryProgress, *, keep_old: bool
) -> Segment:
    """Put a sealed copy of the accepted prefix in the place of the unsealed segment of `reader`, which stays open.

    A copy, since pages that a failed sync marked clean may never have reached the medium. With `keep_old`
    the old file stays beside it, as NAME.torn-N. A crash at any step leaves the old file or the new one.
    """
    segment = reader.segment
    medium, path = segment.medium, segment.path
    temporary = path.with_name(path.name + TEMPORARY)
    fd = medium.open(temporary, create=True)
    try:
        _copy(medium, segment.fd, fd, reader.accepted_to, progress)
        medium.write(fd, [seal_entry], reader.accepted_to)
        medium.sync(fd)
    finally:
        medium.close(fd)
    segment.check(0)  # by now, it may be something else that would be replaced
    if keep_old:
        _set_aside(medium, path)
        medium.sync_directory(path.parent)
    medium.rename(temporary, path)
    medium.sync_directory(path.parent)
    return Segment.open(medium, path)


def _copy(medium: Medium, source: int, target: int, size: int, progress: RecoveryProgress) -> None:
    for offset in range(0, size, _COPY_BYTES):
        progress.check()
        medium.write(target, [medium.read(source, min(_COPY_BYTES, size - offset), offset)], offset)


def _set_aside(medium: Medium, path: Path) -> None:
    taken = set(medium.names(path.parent))
    number = next(n for n in range(1, len(taken) + 2) if f"{path.name}{TORN}{n}" not in taken)
    medium.link(path, path.with_name(f"{path.name}{TORN}{number}"))
