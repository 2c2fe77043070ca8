"""Keys and values over a Log: what is committed, what is pending, and what each write makes of it.

Owns: the Index, the cache and the pending writes. Must not know asyncio, files, or who asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from kvsd.table import index
from kvsd.table.budget import out_of_memory
from kvsd.table.cache import ValueCache
from kvsd.table.entry import Kind
from kvsd.table.index import Index, Location
from kvsd.table.log import Log, Read
from kvsd.table.work import Append
from kvsd.types import Key, Value

_READ_AT_ONCE_BYTES: Final = 256 << 10


class Pending(NamedTuple):
    """A write that is decided and not yet committed."""

    group: int
    location: Location
    value: Value | None
    """None: a deletion."""


class Commit(NamedTuple):
    """The writes of one group, and the job that brings them to the medium."""

    group: int
    append: Append
    writes: list[tuple[Key, Pending]]


class Store:
    """One table's data. Writes are decided at once against the pending state and committed in groups.

    A group is known by its number: 1, 2, 3 …; `group` is the one that the next write joins.
    `recover` comes first; then any order of reads, writes, and `take` followed by `committed` or `failed`.
    """

    def __init__(self, log: Log, *, cache_bytes: int) -> None:
        self.log = log
        self.group = 1
        self.pending: dict[Key, Pending] = {}
        """The newest uncommitted write of a key: a read of the key must answer from it, and wait for its group."""
        self._writes: list[tuple[Key, Pending]] = []
        self._index = Index()
        self._cache = ValueCache(cache_bytes)

    def __len__(self) -> int:
        """Keys that have a committed value."""
        return self._index.live

    def recover(self) -> None:
        """Rebuild the index from the log.

        Raises CorruptLog or UnsupportedFormat, or OSError from the disk; the store is unusable then.
        """
        self._index.replay(self.log.recover())

    def get(self, key: Key, hold: Callable[[int], bool] = lambda _: True) -> Value | Read | None:
        """The committed value, None where there is none, or a Read where only the disk has it.

        `hold` is asked for the value's bytes before anything is read. Raises Busy where it refuses them, and
        CorruptLog where the value's entry is damaged.
        """
        value = self._cache.get(key)
        if value is not None:
            if not hold(len(value)):
                raise out_of_memory()
            return value
        location = self._index.find(key)
        if location is None or location & index.TOMBSTONE:
            return None
        if not hold(index.value_bytes_of(location)):
            raise out_of_memory()
        where = (index.position_of(location), key, index.seq_of(location), index.value_bytes_of(location))
        # A large value takes milliseconds to check, even from the page cache: others would wait.
        value = self.log.read_cached(*where) if where[3] <= _READ_AT_ONCE_BYTES else None
        if value is None:
            return self.log.read(*where)
        self._cache.put(key, value)
        return value

    def set(self, key: Key, value: Value) -> None:
        """Stage a write of `value` in the current group."""
        seq, position = self.log.stage(Kind.SET, key, value, self._newest_seq(key))
        self._add(key, Pending(self.group, index.pack(seq, position, len(value)), value))

    def delete(self, key: Key) -> None:
        """Stage a tombstone in the current group; the caller has made sure that there is something to delete."""
        seq, position = self.log.stage(Kind.DELETE, key, b"", self._newest_seq(key))
        self._add(key, Pending(self.group, index.pack(seq, position, 0, index.TOMBSTONE), None))

    def _newest_seq(self, key: Key) -> int:
        pending = self.pending.get(key)
        location = pending.location if pending is not None else self._index.find(key)
        return index.seq_of(location) if location is not None else 0

    def _add(self, key: Key, pending: Pending) -> None:
        self.pending[key] = pending
        self._writes.append((key, pending))

    def take(self) -> Commit | None:
        """The current group, to be committed; None where it is empty or must wait for a Fill."""
        append = self.log.take()
        if append is None:
            return None
        commit = Commit(self.group, append, self._writes)
        self._writes = []
        self.group += 1
        return commit

    def committed(self, commit: Commit) -> None:
        """The commit's job has run: its writes are what reads see from now on."""
        self.log.committed(commit.append)
        for key, pending in commit.writes:
            self._index.put(key, pending.location)
            if pending.value is None:
                self._cache.discard(key)
            else:
                self._cache.put(key, pending.value)
            if self.pending.get(key) is pending:
                del self.pending[key]

    def failed(self, commit: Commit) -> None:
        """The commit's job has failed: its writes, and all that were decided after them, have not happened."""
        self.log.failed(commit.append)
        self.abandon()

    def abandon(self) -> None:
        """Forget all writes that are not committed."""
        self.log.abandon()
        self.pending.clear()
        self._writes.clear()
        self.group += 1
