"""One compaction: a run of sealed segments is rewritten into one file that holds only what is still wanted.

Owns: the steps of it, and their order. Must not know asyncio, what is wanted (that is retention's), nor when to compact
what: `Compaction.steps` is a generator that touches the Store itself and yields what blocks, as jobs for a worker.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Final, TypeAlias

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.entry import (
    DIGEST_MASK,
    HEADER,
    HEADER_BYTES,
    TOMBSTONES,
    Header,
    encode_header,
    encode_seal,
    header_is_intact,
)
from kvsd.table.medium import Medium
from kvsd.table.retention import Retention
from kvsd.table.scan import Record, Scan
from kvsd.table.segment import (
    MAX_GENERATION,
    OVERHEAD_BYTES,
    SEGMENT_HEADER_BYTES,
    TEMPORARY,
    Segment,
    SegmentHeader,
    new_mark,
    seal,
)
from kvsd.table.store import Store
from kvsd.types import Key

Job: TypeAlias = Callable[[], object]
"""To be run by a worker; it may raise OSError or a StorageError, which is then thrown into the generator."""

SLICE_RECORDS: Final = 128
SLICE_BYTES: Final = 1 << 20
"""What a job takes on: under a millisecond of Python, in which another thread may have to wait for the interpreter."""

_SYNC_BYTES: Final = 8 << 20
"""Synced on the way, so that no sync of a commit has to wait for a whole segment."""
MARGIN_BYTES: Final = 16 << 20
"""What the disk must have beside the output, for the writes that go on meanwhile; but no more than the output again: on
a full disk, what is all but dead must still be able to go."""
_MAX_OFFSET: Final = 0xFFFFFFFF


class Slice:
    """Some consecutive entries of a segment, as checked records and as bytes."""

    __slots__ = ("_base", "data", "position", "records", "size_bytes")

    def __init__(self, segment: Segment, records: list[Record]) -> None:
        self.records = records
        self.position = segment.header.position(0)
        self._base = records[0][3] - self.position
        _, key, _, position, value_bytes, _ = records[-1]
        self.size_bytes = position - self.position + HEADER_BYTES + len(key) + value_bytes - self._base
        self.data = segment.medium.read(segment.fd, self.size_bytes, self._base)
        for _, _, _, position, _, _ in records:
            offset = position - self.position
            # Read once more than the scan did: what is carried over must be what was checked.
            if not header_is_intact(self.data, offset - self._base, segment.header.mark, segment.crc_seed ^ offset):
                raise CorruptLog(f"{segment.path}: damaged at offset {offset}", str(segment.path), offset)

    def at(self, place: int) -> int:
        """Where in `data` the entry of `records[place]` begins."""
        return self.records[place][3] - self.position - self._base

    def header(self, place: int) -> Header:
        return Header._make(HEADER.unpack_from(self.data, self.at(place)))

    def prev_seq(self, place: int) -> int:
        return self.header(place).prev_seq


class Input:
    """A sealed segment that is read and checked slice by slice."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.scan = Scan(segment, whole_batches=False)
        self.slice: Slice | None = None
        """What the last `read` has found; None at the end."""
        self._records = iter(self.scan)

    def read(self) -> None:
        """Raises CorruptLog where the segment is not intact to its SEAL."""
        self.slice = None
        records = list(_some(self._records))
        if records:
            self.slice = Slice(self.segment, records)
        elif self.scan.sealed_at is None:
            path, offset = self.segment.path, self.scan.accepted_to
            raise CorruptLog(f"{path}: damaged at offset {offset}: {self.scan.ended_because}", str(path), offset)


def _some(records: Iterator[Record]) -> Iterator[Record]:
    size = 0
    for count, record in enumerate(records, 1):
        yield record
        size += HEADER_BYTES + len(record[1]) + record[4]
        if count == SLICE_RECORDS or size >= SLICE_BYTES:
            return


