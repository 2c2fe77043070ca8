"""A table against a dict: everything that can be asked of it, with clean stops, kills, power cuts, failing calls and
the passing of time as ordinary steps.

`KVSD_TEST_EXAMPLES` raises the number of runs.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvsd.errors import Conflict, StorageError
from kvsd.table import hint, updates
from kvsd.table.limits import limit_of
from kvsd.table.request import ABSENT, Batch, Check, Count, Delete, Fetch, Found, Page, Scan, Set, Update
from tests.table.driver import Clock, Table
from tests.table.medium import FaultyMedium

KEYS = st.sampled_from([b"", b"a", b"b", b"key"])
TTLS = st.sampled_from([0, 0, 1, 60, 5_000])
VALUES = st.one_of(st.binary(max_size=40), st.binary(min_size=200, max_size=600))

State = dict[bytes, tuple[bytes, int]]
"""Values and when they expire."""


class TableMachine(RuleBasedStateMachine):
    """`acknowledged` must never be lost; each state in `later` may be found instead of it, after a crash."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvsd-"))
        self.names = itertools.count()
        self.medium = FaultyMedium(self.folder / str(next(self.names)))
        self.acknowledged: State = {}
        self.staged: State = {}
        self.later: list[State] = []
        self.broken: OSError | None = None
        self.now_us = Clock()
        self.versions: dict[bytes, int] = {}
        """The last that was seen of each key, which may have been replaced since."""
        self.highest_seq = 0
        self.stuck = False

    @initialize(segment_bytes=st.sampled_from([600, 2_000, 1 << 20]))
    def start(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.open()

    def open(self) -> None:
        self.table = Table(self.medium, self.medium.root, segment_bytes=self.segment_bytes, now_us=self.now_us)
        found = self.found()
        assert found in [self.visible(state) for state in [self.acknowledged, *self.later]]
        self.acknowledged = found
        self.staged, self.later, self.broken, self.stuck = dict(found), [], None, False
        if self.table.log.is_settled:
            assert self.table.log.last_seq >= self.highest_seq
        else:
            self.broken = OSError(errno.ENOSPC, "no room to settle")

    def visible(self, state: State) -> State:
        return {key: held for key, held in state.items() if not 0 < held[1] <= self.now_us.now_us}

    def found(self) -> State:
        """All that the table holds, each value read from its segment."""
        return {key: (value, self.table.store._expiries.times.get(key, 0)) for key, value in self.table.items().items()}

    def decided(self, state: State) -> None:
        """`state` is what the table will be once the writes so far are committed."""
        self.staged = state
        self.later.append(state)

    def expiry(self, ttl_us: int) -> int:
        return self.now_us.now_us + ttl_us if ttl_us else 0

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS, value=VALUES, ttl_us=TTLS)
    def set(self, key: bytes, value: bytes, ttl_us: int) -> None:
        assert self.table.decide(Set(key, value, self.expiry(ttl_us))) is None
        self.decided(self.staged | {key: (value, self.expiry(ttl_us))})

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS, value=VALUES, ask_anew=st.booleans())
    def set_if_version(self, key: bytes, value: bytes, ask_anew: bool) -> None:
        now = self.version(key)
        expected = now if ask_anew else self.versions.get(key, ABSENT)
        self.versions[key] = now
        result = self.table.decide(Set(key, value, if_version=expected))
        if expected == now:
            assert result is None
            self.decided(self.staged | {key: (value, 0)})
        else:
            assert isinstance(result, Conflict)
            assert result.version == now

    def version(self, key: bytes) -> int:
        found = self.table.decide(Fetch(key))
        if found is None:
            assert key not in self.visible(self.staged)
            return ABSENT
        assert isinstance(found, Found)
        assert (found.value, found.expires_us) == self.visible(self.staged)[key]
        return found.version

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        old = self.visible(self.staged).get(key)
        assert self.table.decide(Delete(key)) == (None if old is None else old[0])
        self.decided({other: held for other, held in self.staged.items() if other != key})

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS, suffix=VALUES)
    def append(self, key: bytes, suffix: bytes) -> None:
        value, expires_us = self.visible(self.staged).get(key, (b"", 0))
        longer = value + suffix
        assert self.table.decide(Update(key, updates.append(suffix, max_value_bytes=1 << 20))) == len(longer)
        self.decided(self.staged | {key: (longer, expires_us)})

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS, ttl_us=TTLS)
    def expire(self, key: bytes, ttl_us: int) -> None:
        held = self.visible(self.staged).get(key)
        assert self.table.decide(Update(key, updates.expire(self.expiry(ttl_us)))) == int(held is not None)
        if held is not None:
            self.decided(self.staged | {key: (held[0], self.expiry(ttl_us))})

    @precondition(lambda self: self.broken is None)
    @rule(steps=st.lists(st.tuples(KEYS, st.none() | VALUES, TTLS), max_size=5), fails=st.booleans())
    def batch(self, steps: list[tuple[bytes, bytes | None, int]], fails: bool) -> None:
        operations: list[Set | Delete | Check] = []
        state = dict(self.staged)
        for key, value, ttl_us in steps:
            if value is None:
                operations.append(Delete(key))
                state.pop(key, None)
            else:
                operations.append(Set(key, value, self.expiry(ttl_us)))
                state[key] = value, self.expiry(ttl_us)
        if fails:
            operations.append(Check(b"key", 1 << 60))
            assert isinstance(self.table.decide(Batch(tuple(operations))), Conflict)
        else:
            assert self.table.decide(Batch(tuple(operations))) is None
            self.decided(state)

    @precondition(lambda self: self.broken is None)
    @rule(limit=st.integers(0, 3))
    def sweep(self, limit: int) -> None:
        self.table.store.sweep(limit)

    @rule(us=st.sampled_from([1, 50, 1_000]))
    def wait(self, us: int) -> None:
        self.now_us.now_us += us

    @precondition(lambda self: self.broken is None)
    @rule(start=KEYS, end=st.none() | KEYS, limit=st.integers(1, 5))
    def scan(self, start: bytes, end: bytes | None, limit: int) -> None:
        self.commit()
        if self.broken is not None:
            return
        keys = sorted(key for key in self.visible(self.acknowledged) if start <= key and (end is None or key < end))
        assert self.table.decide(Count(start, end)) == len(keys)
        items: list[tuple[bytes, bytes | None]] = []
        at: bytes | None = start
        while at is not None:
            page = self.table.decide(Scan(at, end, limit, values=True))
            assert isinstance(page, Page)
            items += page.items
            at = page.next
        assert items == [(key, self.acknowledged[key][0]) for key in keys]

    @precondition(lambda self: self.broken is None)
    @rule()
    def commit(self) -> None:
        commit = self.table.store.take()
        if commit is None:
            return
        try:
            commit.append.run()
        except OSError as error:
            self.table.store.failed(commit)
            self.broken = error
            if commit.append.may_have_lost_committed:
                self.broken = OSError(errno.EIO, "the sync of earlier entries")
            self.staged = self.acknowledged
        else:
            self.table.store.committed(commit)
            self.acknowledged, self.later = self.staged, []
            self.highest_seq = self.table.log._committed.last_seq

    @precondition(lambda self: self.broken is None)
    @rule()
    def fill(self) -> None:
        try:
            self.table.fill()
        except OSError as error:
            self.broken = error
            self.table.store.abandon()

    @rule()
    def write_hints(self) -> None:
        for path in self.table.log.take_unhinted():
            with contextlib.suppress(OSError):
                hint.write(self.medium, path)

    @precondition(lambda self: self.broken is None or limit_of(self.broken))
    @rule(first=st.integers(0, 3), count=st.integers(1, 4), steps=st.none() | st.integers(0, 8), writes=st.booleans())
    def compact(self, first: int, count: int, steps: int | None, writes: bool) -> None:
        """Any run, to its end or killed between two steps, with writes that are committed in between."""
        if self.stuck or first >= len(self.table.log.sealed()):
            return
        compaction = self.table.compaction(first, count)
        try:
            for number, _ in enumerate(compaction):
                if number == steps:
                    self.kill_and_start()
                    return
                if writes and not number % 3:
                    self.commit()
        except (OSError, StorageError) as error:
            assert isinstance(error, OSError), "nothing is damaged here"
            self.stuck = True  # as the compactor: no other run before the next start

    @precondition(lambda self: self.broken is not None and limit_of(self.broken))
    @rule()
    def resume(self) -> None:
        job = self.table.log.resume()
        if job is None:  # a Fill that failed is in its way, for good in this driver
            return
        try:
            job.run()
        except OSError as error:
            self.broken = error
        else:
            self.table.log.resumed(job)
            assert self.table.log.last_seq >= self.highest_seq
            self.broken, self.later = None, []

    @rule(number=st.sampled_from([errno.EIO, errno.ENOSPC]), at=st.integers(1, 12))
    def fail_soon(self, number: int, at: int) -> None:
        self.medium.fail(number, at=at)

    @rule()
    def heal(self) -> None:
        self.medium.heal()

    @precondition(lambda self: self.broken is None)
    @rule()
    def stop_and_start(self) -> None:
        self.commit()
        if self.broken is None:
            with contextlib.suppress(OSError):
                append = self.table.log.finish()
                append.run()
                hint.write(self.medium, self.table.directory / append.runs[0].header.name)
        self.table.log.close()
        assert not self.medium.open_files
        self.start_until_it_succeeds()

    @rule()
    def kill_and_start(self) -> None:
        self.medium.kill()
        self.start_until_it_succeeds()

    def start_until_it_succeeds(self) -> None:
        try:
            self.open()
        except OSError:
            assert not self.medium.open_files
            self.medium.heal()
            self.open()

    @rule(seed=st.integers(0, 1_000_000))
    def cut_the_power(self, seed: int) -> None:
        self.medium = self.medium.crash(seed, self.folder / str(next(self.names)))
        self.open()

    @rule(seed=st.integers(0, 1_000_000), at=st.integers(1, 12))
    def cut_the_power_twice(self, seed: int, at: int) -> None:
        self.medium = self.medium.crash(seed, self.folder / str(next(self.names)))
        self.medium.cut_power(at=at)
        with contextlib.suppress(Exception):
            Table(self.medium, self.medium.root, now_us=self.now_us)
        self.cut_the_power(seed + 1)

    @invariant()
    def reads_see_what_was_acknowledged(self) -> None:
        if hasattr(self, "table"):
            assert self.found() == self.visible(self.acknowledged)
            assert len(self.table.store) == len(self.visible(self.acknowledged))

    def teardown(self) -> None:
        self.medium.kill()
        shutil.rmtree(self.folder)


EXAMPLES = int(os.environ.get("KVSD_TEST_EXAMPLES", "30"))

TestMachine = pytest.mark.timeout(3_600)(TableMachine.TestCase)
TestMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
