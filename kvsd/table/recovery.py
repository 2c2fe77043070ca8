"""What to make of a table's files at start: read them all, and check the chain of segments.

Owns: the difference between a torn tail and corruption. Must not change a file: what is to be done it leaves to a
Settlement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain, pairwise
from pathlib import Path
from typing import Final, Protocol

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.entry import HEADER, HEADER_BYTES, SEAL_BYTES, Header, Record, header_is_intact
from kvsd.table.hint import Hint, HintHeader
from kvsd.table.index import Block, position_of
from kvsd.table.known import KnownLog, traces
from kvsd.table.medium import Medium
from kvsd.table.progress import RecoveryProgress
from kvsd.table.segment import Segment
from kvsd.table.segment_header import SEGMENT_HEADER_BYTES, parse_name
from kvsd.table.segment_reader import SegmentReader
from kvsd.table.settlement import Settlement

_WINDOW_BYTES: Final = 4 << 20
_POSITION: Final = 3  # in a Record
_TAKE_IT: Final = "stop the server and run `kvsd restored` to go on with what is there"


class Sink(Protocol):
    """Takes the log's entries in their order, by either call."""

    def replay(self, records: Iterable[Record]) -> None: ...
    def load(self, block: Block) -> None: ...


def recover(
    medium: Medium,
    directory: Path,
    sink: Sink,
    progress: RecoveryProgress,
    *,
    loose: bool,
    now_us: Callable[[], int],
    known: KnownLog | None = None,
    restored: bool = False,
) -> tuple[Settlement, list[Path]]:
    """Give all intact entries to `sink`; returns the job that settles the tail and creates a new active segment,
    and the segments that want a hint once it has run.

    A segment with a SEAL is taken from its hint where that can be believed; then damage to an entry is found by whoever
    reads it. Else every byte is checked. Raises CorruptLog or UnsupportedFormat, with every file as it was, or OSError
    from the disk, or RecoveryAbandoned; `directory` is held from here on in any case. A log that is not the `known`
    one, or that once reached further than it does, is refused, too, but not where it is said to be `restored`: then no
    number that may have been seen is given again.
    """
    medium.make_directory(directory)
    medium.hold_folder(directory)
    segments, superseded = _without_superseded(_open_segments(medium, directory, progress))
    if not segments:
        _check_new(directory, medium.names(directory), known)
    try:
        if segments and known is not None and not restored:
            _check_table(segments[0], known)
        covered_through = 0
        empty: set[int] = set()
        unhinted: list[Path] = []
        reader: SegmentReader | None = None
        progress.bytes_total = sum(segment.size_bytes for segment in segments)
        for before, segment in pairwise(chain([None], _each_open(segments))):
            assert segment is not None
            _check_continues(segment, before, covered_through)
            reader, is_hinted = _read(segment, sink, progress, is_last=segment is segments[-1])
            if reader.is_empty:
                empty.add(segment.header.segment_id)
            elif reader.count and not is_hinted:
                unhinted.append(segment.path)
            # A compaction's output had its SEAL before it had its name: it has no torn tail.
            if segment is not segments[-1] or reader.sealed_at is not None or segment.header.generation:
                _check_sealed(reader, progress)
                covered_through = reader.covered_through
        torn = reader is not None and reader.sealed_at is None and _has_torn_tail(reader, progress)
        if reader is not None and not restored:
            _check_reaches(medium, directory, reader, known)
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    timestamp_us = now_us() if reader is None else max(now_us(), reader.last_timestamp_us + 1)
    settlement = Settlement(
        medium,
        directory,
        segments,
        reader,
        superseded=superseded,
        empty=empty,
        torn=torn,
        timestamp_us=timestamp_us,
        loose=loose,
        progress=progress,
        # The numbers of the copy that was replaced are not all known: so a gap is left behind those that are.
        seen_seq=(known.last_seq if known is not None else 0) if restored else None,
    )
    return settlement, unhinted


