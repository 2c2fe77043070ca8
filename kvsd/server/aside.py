"""Work that may take as long as it likes.

Owns: the thread that it runs on, for which neither a cancelled wait nor the end of the process waits. Must not know
what the work is: a name server that is silent, the passwords of many users.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar

from kvsd.table.threads import none_allowed

T = TypeVar("T")


async def aside(job: Callable[[], T]) -> T:
    """Run `job` on a thread of its own; returns and raises what it does.

    Raises ConfigError where the system allows no further thread.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        with suppress(InvalidStateError):  # nobody waits any more
            try:
                outcome.set_result(job())
            except BaseException as error:
                outcome.set_exception(error)

    thread = threading.Thread(target=run, name="kvsd-aside", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise none_allowed() from error
    waiting = asyncio.wrap_future(outcome)
    await asyncio.wait([waiting])
    thread.join()
    return waiting.result()
