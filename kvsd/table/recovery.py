"""What to make of a table's files at start: check the chain of segments and settle the last one.

Owns: the difference between a torn tail and corruption, and how a tail is settled. Must not serve or append anything.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from kvsd.errors import CorruptLog
from kvsd.table.entry import HEADER, HEADER_BYTES, SEQ_GAP, Header, encode_seal, header_is_intact
from kvsd.table.medium import Medium
from kvsd.table.scan import Record, Scan
from kvsd.table.segment import (
    SEGMENT_HEADER_BYTES,
    TEMPORARY,
    Segment,
    SegmentHeader,
    parse_name,
)
from kvsd.table.work import RESERVE_NAME

_COPY_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the log goes on from."""

    segments: list[Segment]
    """The last one is new and empty."""
    last_timestamp_us: int
    torn: bool
    """An interrupted append was cut off and set aside."""


def recover(
    medium: Medium, directory: Path, *, loose: bool, now_us: Callable[[], int]
) -> Generator[Record, None, Recovered]:
    """Yield all intact entries in order, settle the tail, create a new active segment.

    Raises CorruptLog or UnsupportedFormat, with every file as it was, or OSError from the disk.
    """
    medium.make_directory(directory)
    segments = _open_segments(medium, directory)
    empty: set[int] = set()
    try:
        covered_through = 0
        scan: Scan | None = None
        for segment in segments:
            _check_continues(segment, covered_through)
            scan = Scan(segment, whole_batches=segment is segments[-1])
            yield from scan
            if not scan.count:
                empty.add(segment.header.segment_id)
            if segment is not segments[-1]:
                _check_sealed(scan)
                covered_through = scan.covered_through
        if scan is None:
            # Only now, and not where the folders are created: a run may have died in between.
            medium.sync_parents(directory)
            timestamp_us, torn = now_us(), False
            header = SegmentHeader.first(timestamp_us, loose=loose)
        else:
            timestamp_us = max(now_us(), scan.last_timestamp_us + 1)
            torn = scan.sealed_at is None and _has_torn_tail(scan)
            header = _settle(scan, segments, torn=torn, timestamp_us=timestamp_us, loose=loose)
        # Not filled: a full disk must not keep a table from being read.
        segments.append(Segment.create(medium, directory, header, fill_bytes=0))
        # The numbers of empty segments live on in their successors' headers.
        for segment in [segment for segment in segments if segment.header.segment_id in empty]:
            medium.unlink(segment.path)
            segments.remove(segment)
            segment.close()
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    return Recovered(segments, timestamp_us, torn)


def _settle(scan: Scan, segments: list[Segment], *, torn: bool, timestamp_us: int, loose: bool) -> SegmentHeader:
    """Seal the last segment if its own run did not; returns the header of its successor."""
    old, last_seq = scan.segment.header, scan.end_seq
    lost_numbers = scan.lost_numbers
    if scan.sealed_at is not None:
        _check_sealed(scan)
    _remove_leftovers(scan.segment.medium, scan.segment.path.parent)
    if scan.sealed_at is not None:
        _write_seal_again(scan, scan.sealed_at)
    else:
        # The SEAL itself takes the gap, so that a crash before the successor's creation does not forget it.
        lost_numbers = old.loose
        last_seq += 1 + SEQ_GAP * lost_numbers
        seal = encode_seal(
            mark=old.mark,
            crc_seed=old.crc_seed,
            offset=scan.accepted_to,
            count=scan.count,
            last_seq=scan.last_seq,
            digest=scan.digest,
            seq=last_seq,
            timestamp_us=timestamp_us,
        )
        segments[-1] = _replace_by_sealed_copy(scan, seal, keep_old=torn)
        scan.segment.close()
    covered_through = last_seq if scan.count else old.covered_from - 1
    successor = old.successor(covered_through, last_seq, timestamp_us, loose=loose)
    return replace(successor, epoch=old.epoch + lost_numbers)


def _write_seal_again(scan: Scan, at: int) -> None:
    """The SEAL may be in the page cache alone, since the sync behind it has failed or was never reached. Were it lost
    once there is a successor, that would be corruption."""
    medium, fd = scan.segment.medium, scan.segment.fd
    medium.write(fd, [medium.read(fd, scan.accepted_to - at, at)], at)
    medium.truncate(fd, scan.accepted_to)
    medium.sync(fd)


