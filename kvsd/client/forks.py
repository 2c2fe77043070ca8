"""The connections of a child process: it must neither use nor end those of its parent.

Owns: the list of open connections, and cutting them off after a fork. Knows nothing of what they are used for.
"""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Inherited(Protocol):
    """A thing that a child process finds and must not touch."""

    def after_fork(self) -> None:
        """Called in the child, before anything else runs there."""


_watched: WeakSet[Inherited] = WeakSet()


def watch(inherited: Inherited) -> None:
    """Have `inherited` told of a fork as long as it lives."""
    _watched.add(inherited)


def cut_off(descriptor: int) -> None:
    """Put /dev/null in the place of a socket, which the parent goes on using.

    A close would do for this process alone, too; but whatever still holds the number (a transport, a TLS object, a
    selector) could then reach the connection, or the next file that gets the number. Nothing is sent: no TLS goodbye,
    no shutdown.
    """
    try:
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # no descriptor is left
        os.close(descriptor)
        return
    try:
        os.dup2(nowhere, descriptor, inheritable=False)
    finally:
        os.close(nowhere)


def _tell_all() -> None:
    for inherited in list(_watched):
        inherited.after_fork()


os.register_at_fork(after_in_child=_tell_all)
