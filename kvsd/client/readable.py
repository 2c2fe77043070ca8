"""A look at whether a socket has something to read, or an end, without waiting."""

from __future__ import annotations

import select


def is_readable(descriptor: int) -> bool:
    """At this moment; the socket is a stranger to nobody's event loop, and none is needed."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(0))
    # eventlet takes `poll` away, and brings a `select` that has no limit of 1,024 descriptors.
    return bool(select.select([descriptor], [], [], 0)[0])