def _read(segment: Segment, sink: Sink, progress: RecoveryProgress, *, is_last: bool) -> tuple[SegmentReader, bool]:
    """Give the entries of `segment` to `sink`; whether its hint had them all."""
    before = progress.bytes_done

    def reached(offset: int) -> None:
        progress.check()
        progress.bytes_done = before + offset

    loaded_to = 0
    found = Hint.open(segment)
    if found is not None:
        with closing(found):
            reader = SegmentReader(segment, whole_batches=False)
            if reader.accept(found.seal):
                for block in found:
                    sink.load(block)
                    loaded_to = position_of(block.locations[-1])
                    reached(loaded_to - segment.header.position(0))
                if found.is_whole:
                    reached(reader.size_bytes)
                    return reader, True
    reader = SegmentReader(segment, whole_batches=is_last, reached=reached)
    # What a damaged hint had before its damage is loaded: once more, and it would count as replaced.
    sink.replay(reader if not loaded_to else (record for record in reader if record[_POSITION] > loaded_to))
    reached(reader.size_bytes)
    return reader, False


def _open_segments(medium: Medium, directory: Path, progress: RecoveryProgress) -> list[Segment]:
    """All segments of the table in order.

    Raises CorruptLog where a file is no segment or belongs to another table.
    """
    segments: list[Segment] = []
    try:
        for name in filter(parse_name, medium.names(directory)):
            progress.check()
            segment = Segment.open(medium, directory / name)
            segment.park()  # there may be more than descriptors
            segments.append(segment)
            if segment.header.table_id != segments[0].header.table_id:
                raise CorruptLog(f"{segment.path}: the segment belongs to another table", str(segment.path), 0)
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    return segments


def _each_open(segments: list[Segment]) -> Iterator[Segment]:
    """One after the other; the last stays open, for whoever settles it."""
    for segment in segments[:-1]:
        with segment.opened():
            yield segment
    for segment in segments[-1:]:
        segment.reopen()
        yield segment


def _check_new(directory: Path, names: list[str], known: KnownLog | None) -> None:
    """Raises CorruptLog where a folder without segments has had some: what is missing must not be begun anew."""
    found = traces(names)
    if found or known is not None:
        because = f"{found[0]} is there" if found else "the catalog knows its log"
        raise CorruptLog(
            f"{directory}: all segments of the table are missing, yet {because}. Nothing was changed; restore them "
            "from a backup",
            str(directory),
            0,
        )


def _check_table(first: Segment, known: KnownLog) -> None:
    """Raises CorruptLog where the files are those of another table."""
    if known.table_id not in (b"", first.header.table_id):
        raise CorruptLog(
            f"{first.path}: the log belongs to another table, or to an older one of this name. Nothing was changed; "
            f"put the table's own files back, or {_TAKE_IT}",
            str(first.path),
            0,
        )


def _check_reaches(medium: Medium, directory: Path, last: SegmentReader, known: KnownLog | None) -> None:
    """Raises CorruptLog where a hint, or what is known, proves that the log went on behind its `last` segment's end.

    Hints are written after the SEAL that they name was synced: so none can be ahead of the log by a crash. All
    segments before the last are intact to their SEALs, so their hints prove nothing new.
    """
    path, size, end_seq = last.segment.path, last.size_bytes, last.end_seq
    names = medium.names(directory)
    hints = hint.leftovers(names)
    if hint.path_of(path).name in names:
        hints.append(hint.path_of(path).name)
    for name in hints:
        found = HintHeader.read(medium, directory / name)
        if found is None or not found.is_of_table(last.segment.header) or found.seal.last_seq <= end_seq:
            continue
        if found.is_of(last.segment.header):
            what = (
                f"it has {size} bytes and is intact to {last.accepted_to}, yet {name} says that it was closed with "
                f"{found.seal.offset + SEAL_BYTES} bytes"
            )
        else:
            what = (
                f"the log ends here at number {end_seq}, yet {name} is of a segment that went to {found.seal.last_seq}"
            )
        raise CorruptLog(
            f"{path}: a part of the log is missing: {what}. Nothing was changed; restore it from a backup, "
            f"or {_TAKE_IT}",
            str(path),
            last.accepted_to,
        )
    if known is not None and end_seq < known.last_seq:
        raise CorruptLog(
            f"{path}: a part of the log is missing, or this is an older copy: it has {size} bytes and ends at number "
            f"{end_seq}, but the log had reached {known.last_seq} when it was last closed. Nothing was changed; "
            f"restore what is missing, or {_TAKE_IT}",
            str(path),
            last.accepted_to,
        )


