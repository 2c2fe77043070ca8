"""An atomic batch while it is put together.

Owns: its steps. Knows nothing of connections: the shell that made it sends it.
"""

from __future__ import annotations

from kvsd.client import numbers
from kvsd.client.numbers import ANY_VERSION, Unconditional
from kvsd.protocol import engine
from kvsd.types import Duration, KeyLike, ValueLike, to_bytes


class Batch:
    """Sets, deletes and conditions on one table, of which all happen or none; at most 1,000, and 16 MiB.

    All conditions are about the table as it is before the batch; of two steps on one key the later wins.
    """

    def __init__(self) -> None:
        self.steps: list[engine.Step] = []

    def set(
        self,
        key: KeyLike,
        value: ValueLike,
        *,
        ttl: Duration | None = None,
        if_version: int | Unconditional = ANY_VERSION,
        if_absent: bool = False,
    ) -> None:
        """Store `value` under `key`."""
        self.steps.append(
            engine.Store(
                None,
                None,
                to_bytes(key),
                to_bytes(value),
                None if ttl is None else numbers.milliseconds(ttl),
                numbers.condition(if_version, if_absent=if_absent),
            )
        )

    def delete(self, key: KeyLike, *, if_version: int | Unconditional = ANY_VERSION) -> None:
        """Remove `key`; an absent one is no failure."""
        self.steps.append(engine.Remove(None, None, to_bytes(key), numbers.condition(if_version)))

    def check(self, key: KeyLike, version: int) -> None:
        """Only if `key` has this version; 0: only if it is absent."""
        self.steps.append(engine.Check(to_bytes(key), numbers.whole("version", version)))
