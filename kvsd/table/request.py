"""What the doors ask of a table: operations, and the Request that carries them to its actor.

Owns: the closed union of operations; every protocol that reaches a table translates to these and adds none.
Must not know any wire format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from kvsd.errors import Busy, CorruptLog, KvsdError
from kvsd.table.budget import Budget
from kvsd.table.log import Read
from kvsd.table.segment import Stored
from kvsd.types import Key, Value, frozen

ABSENT: Final = 0
"""The version of a key without a value: as a condition, it must have none."""


@frozen
class Get:
    """The key's value, or None."""

    key: Key


@dataclass(frozen=True, slots=True)
class Fetch:
    """The key's value with what is known of it, as Found, or None."""

    key: Key


@frozen
class Set:
    """Store the value; the result is None, or the version that was made where `tells_version` says so.

    `expires_us` is absolute, in microseconds since 1970; 0 never. With `if_version` the key must have that version,
    or be ABSENT: else the result is a Conflict, and nothing has happened.
    """

    key: Key
    value: Value = field(repr=False)
    expires_us: int = 0
    if_version: int | None = None
    tells_version: bool = False


@frozen
class Delete:
    """Remove the key; the result is the value that it had, or None. `if_version` as for a Set."""

    key: Key
    if_version: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """A condition of a Batch: the key has this version, or is ABSENT."""

    key: Key
    if_version: int


@dataclass(frozen=True, slots=True)
class Update:
    """Replace the key's value by what `change` makes of it; the result is the Change's.

    `change` is pure and quick. It gets the value, or None, and the expiry in microseconds since 1970, 0 never; it may
    raise a RequestError, which is the result then.
    """

    key: Key
    change: Callable[[Value | None, int], Change]


@dataclass(frozen=True, slots=True)
class Batch:
    """All of the steps, or none of them where a condition fails or the disk does; the result is None.

    At most MAX_BATCH_STEPS and MAX_BATCH_BYTES of keys and values. All conditions are about the table as it is before
    the batch; of two steps on one key the later wins. Deleting an absent key is no failure.
    """

    steps: tuple[Set | Delete | Check, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """Whether the key has a value; the result is 1 or 0."""

    key: Key


@dataclass(frozen=True, slots=True)
class Scan:
    """A Page of keys in their order, from `start` (included) to `end` (excluded; None: all behind).

    A Page is what the table held at one moment, writes of the same connection before it included. Between pages other
    writes may come: a key that is there all the while is found once, one that comes or goes may be found or not.
    """

    start: Key
    end: Key | None
    limit: int
    values: bool
    """Whether the values are wanted, too."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many keys there are from `start` (included) to `end` (excluded; None: all behind)."""

    start: Key
    end: Key | None


@dataclass(frozen=True, slots=True)
class Describe:
    """What the table knows of itself, as Status."""


@dataclass(frozen=True, slots=True)
class Compact:
    """Compact the log in the background: start (all that holds garbage), pause, resume, or ask for the status alone.

    The result is CompactionProgress.
    """

    action: Literal["start", "pause", "resume", "status"]


@dataclass(frozen=True, slots=True)
class Found:
    """A value, and what its entry says of it."""

    value: Value = field(repr=False)
    version: int
    timestamp_us: int
    expires_us: int
    """0 never."""


@dataclass(frozen=True, slots=True)
class Change:
    """What an Update makes of a key."""

    result: Value | int | None
    value: Value | None = field(repr=False)
    """What is stored; None: the key is deleted."""
    expires_us: int = 0
    is_kept: bool = False
    """Nothing is written after all."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a scan."""

    items: list[tuple[Key, Value | None]]
    """In the order of the keys; values are None where they were not asked for."""
    next: Key | None
    """Where the next page starts; None: there is nothing behind this one."""


@dataclass(frozen=True, slots=True)
class Status:
    """A table in figures."""

    state: str
    """writable, full (deletes only) or read-only."""
    keys: int
    keys_with_expiry: int
    last_seq: int
    segments: int
    log_bytes: int
    dead_bytes: int
    """Of the log: entries that newer ones have replaced, tombstones not included."""
    cached_bytes: int
    """Values in memory."""


@dataclass(frozen=True, slots=True)
class CompactionProgress:
    """How far the compactions have come that are under way, or were the last."""

    state: str
    """idle, running, paused, or stopped: a failure left what only the next start settles."""
    segments_done: int
    segments_total: int
    bytes_done: int
    bytes_total: int
    reclaimed_bytes: int
    error: str
    """What has ended the last one early; empty where nothing has."""


Operation: TypeAlias = Get | Fetch | Set | Delete | Update | Batch | Exists | Scan | Count | Describe | Compact
Result: TypeAlias = Value | int | Found | Page | Status | CompactionProgress | KvsdError | None

MAX_PAGE_KEYS: Final = 1_000


def work_of(operation: Operation) -> int:
    """The least that the operation costs, in simple ones: a batch as much as all of its steps."""
    return len(operation.steps) if isinstance(operation, Batch) else 1


MAX_OPERATIONS: Final = 500
"""Simple ones, or as much work: then a Request is cut."""
MAX_REPLY_BYTES: Final = 1 << 20
"""And then, too: a read of 256 KiB can ask for 26,000 values of 10 MiB each."""

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

    __slots__ = (
        "barrier",
        "extra_work",
        "future",
        "group",
        "held_bytes",
        "operations",
        "origin",
        "reads",
        "reply_bytes",
        "results",
        "waits",
        "warm",
        "warming",
    )

    def __init__(self, operations: Sequence[Operation], origin: Origin, future: asyncio.Future[list[Result]]) -> None:
        self.operations = operations
        self.origin = origin
        self.future = future
        self.held_bytes = 0
        self.results: list[Result] = []
        self.reply_bytes = 0
        self.extra_work = 0
        """The work of the results beyond one simple operation each: the steps of batches, the keys of pages."""
        self.group = 0
        """The newest group of writes that a result depends on; 0 none."""
        self.reads: list[tuple[int, Read, Callable[[Stored], None]]] = []
        """The places of results that a worker must read from the disk, and what then puts them there."""
        self.warm: tuple[int, Value | CorruptLog | Busy] | None = None
        """What was read for the Update that comes next: the seq, and the value."""
        self.warming: Read | None = None
        """What a worker reads for it at the moment."""
        self.barrier = 0
        """The group that must be settled before the scan that comes next; 0 none."""
        self.waits = 0
        """How many things `resolve` still waits for."""

    def reset(self) -> None:
        """Forget all results, as if the Request had just come."""
        self.origin.budget.release(self.held_bytes)
        self.held_bytes = self.reply_bytes = self.extra_work = self.group = self.waits = 0
        self.results = []
        self.reads = []
        self.warm = self.warming = None
        self.barrier = 0

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
