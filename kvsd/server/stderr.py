"""The process's stderr, which nobody has to wait for.

Owns: what was written and not yet taken, within a bound, the thread that writes it, and how much was lost. Must not
know what is written, nor in which form.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

HELD_BYTES: Final = 1 << 20
"""The text that waits at most for a reader that is slow or has stopped; what comes then is lost, and counted."""

DRAIN_SECONDS: Final = 1.0
"""The time for what is left at the end of the process."""


class Stderr(io.TextIOBase):
    """Takes text at once, whatever the descriptor is: a pipe that is full, a stopped terminal, a disk that hangs."""

    def __init__(self, fd: int) -> None:
        """Starts its thread, which lasts as long as the process; raises RuntimeError where there can be none."""
        super().__init__()
        self.on_loss: Callable[[int], None] = lambda count: None
        """Called by the thread, once what was taken before is written, with how many texts were lost since."""
        self._fd = fd
        self._texts: deque[bytes] = deque()
        self._held_bytes = 0
        self._lost = 0
        self._is_writing = False
        self._is_cut = False
        # Of a kind that its own thread may take twice: a signal handler may write, too.
        self._changed = threading.Condition(threading.RLock())
        threading.Thread(target=self._write_all, name="kvsd-stderr", daemon=True).start()

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            # Nothing is taken behind a loss before that is told: so whoever reads sees where the gap is.
            if self._lost or self._held_bytes + len(data) > HELD_BYTES:
                self._lost += 1
            else:
                self._texts.append(data)
                self._held_bytes += len(data)
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = DRAIN_SECONDS) -> None:
        """Wait until all is written, but no longer than `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._texts or self._is_writing or self._lost), seconds)

    def _write_all(self) -> None:
        failed = 0  # since the last text that could be written
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._texts or self._lost)
                self._is_writing = True
                texts, self._texts = self._texts, deque()
                lost = 0
                if not texts:
                    lost, self._lost = self._lost, 0
            for data in texts:
                if not self._write(data):
                    failed += 1
                else:
                    lost, failed = lost + failed, 0
                with self._changed:
                    self._held_bytes -= len(data)
            if lost:
                self.on_loss(lost)

    def _write(self, data: bytes) -> bool:
        """Write `data` however long that takes; False where it fails (a reader that has gone, a full disk)."""
        # What was written in part ends its line first.
        view = memoryview(b"\n" + data if self._is_cut else data)
        size = len(view)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # another process has set the descriptor so
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()
            except OSError:
                self._is_cut = self._is_cut or len(view) < size
                return False
        self._is_cut = False
        return True


@contextlib.contextmanager
def never_blocking() -> Iterator[None]:
    """Within the block, whatever this process writes to its stderr makes nobody wait."""
    before = sys.stderr
    if before is None or isinstance(before, Stderr):
        yield
        return
    try:
        ours = Stderr(before.fileno())
    except (OSError, RuntimeError):  # no descriptor, or no thread
        yield
        return
    before.flush()
    sys.stderr = ours
    try:
        yield
    finally:
        ours.drain()
        sys.stderr = before


def drain() -> None:
    """Before the process ends at once: what it has said is written, if somebody takes it."""
    if isinstance(sys.stderr, Stderr):
        sys.stderr.drain()
