"""What to make of a table's files at start: read them all, and check the chain of segments.

Owns: the difference between a torn tail and corruption. Must not change a file: what is to be done it leaves to a
Settlement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, Protocol

from kvsd.errors import CorruptLog
from kvsd.table.entry import HEADER, HEADER_BYTES, Header, Record, header_is_intact
from kvsd.table.hint import Hint
from kvsd.table.index import Block, position_of
from kvsd.table.medium import Medium
from kvsd.table.progress import RecoveryProgress
from kvsd.table.segment import SEGMENT_HEADER_BYTES, Segment, parse_name
from kvsd.table.segment_reader import SegmentReader
from kvsd.table.settlement import Settlement

_WINDOW_BYTES: Final = 4 << 20
_POSITION: Final = 3  # in a Record


class Sink(Protocol):
    """Takes the log's entries in their order, by either call."""

    def replay(self, records: Iterable[Record]) -> None: ...
    def load(self, block: Block) -> None: ...


def recover(
    medium: Medium, directory: Path, sink: Sink, progress: RecoveryProgress, *, loose: bool, now_us: Callable[[], int]
) -> tuple[Settlement, list[Path]]:
    """Give all intact entries to `sink`; returns the job that settles the tail and creates a new active segment,
    and the segments that want a hint once it has run.

    A segment with a SEAL is taken from its hint where that can be believed; then damage to an entry is found by whoever
    reads it. Else every byte is checked. Raises CorruptLog or UnsupportedFormat, with every file as it was, or OSError
    from the disk, or RecoveryAbandoned.
    """
    medium.make_directory(directory)
    segments, superseded = _without_superseded(_open_segments(medium, directory, progress))
    try:
        covered_through = 0
        empty: set[int] = set()
        unhinted: list[Path] = []
        reader: SegmentReader | None = None
        progress.bytes_total = sum(medium.size(segment.fd) for segment in segments)
        for segment in segments:
            _check_continues(segment, covered_through)
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
    )
    return settlement, unhinted


def _read(segment: Segment, sink: Sink, progress: RecoveryProgress, *, is_last: bool) -> tuple[SegmentReader, bool]:
    """Give the entries of `segment` to `sink`; whether its hint had them all."""
    before = progress.bytes_done

    def reached(offset: int) -> None:
        progress.check()
        progress.bytes_done = before + offset

    loaded_to = 0
    hint = Hint.open(segment)
    if hint is not None:
        with closing(hint):
            reader = SegmentReader(segment, whole_batches=False)
            if reader.accept(hint.seal):
                for block in hint:
                    sink.load(block)
                    loaded_to = position_of(block.locations[-1])
                    reached(loaded_to - segment.header.position(0))
                if hint.is_whole:
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
            segments.append(segment)
            if segment.header.table_id != segments[0].header.table_id:
                raise CorruptLog(f"{segment.path}: the segment belongs to another table", str(segment.path), 0)
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    return segments


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


def _check_continues(segment: Segment, covered_through: int) -> None:
    """Raises CorruptLog where entries between `covered_through` and this segment are missing."""
    first = segment.header.covered_from
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
