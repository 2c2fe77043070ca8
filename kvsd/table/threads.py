"""Worker threads that are all there from the start.

Owns: their number, and the jobs that wait for one. Must not know what a job does, nor asyncio.

The standard library's pool starts a thread when a job comes for which none is free. Where the system allows no further
thread at that moment, it raises with the job in its queue, and carries it out later: a write that was refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Final, ParamSpec, TypeVar

from kvsd.errors import ConfigError

T = TypeVar("T")
P = ParamSpec("P")

LIMIT: Final = "threads (ulimit -u, pids.max)"
"""The limit that is met where no further thread can be started."""


def none_allowed() -> ConfigError:
    """Return the error for a thread that could not be started."""
    return ConfigError(f"the system allows no further thread; its limit of {LIMIT} is too low")


class Threads(Executor):
    """A pool of `count` threads, or of as many as the system allows; raises ConfigError where it allows none."""

    def __init__(self, count: int, name: str) -> None:
        self.lacking = 0
        """The number of those that could not be started."""
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_shut = False
        self._threads: list[threading.Thread] = []
        self.grow(count)
        if not self._threads:
            raise none_allowed()

    def __len__(self) -> int:
        return len(self._threads)

    def grow(self, count: int) -> None:
        """Have `count` threads from now on, or as many as the system allows."""
        for number in range(len(self._threads), count):
            # As a daemon: whoever forgets `shutdown` must still be able to end the process.
            thread = threading.Thread(target=_work, args=(self._jobs,), name=f"{self._name}-{number}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self.lacking = count - number
                return
            self._threads.append(thread)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have a thread run `fn`. Raises RuntimeError after `shutdown`; then it never runs."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._is_shut:
                raise RuntimeError("the threads have ended")
            self._jobs.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs; the threads end once those that wait are done, and with `wait` they have ended then."""
        del cancel_futures  # nobody asks for it: a job that was taken is carried out
        with self._lock:
            if not self._is_shut:
                self._is_shut = True
                for _ in self._threads:
                    self._jobs.put(None)
        if wait:
            for thread in self._threads:
                thread.join()


def _work(jobs: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # else what it holds would live until the next one comes
