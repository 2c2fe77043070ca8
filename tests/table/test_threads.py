"""Worker threads that are there from the start: nothing needs another one later, and what is refused never runs."""

from __future__ import annotations

import threading
import weakref

import pytest

from kvsd.errors import ConfigError
from kvsd.table.threads import Threads

SECONDS = 20


def allow_threads(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From now on `count` threads can be started, and then none, as Python says it."""
    start = threading.Thread.start
    left = count

    def limited(self: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)


def test_all_threads_work_where_no_further_one_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    with Threads(5, "test") as pool:
        allow_threads(monkeypatch, 0)
        together = threading.Barrier(5)
        jobs = [pool.submit(together.wait, SECONDS) for _ in range(5)]
        assert sorted(job.result(SECONDS) for job in jobs) == [0, 1, 2, 3, 4]


def test_a_pool_does_with_as_many_as_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_threads(monkeypatch, 2)
    with Threads(5, "test") as pool:
        assert (len(pool), pool.lacking) == (2, 3)
        assert [pool.submit(pow, 2, n).result(SECONDS) for n in range(5)] == [1, 2, 4, 8, 16]


def test_a_pool_without_any_thread_names_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_threads(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"threads \(ulimit -u"):
        Threads(5, "test")


def test_what_a_job_raises_is_told_and_its_thread_goes_on() -> None:
    with Threads(1, "test") as pool:
        job = pool.submit(int, "x")
        assert isinstance(job.exception(SECONDS), ValueError)
        assert pool.submit(int, "7").result(SECONDS) == 7


def test_a_job_that_was_cancelled_or_refused_never_runs() -> None:
    ran: list[str] = []
    with Threads(1, "test") as pool:
        gate = threading.Event()
        pool.submit(gate.wait, SECONDS)
        cancelled = pool.submit(ran.append, "cancelled")
        kept = pool.submit(ran.append, "kept")
        assert cancelled.cancel()
        gate.set()
        kept.result(SECONDS)
    with pytest.raises(RuntimeError):
        pool.submit(ran.append, "refused")
    assert ran == ["kept"]


def test_what_waits_at_a_shutdown_is_carried_out() -> None:
    pool = Threads(2, "test")
    gate = threading.Event()
    jobs = [pool.submit(gate.wait, SECONDS) for _ in range(6)]
    pool.shutdown(wait=False)
    gate.set()
    pool.shutdown()
    assert all(job.result(0) for job in jobs)


def test_a_job_leaves_nothing_behind_while_the_next_one_is_awaited() -> None:
    class Held:
        pass

    with Threads(1, "test") as pool:
        held = Held()
        gone = weakref.ref(held)
        pool.submit(lambda held: None, held).result(SECONDS)
        del held
        pool.submit(lambda: None).result(SECONDS)
        assert gone() is None
