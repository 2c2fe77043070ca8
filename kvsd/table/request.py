"""What the doors ask of a table: operations, and the Request that carries them to its actor.

Owns: the closed union of operations; every protocol that reaches a table translates to these and adds none.
Must not know any wire format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from kvsd.errors import KvsdError
from kvsd.table.budget import Budget
from kvsd.table.log import Read
from kvsd.types import Key, Value


@dataclass(frozen=True, slots=True)
class Get:
    """The key's value, or None."""

    key: Key


@dataclass(frozen=True, slots=True)
class Set:
    """Store the value; the result is None."""

    key: Key
    value: Value = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove the key; the result is the value that it had, or None."""

    key: Key


Operation: TypeAlias = Get | Set | Delete
Result: TypeAlias = Value | KvsdError | None

MAX_OPERATIONS: Final = 1_000
MAX_REPLY_BYTES: Final = 1 << 20
"""Where a Request is cut: a read of 256 KiB can ask for 26,000 values of 10 MiB each."""

FREE_BYTES: Final = 16 << 10
"""So much of a Request, and of its reply, is not counted against the budget: small requests are served even while
others use it up, and pay nothing for the accounting."""


class Origin:
    """Where Requests come from, one for each connection: their order, and their share of the memory budget."""

    __slots__ = ("budget", "is_cut")

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.is_cut = False
        """A Request of this origin was cut short. Those behind it come back untouched, until the origin has sent
        what it got, resets this, and asks again: so operations keep their order and replies their bound."""


class Request:
    """Operations for one table. No transaction: each succeeds or fails alone.

    `future` gets one Result for each operation, in order; fewer where the Request was cut, and the rest was not done.
    Whoever takes them gives `held_bytes` back to the origin's budget when they are sent.
    """

    __slots__ = ("future", "group", "held_bytes", "operations", "origin", "reads", "reply_bytes", "results", "waits")

    def __init__(self, operations: Sequence[Operation], origin: Origin, future: asyncio.Future[list[Result]]) -> None:
        self.operations = operations
        self.origin = origin
        self.future = future
        self.held_bytes = 0
        self.results: list[Result] = []
        self.reply_bytes = 0
        self.group = 0
        """The newest group of writes that a result depends on; 0 none."""
        self.reads: list[tuple[int, Read]] = []
        """Results that a worker must read from the disk."""
        self.waits = 0
        """How many things `resolve` still waits for."""

    def reset(self) -> None:
        """Forget all results, as if the Request had just come."""
        self.origin.budget.release(self.held_bytes)
        self.held_bytes = self.reply_bytes = self.group = self.waits = 0
        self.results = []
        self.reads = []

    def hold(self, size: int) -> bool:
        """Make room for a value of `size` bytes in the reply; False where the budget has none."""
        self.reply_bytes += size
        if self.reply_bytes <= FREE_BYTES:
            return True
        if not self.origin.budget.hold(size):
            self.reply_bytes -= size
            return False
        self.held_bytes += size
        return True

    def resolve(self) -> None:
        """One of the things that the results waited for has come; hand them over with the last."""
        self.waits -= 1
        if self.waits > 0:
            return
        if self.future.cancelled():  # the client has gone
            self.origin.budget.release(self.held_bytes)
        else:
            self.future.set_result(self.results)


Mailbox: TypeAlias = "asyncio.Queue[Request | None]"
"""A table's bounded queue; None ends its actor."""