class Output:
    """The file that is written; it gets its header last, and its name once all of it is synced."""

    def __init__(self, medium: Medium, directory: Path, header: SegmentHeader) -> None:
        self.medium = medium
        self.path = directory / header.name
        self.header = header
        self.count = 0
        self.segment: Segment | None = None
        """Once `publish` has run."""
        self.is_published = False
        """Whether the file may have its name, on the medium or in memory."""
        self._temporary = directory / (header.name + TEMPORARY)
        self._fd: int | None = None
        self._end = self._synced_to = SEGMENT_HEADER_BYTES
        self._last_seq = 0
        self._digest = 0

    def create(self, expected_bytes: int) -> None:
        """Raises OSError, ENOSPC also where the disk would be left with next to nothing."""
        if self.medium.free_bytes(self.path.parent) < expected_bytes + min(expected_bytes, MARGIN_BYTES):
            raise OSError(errno.ENOSPC, "not enough room to compact", str(self.path.parent))
        self._fd = self.medium.open(self._temporary, create=True)

    def write(self, found: Slice, wanted: Sequence[bool]) -> None:
        """Append the wanted entries of `found`, with headers for their new place."""
        assert self._fd is not None
        data, end = found.data, self._end
        buffers: list[bytes] = []
        mark, crc_seed = self.header.mark, self.header.crc_seed
        for place, is_wanted in enumerate(wanted):
            if not is_wanted:
                continue
            at, old = found.at(place), found.header(place)
            header, header_crc = encode_header(
                mark,
                crc_seed ^ end,
                old.body_crc,
                SEGMENT_HEADER_BYTES,
                old.seq,
                old.timestamp_us,
                old.expires_us,
                old.prev_seq,
                old.kind,
                old.key_bytes,
                old.value_bytes,
                old.batch_index,
                old.batch_count,
            )
            size = HEADER_BYTES + old.key_bytes + old.value_bytes
            buffers += header, data[at + HEADER_BYTES : at + size]
            end += size
            self.count += 1
            self._last_seq = old.seq
            self._digest = self._digest + header_crc & DIGEST_MASK
        if end > _MAX_OFFSET:
            raise OSError(errno.EFBIG, "a segment holds less than 4 GiB", str(self.path))
        if buffers:
            self.medium.write(self._fd, [b"".join(buffers)], self._end)
            self._end = end
        if end - self._synced_to >= _SYNC_BYTES:
            self.medium.sync(self._fd)
            self._synced_to = end

    def publish(self, last: Scan, dropped_through: int) -> None:
        """Seal the file as `last`, the finished scan of the last input, was sealed; all of it is durable then, and so
        is its name."""
        assert self._fd is not None
        medium, directory = self.medium, self.path.parent
        header = replace(self.header, covered_to=last.covered_through, dropped_through=dropped_through)
        medium.write(self._fd, [header.encode()], 0)
        seal_entry = encode_seal(
            mark=header.mark,
            crc_seed=header.crc_seed,
            offset=self._end,
            count=self.count,
            last_seq=self._last_seq,
            digest=self._digest,
            seq=last.last_seq,
            timestamp_us=last.last_timestamp_us,
        )
        seal(medium, self._fd, self._end, seal_entry)
        medium.rename(self._temporary, self.path)
        self.is_published = True
        medium.sync_directory(directory)
        self.segment, self._fd = Segment(medium, self.path, header, self._fd), None

    def discard(self) -> None:
        """What was begun is gone; a file that may have its name already stays, and is as good as its inputs."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            self.medium.close(fd)
            if not self.is_published:
                self.medium.unlink(self._temporary)
        elif self.segment is not None:
            self.segment.close()

    def withdraw(self) -> None:
        """Take away a file that does not give back what was written: its inputs are all there still."""
        self.medium.unlink(self.path)
        self.medium.sync_directory(self.path.parent)


class Compaction:
    """One run: `steps`, and how far they have come. `run` is contiguous and sealed, and stays in the Store's log."""

    def __init__(self, store: Store, run: Sequence[Segment]) -> None:
        self.store = store
        self.run = list(run)
        self.bytes_done = 0
        """Of the inputs."""
        self.reclaimed_bytes = 0
        self.is_syncing_log = False
        """Whether the job under way syncs the log's active segment: its failure is the table's."""
        first, last = self.run[0].header, self.run[-1].header
        header = replace(
            first,
            epoch=last.epoch,
            generation=1 + max(segment.header.generation for segment in self.run),
            mark=new_mark(),
            created_us=store.log.options.now_us(),
            loose=any(segment.header.loose for segment in self.run),
        )
        assert header.generation <= MAX_GENERATION
        self._numbers = {segment.header.number for segment in self.run}
        self._medium = store.log.medium
        self.output = Output(self._medium, store.log.directory, header)

    def steps(self) -> Generator[Job, None, None]:
        """Raises what a job has raised, once what was begun is cleaned up.

        Up to the output's name nothing has changed for anybody; after it, a crash at any step leaves inputs that the
        next start removes.
        """
        for segment in self.run:
            segment.pin()
        try:
            tombstones = yield from self._copy()
            yield from self._relocate()
        finally:
            for segment in self.run:
                segment.unpin()
        index, log = self.store.index, self.store.log
        for start in range(0, len(tombstones), SLICE_RECORDS):
            index.forget(tombstones[start : start + SLICE_RECORDS], self._numbers)
            yield _nothing
        log.retire(self.run)
        for number in self._numbers:
            index.dead_bytes.pop(number, None)
        yield self._remove_inputs

    def _copy(self) -> Generator[Job, None, list[Key]]:
        """Up to the output's name; returns the keys of the tombstones that were dropped."""
        store, output = self.store, self.output
        retention = Retention(store.index, nothing_older=self._nothing_older())
        dropped_through = max(segment.header.dropped_through for segment in self.run)
        tombstones: list[Key] = []
        try:
            expected = self._expected_bytes()
            yield lambda: output.create(expected)
            scan: Scan | None = None
            for segment in self.run:
                source = Input(segment)
                yield source.read
                while (found := source.slice) is not None:
                    wanted = retention.wanted(found.records, found.prev_seq)
                    for (kind, key, seq, *_), is_wanted in zip(found.records, wanted, strict=True):
                        if not is_wanted:
                            dropped_through = max(dropped_through, seq)
                            if kind in TOMBSTONES:
                                tombstones.append(key)
                    self.bytes_done += found.size_bytes
                    yield _both(output, found, wanted, source)
                scan = source.scan
            assert scan is not None
            # An old value that was durable goes in favour of a newer one: so that must be durable now, too.
            sync = store.log.sync()
            if sync is not None:
                self.is_syncing_log = True
                yield sync.run
                self.is_syncing_log = False
                store.log.synced(sync)
            last = scan
            yield lambda: output.publish(last, dropped_through)
        except GeneratorExit:
            raise
        except BaseException:
            yield output.discard
            raise
        return tombstones

    def _relocate(self) -> Generator[Job, None, None]:
        """The index finds in the output what it found in the inputs; a second pass, so that memory stays flat."""
        store, output = self.store, self.output.segment
        assert output is not None
        store.log.adopt(output)
        written = Input(output)
        try:
            yield written.read
            while (found := written.slice) is not None:
                store.index.relocate(found.records)
                yield written.read
        except (CorruptLog, OSError):
            yield self.output.withdraw
            raise

    def _nothing_older(self) -> bool:
        """Whether no older segment holds an entry that is replaced: what a tombstone hides would be one."""
        dead_bytes = self.store.index.dead_bytes
        older = takewhile(lambda segment: segment is not self.run[0], self.store.log.sealed())
        return not any(dead_bytes.get(segment.header.number) for segment in older)

    def _expected_bytes(self) -> int:
        dead = sum(self.store.index.dead_bytes.get(number, 0) for number in self._numbers)
        entries = sum(self._medium.size(segment.fd) - OVERHEAD_BYTES for segment in self.run)
        return OVERHEAD_BYTES + max(0, entries - dead)

    def _remove_inputs(self) -> None:
        before = sum(segment.path.stat().st_size for segment in self.run)
        for segment in self.run:
            hint.discard(self._medium, segment.path)
            self._medium.unlink(segment.path)
        self._medium.sync_directory(self.output.path.parent)
        self.reclaimed_bytes = before - self.output.path.stat().st_size


def _both(output: Output, found: Slice, wanted: Sequence[bool], source: Input) -> Job:
    """Write what is wanted of one slice, and read the next: one way to the worker and back."""

    def run() -> None:
        output.write(found, wanted)
        source.read()

    return run


def _nothing() -> None:
    """Others have their turn."""
