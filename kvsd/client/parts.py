"""Many calls in stretches that are sent at once.

Owns: where a stretch ends. Knows nothing of connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from kvsd.client.calls import Call, value_bytes

R = TypeVar("R")

PART_BYTES: Final = 1 << 20
"""Values sent at once; a longer one goes alone."""


def parts(batch: Iterable[Call[R]], most: int) -> Iterator[list[Call[R]]]:
    """`batch` in stretches of at most `most` calls; what is behind a stretch is looked at only after it."""
    part: list[Call[R]] = []
    part_bytes = 0
    for call in batch:
        size = value_bytes(call)
        if part and (len(part) == most or part_bytes + size > PART_BYTES):
            yield part
            part, part_bytes = [], 0
        part.append(call)
        part_bytes += size
    if part:
        yield part
