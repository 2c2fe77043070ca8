"""A table against a dict, with clean stops, kills, power cuts and failing calls as ordinary steps.

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

from kvsd.table.work import is_disk_full
from tests.table.driver import Table, ticking
from tests.table.medium import FaultyMedium

KEYS = st.sampled_from([b"", b"a", b"b", b"key"])
VALUES = st.one_of(st.binary(max_size=40), st.binary(min_size=200, max_size=600))

State = dict[bytes, bytes]


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
        self.now_us = ticking()
        self.highest_seq = 0

    @initialize(segment_bytes=st.sampled_from([600, 2_000, 1 << 20]))
    def start(self, segment_bytes: int) -> None:
        self.segment_bytes = segment_bytes
        self.open()

    def open(self) -> None:
        self.table = Table(self.medium, self.medium.root, segment_bytes=self.segment_bytes, now_us=self.now_us)
        found = self.table.items()
        assert found in [self.acknowledged, *self.later]
        self.acknowledged = found
        self.staged, self.later, self.broken = dict(found), [], None
        if self.table.log.is_settled:
            assert self.table.log.last_seq >= self.highest_seq
        else:
            self.broken = OSError(errno.ENOSPC, "no room to settle")

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS, value=VALUES)
    def set(self, key: bytes, value: bytes) -> None:
        self.table.set(key, value)
        self.staged = self.staged | {key: value}
        self.later.append(self.staged)

    @precondition(lambda self: self.broken is None)
    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.table.delete(key)
        self.staged = {other: value for other, value in self.staged.items() if other != key}
        self.later.append(self.staged)

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
            self.staged = dict(self.acknowledged)
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

    @precondition(lambda self: self.broken is not None and is_disk_full(self.broken))
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
                self.table.log.finish().run()
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
            assert self.table.items() == self.acknowledged
            assert len(self.table.store) == len(self.acknowledged)

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
