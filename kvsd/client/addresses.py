"""The addresses that a host name stands for, within a time.

Owns: the look-up, and the thread that it takes. Knows nothing of connecting. Never imports asyncio.

The system's resolver cannot be interrupted, and a silent name server holds it up for half a minute. So it runs in a
thread that nobody has to wait for: neither a caller whose time is up, nor the end of the program or of an event loop.
"""

from __future__ import annotations

import os
import socket
import threading
from _thread import start_new_thread
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, TypeAlias


class Endpoint(NamedTuple):
    """One address of a host, as `socket` takes it."""

    family: int
    address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


Found: TypeAlias = "list[Endpoint] | OSError"

_under_way: dict[tuple[int, str, int], Lookup] = {}
"""By process, host and port: callers that ask for the same share a thread, however often they give up."""


def addresses(host: str, port: int, deadline: float) -> list[Endpoint]:
    """All addresses of `host`, at least one.

    Raises TimeoutError where they have not come by `deadline`, a point of `time.monotonic`; OSError where there are
    none; ValueError where `host` cannot be a name.
    """
    literal = literal_addresses(host, port)
    if literal is not None:
        return literal
    # A raw lock: what `threading` makes of it in Python stays locked where a signal handler raises at the wrong moment.
    bell = threading.Lock()
    bell.acquire()
    lookup = look_up(host, port, bell.release)
    seconds = max(deadline - monotonic(), 0)
    if lookup.found is None and not bell.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
        raise TimeoutError
    return lookup.result()


def literal_addresses(host: str, port: int) -> list[Endpoint] | None:
    """Addresses that need no look-up; None where `host` is a name. Raises ValueError where it cannot be one."""
    try:
        return _resolve(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def look_up(host: str, port: int, ring: Callable[[], None]) -> Lookup:
    """Begin a look-up, or join the one that is under way. `ring` is called from its thread, once it is done."""
    lookup = _under_way.get((os.getpid(), host, port))
    if lookup is None:
        lookup = Lookup(host, port)
        lookup.bells.append(ring)
        start_new_thread(lookup.run, ())
    else:
        lookup.bells.append(ring)
    # Asked only now: a thread that ended before the append has not seen it.
    if lookup.found is not None:
        lookup.ring()
    return lookup


class Lookup:
    """One look-up, and who waits for it."""

    def __init__(self, host: str, port: int) -> None:
        self.found: Found | None = None
        self.bells: list[Callable[[], None]] = []
        self._host = host
        self._port = port

    def run(self) -> None:
        """Look the host up; in a thread of its own, where no signal handler ever runs."""
        key = (os.getpid(), self._host, self._port)
        _under_way[key] = self
        try:
            self.found = _resolve(self._host, self._port, 0)
        except OSError as error:
            self.found = error
        except BaseException as error:
            self.found = OSError(str(error))
        finally:
            _under_way.pop(key, None)
            self.ring()

    def ring(self) -> None:
        """Tell each that waits, once: taking one from the list is atomic."""
        while self.bells:
            try:
                bell = self.bells.pop()
            except IndexError:
                return
            bell()

    def result(self) -> list[Endpoint]:
        """The addresses, once they are found; or raises why there are none."""
        match self.found:
            case list():
                return self.found
            case OSError() as error:
                raise type(error)(*error.args)  # one of its own for each thread
            case None:
                raise TimeoutError


def _resolve(host: str, port: int, flags: int) -> list[Endpoint]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys(Endpoint(family, address) for family, _, _, _, address in found))
