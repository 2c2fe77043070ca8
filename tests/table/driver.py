"""Drives a Store the way its actor does, without a loop: each job is run on the spot."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from kvsd.errors import CorruptLog, ReadOnly
from kvsd.table import hint
from kvsd.table.budget import Budget
from kvsd.table.compaction import Compaction
from kvsd.table.known import KnownLog
from kvsd.table.log import Log, LogOptions, Read
from kvsd.table.medium import Medium
from kvsd.table.operations import NeedsCommit, NeedsOrder, NeedsValue, Operations
from kvsd.table.request import Compact, CompactionProgress, Operation, Origin, Request, Result, Status
from kvsd.table.segment_header import parse_name
from kvsd.table.store import Store
from kvsd.types import Fsync
from tests.table.medium import PowerCut

START_US = 1_700_000_000_000_000


def ticking(start_us: int = START_US) -> Callable[[], int]:
    """A clock that goes one microsecond further with every look."""
    now = start_us

    def tick() -> int:
        nonlocal now
        now += 1
        return now

    return tick


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us


class AlwaysWritable:
    """A gatekeeper for an actor that is not there."""

    def refuse_write(self, *, is_deletion: bool) -> ReadOnly | None:
        return None

    def damaged(self, error: CorruptLog) -> CorruptLog:
        raise error

    def describe(self) -> Status:
        raise NotImplementedError

    def compact(self, operation: Compact) -> CompactionProgress:
        raise NotImplementedError


class Table:
    """A recovered Store in the folder `root`/t."""

    def __init__(
        self,
        medium: Medium,
        root: Path,
        *,
        fsync: Fsync = Fsync.ALWAYS,
        segment_bytes: int = 128 << 20,
        cache_bytes: int = 0,
        now_us: Callable[[], int] | None = None,
        known: KnownLog | None = None,
    ) -> None:
        options = LogOptions(fsync=fsync, segment_bytes=segment_bytes, now_us=now_us or ticking())
        self.directory = root / "t"
        self.log = Log(self.directory, options, medium, known)
        self.store = Store(self.log, cache_bytes=cache_bytes)
        self.store.recover()
        self._operations = Operations(self.store, AlwaysWritable())
        self._origin = Origin(Budget(1 << 40))

    def decide(self, operation: Operation) -> Result:
        """What the actor would answer; what is decided still has to be committed. Raises the OSError of a commit."""
        request = Request([operation], self._origin, cast("asyncio.Future[list[Result]]", None))
        while (need := self._operations.run(request)) is not None:
            match need:
                case NeedsCommit():
                    self.commit()
                case NeedsOrder():
                    for _ in self.store.build_order():
                        pass
                case NeedsValue(read):
                    request.warm = read.seq, read.run().value
                    read.done()
        for _, read, put in request.reads:
            put(read.run())
            read.done()
        return request.results[0]

    def set(self, key: bytes, value: bytes) -> None:
        self.store.set(key, value)

    def delete(self, key: bytes) -> None:
        self.store.delete(key)

    def commit(self) -> None:
        """Bring what is staged to the medium; raises the job's OSError, with the store told."""
        commit = self.store.take()
        if commit is None:
            return
        try:
            commit.append.run()
        except OSError:
            self.store.failed(commit)
            raise
        self.store.committed(commit)

    def put(self, key: bytes, value: bytes) -> None:
        """One acknowledged write."""
        self.set(key, value)
        self.commit()

    def remove(self, key: bytes) -> None:
        self.delete(key)
        self.commit()

    def fill(self) -> None:
        fill = self.log.fill()
        if fill is not None:
            fill.run()
            self.log.filled(fill)

    def write_hints(self) -> None:
        for path in self.log.take_unhinted():
            hint.write(self.log.medium, path)

    def sync(self) -> None:
        sync = self.log.sync()
        if sync is not None:
            sync.run()
            self.log.synced(sync)

    def compaction(self, first: int = 0, count: int | None = None) -> Iterator[None]:
        """Compact these of the sealed segments, a step at a time; raises what a step has raised."""
        run = self.log.sealed()[first:][:count]
        steps = Compaction(self.store, run).steps()
        error: Exception | None = None
        with contextlib.suppress(StopIteration):
            while True:
                job = next(steps) if error is None else steps.throw(error)
                error = None
                try:
                    job()
                except PowerCut:
                    raise
                except Exception as found:
                    error = found
                yield

    def compact(self, first: int = 0, count: int | None = None) -> None:
        for _ in self.compaction(first, count):
            pass

    def get(self, key: bytes) -> bytes | None:
        value = self.store.get(key)
        if not isinstance(value, Read):
            return value
        try:
            return value.run().value
        finally:
            value.done()

    def items(self) -> dict[bytes, bytes]:
        """All keys and values, each read from its segment."""
        items = {key: self.get(key) for key in list(self.store._index._locations)}
        return {key: value for key, value in items.items() if value is not None}

    def stop(self) -> None:
        self.log.finish().run()
        self.log.close()

    def kill(self) -> None:
        """Let go of the files without a SEAL."""
        self.log.close()


def segments(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if parse_name(path.name) is not None)


def files(root: Path) -> dict[str, bytes]:
    """Every file under `root`, by name: to show that nothing was changed."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