def _open_segments(medium: Medium, directory: Path) -> list[Segment]:
    """All segments of the table in order.

    Raises CorruptLog where a file is no segment or belongs to another table.
    """
    segments: list[Segment] = []
    try:
        for name in filter(parse_name, medium.names(directory)):
            segment = Segment.open(medium, directory / name)
            segments.append(segment)
            if segment.header.table_id != segments[0].header.table_id:
                raise CorruptLog(f"{segment.path}: the segment belongs to another table", str(segment.path), 0)
    except BaseException:
        for segment in segments:
            segment.close()
        raise
    return segments


def _remove_leftovers(medium: Medium, directory: Path) -> None:
    """What interrupted creations left; and the reserve, whose room a full disk needs now."""
    for name in medium.names(directory):
        is_temporary = name.endswith(TEMPORARY) and parse_name(name.removesuffix(TEMPORARY))
        if is_temporary or name == RESERVE_NAME:
            medium.unlink(directory / name)


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


def _check_sealed(scan: Scan) -> None:
    """Raises CorruptLog where a segment that has a successor is not intact to its very end."""
    path = scan.segment.path
    if scan.sealed_at is None:
        raise _corrupt(path, scan.accepted_to, scan.ended_because)
    if _first_nonzero(scan.segment, scan.accepted_to, scan.size_bytes) is not None:
        raise _corrupt(path, scan.accepted_to, "data follows the SEAL")


def _has_torn_tail(scan: Scan) -> bool:
    """Whether the unsealed segment of `scan` holds bytes behind its intact entries.

    Raises CorruptLog where an intact header behind the damage says that the damaged place had been synced: then it
    was acknowledged, and is no interrupted append.
    """
    segment, damage = scan.segment, scan.accepted_to
    if _first_nonzero(segment, damage, scan.size_bytes) is None:
        return False
    mark = segment.header.mark.to_bytes(4, "big")
    for base, data in _windows(segment, damage, scan.size_bytes, overlap=HEADER_BYTES - 1):
        at = data.find(mark)
        while at >= 0:
            if header_is_intact(data, at, segment.header.mark, segment.crc_seed ^ (base + at)):
                header = Header._make(HEADER.unpack_from(data, at))
                if header.synced_to > damage:
                    raise _corrupt(
                        segment.path,
                        damage,
                        f"{scan.ended_because}, yet synced entries follow at {base + at}",
                    )
            at = data.find(mark, at + 1)
    return True


def _replace_by_sealed_copy(scan: Scan, seal: bytes, *, keep_old: bool) -> Segment:
    """Put a sealed copy of the accepted prefix in the place of the unsealed segment of `scan`.

    A copy, since pages that a failed sync marked clean may never have reached the medium. With `keep_old`
    the old file stays beside it, as NAME.torn-N. A crash at any step leaves the old file or the new one.
    """
    segment = scan.segment
    medium, path = segment.medium, segment.path
    temporary = path.with_name(path.name + TEMPORARY)
    fd = medium.open(temporary, create=True)
    try:
        offset = 0
        while offset < scan.accepted_to:
            data = medium.read(segment.fd, min(_COPY_BYTES, scan.accepted_to - offset), offset)
            medium.write(fd, [data], offset)
            offset += len(data)
        medium.write(fd, [seal], offset)
        medium.sync(fd)
    finally:
        medium.close(fd)
    if keep_old:
        _set_aside(medium, path)
        medium.sync_directory(path.parent)
    medium.rename(temporary, path)
    medium.sync_directory(path.parent)
    return Segment.open(medium, path)


def _corrupt(path: Path, offset: int, why: str) -> CorruptLog:
    return CorruptLog(
        f"{path}: damaged at offset {offset}: {why}. Nothing was changed; restore the file from a backup",
        str(path),
        offset,
    )


def _set_aside(medium: Medium, path: Path) -> None:
    taken = set(medium.names(path.parent))
    number = next(n for n in range(1, len(taken) + 2) if f"{path.name}.torn-{n}" not in taken)
    medium.link(path, path.with_name(f"{path.name}.torn-{number}"))


def _windows(segment: Segment, start: int, end: int, *, overlap: int = 0) -> Iterator[tuple[int, bytes]]:
    while start < end:
        data = segment.medium.read(segment.fd, min(_COPY_BYTES + overlap, end - start), start)
        if not data:
            return
        yield start, data
        start += _COPY_BYTES


def _first_nonzero(segment: Segment, start: int, end: int) -> int | None:
    start = max(start, SEGMENT_HEADER_BYTES)
    for base, data in _windows(segment, start, end):
        rest = data.lstrip(b"\0")
        if rest:
            return base + len(data) - len(rest)
    return None
