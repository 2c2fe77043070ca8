"""One compaction: a run of sealed segments is rewritten into one file that holds only what is still wanted.

Owns: the steps of it, and their order. Must not know asyncio, the bytes of its files, what is wanted (that is
retention's), nor when to compact what: `Compaction.steps` is a generator that touches the Store itself and yields what
blocks, as jobs for a worker.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TypeAlias

from kvsd.errors import CorruptLog
from kvsd.table import hint
from kvsd.table.compaction_input import SLICE_RECORDS, Input, Slice
from kvsd.table.compaction_output import Output
from kvsd.table.entry import TOMBSTONES
from kvsd.table.medium import LostFile
from kvsd.table.retention import Retention
from kvsd.table.segment import Segment
from kvsd.table.segment_header import MAX_GENERATION, OVERHEAD_BYTES, new_mark
from kvsd.table.segment_reader import SegmentReader
from kvsd.table.store import Store
from kvsd.types import Key

Job: TypeAlias = Callable[[], object]
"""To be run by a worker; it may raise OSError or a StorageError, which is then thrown into the generator."""


class Compaction:
    """One run: `steps`, and how far they have come. `run` is contiguous and sealed, and stays in the Store's log."""

    def __init__(self, store: Store, run: Sequence[Segment]) -> None:
        self.store = store
        self.run = list(run)
        self.bytes_done = 0
        """Of the inputs."""
        self.reclaimed_bytes = 0
        self.tombstones_dropped = 0
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
        self._own: list[Segment] = []
        self._numbers = {segment.header.number for segment in self.run}
        self._medium = store.log.medium
        self.output = Output(self._medium, store.log.directory, header)

    def steps(self) -> Generator[Job, None, None]:
        """Raises what a job has raised, once what was begun is cleaned up.

        Up to the output's name nothing has changed for anybody; after it, a crash at any step leaves inputs that the
        next start removes.
        """
        tombstones = yield from self._copy()
        yield from self._relocate()
        with _pinned(self.run):
            yield self._find_own_inputs
        index, log = self.store.index, self.store.log
        while tombstones:
            # The keys go with their last mention, so not with the list as a whole.
            self.tombstones_dropped += index.forget(tombstones[-SLICE_RECORDS:], self._numbers)
            del tombstones[-SLICE_RECORDS:]
            yield _nothing
        while any(segment.is_awaited for segment in self.run):
            yield _nothing  # a read that came before the index was moved over opens it by its name
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
            reader: SegmentReader | None = None
            for segment in self.run:
                source = Input(segment)
                with _pinned([segment]):
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
                reader = source.reader
            assert reader is not None
            # An old value that was durable goes in favour of a newer one: so that must be durable now, too.
            sync = store.log.sync()
            if sync is not None:
                self.is_syncing_log = True
                yield sync.run
                self.is_syncing_log = False
                store.log.synced(sync)
            last = reader
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
            with _pinned([output]):
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
        entries = sum(segment.size_bytes - OVERHEAD_BYTES for segment in self.run)
        return OVERHEAD_BYTES + max(0, entries - dead)

    def _find_own_inputs(self) -> None:
        """Find the inputs to remove. One that is gone, or replaced, is left alone: a start knows it as superseded."""
        for segment in self.run:
            with contextlib.suppress(LostFile):
                segment.check(0)
                self._own.append(segment)

    def _remove_inputs(self) -> None:
        output = self.output.segment
        assert output is not None
        for segment in self._own:
            hint.discard(self._medium, segment.path)
            # Whoever has removed it since: all that is wanted of it stands in the output.
            with contextlib.suppress(FileNotFoundError):
                self._medium.unlink(segment.path)
        for segment in self.run:
            # Once more: one that was being written may have got its name only now.
            if not self._medium.exists(segment.path):
                hint.discard(self._medium, segment.path)
        self._medium.sync_directory(output.path.parent)
        self.reclaimed_bytes = sum(segment.size_bytes for segment in self.run) - output.size_bytes


def _both(output: Output, found: Slice, wanted: Sequence[bool], source: Input) -> Job:
    """Write what is wanted of one slice, and read the next: one way to the worker and back."""

    def run() -> None:
        output.write(found, wanted)
        source.read()

    return run


@contextlib.contextmanager
def _pinned(segments: Sequence[Segment]) -> Iterator[None]:
    """They keep the descriptors that they have or get."""
    for segment in segments:
        segment.pin()
    try:
        yield
    finally:
        for segment in segments:
            segment.unpin()


def _nothing() -> None:
    """Others have their turn."""
