"""Memory that is given back a little at a time.

Owns: how. Freeing millions of objects in one call keeps the interpreter from everybody for as long as that takes, on
whichever thread it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any


def emptying(mapping: MutableMapping[Any, Any], at_once: int) -> Iterator[None]:
    """Remove all items, so many at each step."""
    while mapping:
        for _ in range(min(len(mapping), at_once)):
            mapping.popitem()
        yield
