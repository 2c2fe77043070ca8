"""Keys and values over a Log: what is committed, what is pending, and what each write makes of it.

Owns: the Index, the cache, the order of the keys, and the pending writes. Must not know asyncio, files, or who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice, takewhile
from typing import Final, NamedTuple

from kvsd.table import index
from kvsd.table.budget import out_of_memory
from kvsd.table.cache import ValueCache
from kvsd.table.entry import HEADER_BYTES, Kind
from kvsd.table.expiry import AT_ONCE
from kvsd.table.index import Index, Location
from kvsd.table.log import Log, Read
from kvsd.table.order import KeyOrder
from kvsd.table.progress import RecoveryProgress
from kvsd.table.request import Status
from kvsd.table.segment import Stored
from kvsd.table.work import Append
from kvsd.types import Key, Value

_READ_AT_ONCE_BYTES: Final = 256 << 10
_GROUP_WRITES: Final = 1_000
"""A group takes no more of them: with a slow disk and many writers one had 200,000, and their end took 370 ms."""
_FREED_AT_ONCE: Final = 5_000
"""Keys; a millisecond or two."""


class Pending(NamedTuple):
    """A write that is decided and not yet committed."""

    group: int
    location: Location
    value: Value | None
    """None: a deletion."""
    expires_us: int = 0
    timestamp_us: int = 0


class Commit(NamedTuple):
    """The writes of one group, and the job that brings them to the medium."""

    group: int
    append: Append
    writes: list[tuple[Key, Pending]]


class Store:
    """One table's data. Writes are decided at once against the pending state and committed in groups.

    A group is known by its number: 1, 2, 3 …; `group` is the one that the next write joins.
    `recover` comes first; then any order of reads, writes, and `take` followed by `committed` or `failed`.
    Times are absolute, in microseconds since 1970; an expiry of 0 is none.
    """

    def __init__(self, log: Log, *, cache_bytes: int) -> None:
        self.log = log
        self.group = 1
        self.settled_group = 0
        """The newest group that is committed or has failed, as all before it."""
        self.pending: dict[Key, Pending] = {}
        """The newest uncommitted write of a key: a read of the key must answer from it, and wait for its group."""
        self._writes: list[tuple[Key, Pending]] = []
        self._index = Index()
        self._expiries = self._index.expiries
        self.cache = ValueCache(cache_bytes)
        self._order: KeyOrder | None = None

    def __len__(self) -> int:
        """Keys that have a committed value, without those that have expired."""
        return self._index.live - len(self._expiries.due) - self._expiries.behind(self.log.options.now_us())

    def recover(self) -> None:
        """Rebuild the index from the log.

        Raises CorruptLog or UnsupportedFormat, or OSError from the disk; the store is unusable then.
        """
        self.log.recover(self._index)
        self._index.finish()

    @property
    def recovering(self) -> RecoveryProgress:
        """How far `recover` has come; any thread may look."""
        return self.log.progress

    @property
    def pending_group(self) -> int:
        """The newest group that is decided and not settled; 0 none."""
        if self._writes:
            return self.group
        return self.group - 1 if self.pending else 0

    @property
    def is_group_full(self) -> bool:
        """True where the next write should wait until the current group has been taken."""
        return len(self._writes) >= _GROUP_WRITES

    def seal(self) -> bool:
        """Have the next commit close the log's segment, so that it can be compacted; False where that gains nothing."""
        has_garbage = self._index.dead_bytes.get(self.log.active_number) or len(self._index) > self._index.live
        return bool(has_garbage) and self.log.seal()

    @property
    def index(self) -> Index:
        """For a compaction, which moves entries and changes no value."""
        return self._index

    # Reads

    def get(self, key: Key, hold: Callable[[int], bool] = lambda _: True) -> Value | Read | None:
        """The committed value, None where there is none, or a Read where only the disk has it.

        `hold` is asked for the value's bytes before anything is read. Raises Busy where it refuses them, and
        CorruptLog where the value's entry is damaged.
        """
        if self._expiries.ever and self._is_past(self._expiries.times.get(key, 0)):
            return None
        value = self.cache.get(key)
        if value is not None:
            if not hold(len(value)):
                raise out_of_memory()
            return value
        stored = self._stored(key, hold)
        if not isinstance(stored, Stored):
            return stored
        self.cache.put(key, stored.value)
        return stored.value

    def entry(self, key: Key, hold: Callable[[int], bool]) -> Stored | Read | None:
        """The same with the entry's time, which only the log has."""
        return None if self._is_past(self._expiries.times.get(key, 0)) else self._stored(key, hold)

    def _stored(self, key: Key, hold: Callable[[int], bool]) -> Stored | Read | None:
        location = self._index.find(key)
        if location is None or location & index.TOMBSTONE:
            return None
        value_bytes = index.value_bytes_of(location)
        if not hold(value_bytes):
            raise out_of_memory()
        where = (index.position_of(location), key, index.seq_of(location), value_bytes)
        # A large value takes milliseconds to check, even from the page cache: others would wait.
        stored = self.log.read_cached(*where) if value_bytes <= _READ_AT_ONCE_BYTES else None
        return self.log.read(*where) if stored is None else stored

    def version(self, key: Key) -> int:
        """The version that all decided writes leave; 0 where the key has no value."""
        pending = self.pending.get(key)
        location = self._index.find(key) if pending is None else pending.location
        if location is None or location & index.TOMBSTONE or self.has_expired(key):
            return 0
        return index.seq_of(location)

    def expires_us(self, key: Key) -> int:
        """The expiry that all decided writes leave."""
        pending = self.pending.get(key)
        return self._expiries.times.get(key, 0) if pending is None else pending.expires_us

    def has_expired(self, key: Key) -> bool:
        """Tell whether its time has come, and the log does not say so yet; as all decided writes leave it."""
        return self._expiries.ever and self._is_past(self.expires_us(key))

    def _is_past(self, expires_us: int) -> bool:
        return expires_us != 0 and expires_us <= self.log.options.now_us()

    def describe(self, state: str) -> Status:
        """All of it in figures."""
        return Status(
            state=state,
            keys=len(self),
            keys_with_expiry=len(self._expiries.times),
            last_seq=self.log.last_seq,
            segments=self.log.segment_count,
            log_bytes=self.log.size_bytes,
            dead_bytes=sum(self._index.dead_bytes.values()),
            cached_bytes=self.cache.used_bytes,
        )

    # The order of keys

    @property
    def is_ordered(self) -> bool:
        """Whether `page` and `count` can be asked; else `build_order` comes first."""
        return self._order is not None and self._order.is_built and not self._is_behind

    @property
    def _is_behind(self) -> bool:
        """Tell whether more keys are due than leave the order at once, or some have left whose time has not come."""
        if not self._expiries.ever:
            return False
        now_us = self.log.options.now_us()
        return self._expiries.is_ahead(now_us) or self._expiries.behind(now_us) > AT_ONCE

    def build_order(self) -> Iterator[None]:
        """Sort the visible keys, a few milliseconds at each step; any other call may come between the steps."""
        if self._order is None or not self._order.is_built:
            due = self._expiries.due
            self._order = KeyOrder()
            yield from self._order.build(self._index.keys, lambda key: self._index.is_live(key) and key not in due)
        while self._is_behind:
            self._expire()
            yield

    def _expire(self) -> None:
        """Have keys whose time has come leave the order, as many as there may be at once; and return, where the clock
        was set back."""
        now_us = self.log.options.now_us()
        for key in self._expiries.retreat(now_us):
            if self._order is not None:
                self._order.add(key)
        for key in self._expiries.advance(now_us):
            if self._order is not None:
                self._order.discard(key)

    def page(self, start: Key, end: Key | None, limit: int) -> tuple[list[Key], Key | None]:
        """The next committed keys in order, and where the rest starts; fewer than `limit` where some have expired."""
        assert self._order is not None
        keys = self._order.page(start, end, limit)
        rest = keys[-1] + b"\0" if len(keys) == limit else None
        times = self._expiries.times
        if times:
            now_us = self.log.options.now_us()
            keys = [key for key in keys if not 0 < times.get(key, 0) <= now_us]
        return keys, rest

    def count(self, start: Key, end: Key | None) -> int:
        """How many committed keys there are in this range."""
        if not start and end is None:
            return len(self)
        assert self._order is not None
        self._expire()
        return self._order.count(start, end)

    # Writes

    def set(self, key: Key, value: Value, expires_us: int = 0) -> int:
        """Stage a write of `value` in the current group; returns the version that the key has then."""
        if self._expiries.ever:
            self._log_expiry(key)
        return self._stage_set(key, value, expires_us)

    def delete(self, key: Key) -> None:
        """Stage a tombstone in the current group; the caller has made sure that there is something to delete."""
        self._stage_tombstone(Kind.DELETE, key)

    def bury(self, key: Key) -> bool:
        """Stage an EXPIRED for a key that is deleted when its time has come; False where there is nothing to bury.

        The sweep would do it some time. But the clock may be wrong, and what was deleted must not come back with it.
        """
        if not self.has_expired(key):
            return False
        self._stage_tombstone(Kind.EXPIRED, key)
        return True

    def batch(self, steps: list[tuple[Key, Value | None, int]]) -> None:
        """Stage these writes (a value of None deletes the key) so that all of them reach the log or none."""
        for key, _, _ in steps:
            self._log_expiry(key)
        self.log.make_room(sum(HEADER_BYTES + len(key) + len(value or b"") for key, value, _ in steps))
        for number, (key, value, expires_us) in enumerate(steps):
            if value is None:
                self._stage_tombstone(Kind.DELETE, key, number, len(steps))
            else:
                self._stage_set(key, value, expires_us, number, len(steps))

    def sweep(self, limit: int) -> int:
        """Stage an EXPIRED for up to `limit` keys whose time has come; how many there were."""
        if len(self._expiries.due) < limit or self._expiries.is_ahead(self.log.options.now_us()):
            self._expire()
        times = self._expiries.times
        unswept = (key for key in self._expiries.due if key not in self.pending)
        due = list(islice(takewhile(lambda key: self._is_past(times[key]), unswept), limit))
        for key in due:
            self._stage_tombstone(Kind.EXPIRED, key)
        return len(due)

    @property
    def has_expiries(self) -> bool:
        """Whether there may be something to sweep, some time."""
        return bool(self._expiries.times)

    def _log_expiry(self, key: Key) -> None:
        """Before a key that has expired is written anew: replay knows no clock, so the log must say it."""
        if self.has_expired(key):
            self._stage_tombstone(Kind.EXPIRED, key)

    def _stage_set(self, key: Key, value: Value, expires_us: int, batch_index: int = 0, batch_count: int = 1) -> int:
        seq, position = self.log.stage(
            Kind.SET, key, value, self._newest_seq(key), expires_us, batch_index, batch_count
        )
        location = index.pack(seq, position, len(value))
        if expires_us:
            location |= index.EXPIRES
            self._expiries.ever = True
        self._add(key, Pending(self.group, location, value, expires_us, self.log.last_timestamp_us))
        return seq

    def _stage_tombstone(self, kind: Kind, key: Key, batch_index: int = 0, batch_count: int = 1) -> None:
        seq, position = self.log.stage(kind, key, b"", self._newest_seq(key), 0, batch_index, batch_count)
        self._add(key, Pending(self.group, index.pack(seq, position, 0, index.TOMBSTONE), None))

    def _newest_seq(self, key: Key) -> int:
        pending = self.pending.get(key)
        location = pending.location if pending is not None else self._index.find(key)
        return index.seq_of(location) if location is not None else 0

    def _add(self, key: Key, pending: Pending) -> None:
        self.pending[key] = pending
        self._writes.append((key, pending))

    # Commits

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
            self._index.put(key, pending.location, pending.expires_us)
            if pending.value is None:
                self.cache.discard(key)
            else:
                self.cache.put(key, pending.value)
            if self.pending.get(key) is pending:
                del self.pending[key]
        if self._order is not None:
            for key, pending in commit.writes:
                if pending.value is None:
                    self._order.discard(key)
                else:
                    self._order.add(key)
        self.settled_group = commit.group

    def failed(self, commit: Commit) -> None:
        """The commit's job has failed: its writes, and all that were decided after them, have not happened."""
        self.log.failed(commit.append)
        self.abandon()

    def abandon(self) -> None:
        """Forget all writes that are not committed."""
        self.log.abandon()
        self.pending.clear()
        self._writes.clear()
        self.settled_group = self.group
        self.group += 1

    # The end

    def free(self) -> Iterator[None]:
        """Let go of all keys, a few at each step, once nobody uses the store: in one call 300,000 take 60 ms."""
        yield from self._index.free(_FREED_AT_ONCE)
        yield from self.cache.free(_FREED_AT_ONCE)
        if self._order is not None:
            yield from self._order.free()