def _without_superseded(segments: list[Segment]) -> tuple[list[Segment], list[Path]]:
    """The segments that count, and the files whose entries a compaction has put elsewhere; these are closed.

    A compaction takes whole segments and gives its output their first id, and a higher generation than theirs: so
    its inputs are those behind it that start within its range. Whatever fits in no other way is left to the check of
    the chain.
    """
    kept: list[Segment] = []
    superseded: list[Path] = []
    generation = covered_to = 0
    for segment in sorted(segments, key=lambda segment: (segment.header.segment_id, -segment.header.generation)):
        header = segment.header
        if header.covered_from <= covered_to and header.generation < generation:
            superseded.append(segment.path)
            segment.close()
            continue
        kept.append(segment)
        if header.covered_to:
            generation, covered_to = header.generation, header.covered_to
    return kept, superseded


def _check_continues(segment: Segment, before: Segment | None, covered_through: int) -> None:
    """Raises CorruptLog where this segment does not go on where the one before it has ended, at `covered_through`."""
    first = segment.header.covered_from
    if first <= covered_through and before is not None and before.header.segment_id == segment.header.segment_id:
        raise CorruptLog(
            f"{segment.path}: {before.path.name} is the same segment; move the one that is not the table's away",
            str(segment.path),
            0,
        )
    if before is not None and segment.header.epoch < before.header.epoch:
        raise CorruptLog(
            f"{segment.path}: is older than {before.path.name}, which it follows; restore it from the same backup",
            str(segment.path),
            0,
        )
    if first != covered_through + 1:
        raise CorruptLog(
            f"{segment.path}: starts at seq {first}, but the segments before it end at {covered_through}; "
            "a segment is missing: restore it from a backup",
            str(segment.path),
            0,
        )


def _check_sealed(reader: SegmentReader, progress: RecoveryProgress) -> None:
    """Raises CorruptLog where a segment that has a successor is not intact to its very end."""
    path = reader.segment.path
    if reader.sealed_at is None:
        raise _corrupt(path, reader.accepted_to, reader.ended_because)
    if _first_nonzero(reader.segment, reader.accepted_to, reader.size_bytes, progress) is not None:
        raise _corrupt(path, reader.accepted_to, "data follows the SEAL")


def _has_torn_tail(reader: SegmentReader, progress: RecoveryProgress) -> bool:
    """Whether the unsealed segment of `reader` holds bytes behind its intact entries.

    Raises CorruptLog where an intact header behind the damage says that the damaged place had been synced: then it
    was acknowledged, and is no interrupted append.
    """
    segment, damage = reader.segment, reader.accepted_to
    if _first_nonzero(segment, damage, reader.size_bytes, progress) is None:
        return False
    mark = segment.header.mark.to_bytes(4, "big")
    for base, data in _windows(segment, damage, reader.size_bytes, progress, overlap=HEADER_BYTES - 1):
        at = data.find(mark)
        while at >= 0:
            if header_is_intact(data, at, segment.header.mark, segment.crc_seed ^ (base + at)):
                header = Header._make(HEADER.unpack_from(data, at))
                if header.synced_to > damage:
                    raise _corrupt(
                        segment.path,
                        damage,
                        f"{reader.ended_because}, yet synced entries follow at {base + at}",
                    )
            at = data.find(mark, at + 1)
    return True


def _corrupt(path: Path, offset: int, why: str) -> CorruptLog:
    return CorruptLog(
        f"{path}: damaged at offset {offset}: {why}. Nothing was changed; restore the file from a backup",
        str(path),
        offset,
    )


def _windows(
    segment: Segment, start: int, end: int, progress: RecoveryProgress, *, overlap: int = 0
) -> Iterator[tuple[int, bytes]]:
    while start < end:
        progress.check()
        data = segment.medium.read(segment.fd, min(_WINDOW_BYTES + overlap, end - start), start)
        if not data:
            return
        yield start, data
        start += _WINDOW_BYTES


def _first_nonzero(segment: Segment, start: int, end: int, progress: RecoveryProgress) -> int | None:
    start = max(start, SEGMENT_HEADER_BYTES)
    for base, data in _windows(segment, start, end, progress):
        rest = data.lstrip(b"\0")
        if rest:
            return base + len(data) - len(rest)
    return None
