"""What each operation makes of a Store, decided at once against all writes that were decided before it.

Owns: the results of operations, and what a result still waits for. Must not know tasks, workers or commits: what an
operation needs before it can be decided is returned, and whoever has got it runs the Request again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias, assert_never

from kvsd.errors import Busy, Conflict, CorruptLog, InvalidValue, ReadOnly, RequestError, TableUnavailable
from kvsd.table.budget import out_of_memory
from kvsd.table.log import Read
from kvsd.table.request import (
    ABSENT,
    MAX_OPERATIONS,
    MAX_PAGE_KEYS,
    MAX_REPLY_BYTES,
    Batch,
    Check,
    Compact,
    CompactionProgress,
    Count,
    Delete,
    Describe,
    Exists,
    Fetch,
    Found,
    Get,
    Page,
    Request,
    Result,
    Scan,
    Set,
    Status,
    Update,
)
from kvsd.table.segment import Stored
from kvsd.table.store import Store
from kvsd.types import MAX_BATCH_BYTES, MAX_BATCH_STEPS, Key, Value


@dataclass(frozen=True, slots=True)
class NeedsValue:
    """The value that an Update starts from is on the disk; it goes to `Request.warm`."""

    read: Read


@dataclass(frozen=True, slots=True)
class NeedsCommit:
    """A scan sees what is committed: the Request's `barrier` must be first. A write finds no room in the group."""


@dataclass(frozen=True, slots=True)
class NeedsOrder:
    """The keys must be sorted first."""


Need: TypeAlias = NeedsValue | NeedsCommit | NeedsOrder


class Gatekeeper(Protocol):
    """Who knows whether the log can be written, and is told of damage."""

    def refuse_write(self, *, is_deletion: bool) -> ReadOnly | None:
        """None where it can be written."""

    def damaged(self, error: CorruptLog) -> CorruptLog: ...
    def describe(self) -> Status: ...
    def compact(self, operation: Compact) -> CompactionProgress | ReadOnly: ...


class Operations:
    """Runs the operations of Requests, in the order in which they are given."""

    def __init__(self, store: Store, gatekeeper: Gatekeeper) -> None:
        self._store = store
        self._gatekeeper = gatekeeper

    def run(self, request: Request) -> Need | None:
        """Decide the operations of `request`, which has no results yet; stops where one needs something first.

        Only the first operation of a Request ever blocks it: at a later one it is cut.
        """
        results = request.results
        result: Result | Need
        for operation in request.operations:
            if len(results) + request.extra_work >= MAX_OPERATIONS or request.reply_bytes > MAX_REPLY_BYTES:
                request.origin.is_cut = True
                break
            match operation:
                case Get():
                    result = self._get(operation.key, request)
                case Set() | Delete() | Update() | Batch() if self._store.is_group_full:
                    result = NeedsCommit()
                case Set():
                    result = self._set(operation, request)
                case Delete():
                    result = self._delete(operation, request)
                case Fetch():
                    result = self._fetch(operation.key, request)
                case Exists():
                    result = int(self._version(operation.key, request) != ABSENT)
                case Update():
                    result = self._update(operation, request)
                case Batch():
                    result = self._batch(operation, request)
                case Scan():
                    result = self._when_committed(request) or self._scan(operation, request)
                case Count():
                    result = self._when_committed(request) or self._count(operation)
                case Describe():
                    result = self._gatekeeper.describe()
                case Compact():
                    result = self._gatekeeper.compact(operation)
                case _:
                    assert_never(operation)
            if isinstance(result, _NEEDS):
                if not results:
                    return result
                # Cut here: the writes before it may be committed by the time that a commit fails behind it, and what
                # is blocked is executed anew then.
                if isinstance(result, NeedsValue):
                    result.read.done()
                request.barrier = 0
                request.origin.is_cut = True
                break
            results.append(result)
        return None

    # Reads

    def _get(self, key: Key, request: Request) -> Result:
        """The value as all decided writes leave it. A value that must come from the disk is put in place later."""
        pending = self._store.pending.get(key)
        if pending is not None:
            request.group = max(request.group, pending.group)
            value = None if pending.expires_us and not self._store.version(key) else pending.value
            return value if value is None or request.hold(len(value)) else out_of_memory()
        try:
            found = self._store.get(key, request.hold)
        except CorruptLog as error:
            return self._gatekeeper.damaged(error)
        except Busy as error:
            return error
        if isinstance(found, Read):
            place = len(request.results)
            self._read_later(found, request, place, lambda stored: request.results.__setitem__(place, stored.value))
            return None
        return found

    def _fetch(self, key: Key, request: Request) -> Result:
        version, expires_us = self._version(key, request), self._store.expires_us(key)
        pending = self._store.pending.get(key)
        if version == ABSENT:
            return None
        if pending is not None and pending.value is not None:
            if not request.hold(len(pending.value)):
                return out_of_memory()
            return Found(pending.value, version, pending.timestamp_us, expires_us)
        try:
            stored = self._store.entry(key, request.hold)
        except CorruptLog as error:
            return self._gatekeeper.damaged(error)
        except Busy as error:
            return error
        if isinstance(stored, Read):
            place = len(request.results)

            def put(stored: Stored) -> None:
                request.results[place] = Found(stored.value, version, stored.timestamp_us, expires_us)

            self._read_later(stored, request, place, put)
            return None
        return None if stored is None else Found(stored.value, version, stored.timestamp_us, expires_us)

    def _read_later(self, read: Read, request: Request, place: int, put: Callable[[Stored], None]) -> None:
        request.reads.append((place, read, put))

    def _version(self, key: Key, request: Request) -> int:
        """Its version as all decided writes leave it; who is told of it waits for them."""
        pending = self._store.pending.get(key)
        if pending is not None:
            request.group = max(request.group, pending.group)
        return self._store.version(key)

    # Writes

    def _set(self, operation: Set, request: Request) -> Result:
        refusal = self._gatekeeper.refuse_write(is_deletion=False)
        if refusal is not None:
            return refusal
        if operation.if_version is not None:
            conflict = self._conflict(operation.key, operation.if_version, request)
            if conflict is not None:
                return conflict
        version = self._store.set(operation.key, operation.value, operation.expires_us)
        request.group = self._store.group
        return version if operation.tells_version else None

    def _delete(self, operation: Delete, request: Request) -> Result:
        """A damaged value does not keep its key from being deleted; the result says both then."""
        refusal = self._gatekeeper.refuse_write(is_deletion=True)
        if refusal is not None:
            return refusal
        key = operation.key
        if operation.if_version is not None:
            conflict = self._conflict(key, operation.if_version, request)
            if conflict is not None:
                return conflict
        reads = len(request.reads)
        old = self._get(key, request)
        match old:
            case None if len(request.reads) == reads:
                if self._store.bury(key):
                    request.group = self._store.group
                return None
            case Busy():
                return old
            case CorruptLog():
                old = deleted_anyway(old)
            case _:
                pass
        self._store.delete(key)
        request.group = self._store.group
        return old

    def _update(self, operation: Update, request: Request) -> Result | Need:
        refusal = self._gatekeeper.refuse_write(is_deletion=False)
        if refusal is not None:
            return refusal
        value = self._value(operation.key, request)
        if value is not None and not isinstance(value, bytes):
            return value
        try:
            change = operation.change(value, self._store.expires_us(operation.key) if value is not None else 0)
        except RequestError as error:
            return error
        if isinstance(change.result, bytes) and not request.hold(len(change.result)):
            return out_of_memory()
        if change.is_kept:
            return change.result
        # A few bytes can ask for the whole of a large value to be written anew, and a thousand times in one read.
        if change.value is not None and not request.hold(len(change.value)):
            return out_of_memory()
        if change.value is not None:
            self._store.set(operation.key, change.value, change.expires_us)
        elif value is not None:
            self._store.delete(operation.key)
        elif not self._store.bury(operation.key):
            return change.result
        request.group = self._store.group
        return change.result

    def _value(self, key: Key, request: Request) -> Value | CorruptLog | Busy | NeedsValue | None:
        """What an Update starts from."""
        warm, request.warm = request.warm, None
        if self._version(key, request) == ABSENT:
            return None
        pending = self._store.pending.get(key)
        if pending is not None:
            return pending.value
        try:
            found = self._store.get(key)
        except CorruptLog as error:
            return self._gatekeeper.damaged(error)
        if not isinstance(found, Read):
            return found
        if warm is not None and warm[0] == found.seq:
            found.done()
            return warm[1]
        return NeedsValue(found)

    def _batch(self, operation: Batch, request: Request) -> Result:
        steps = operation.steps
        size = sum(len(step.key) + (len(step.value) if isinstance(step, Set) else 0) for step in steps)
        request.extra_work += len(steps)
        if len(steps) > MAX_BATCH_STEPS or size > MAX_BATCH_BYTES:
            return InvalidValue(
                f"a batch has at most {MAX_BATCH_STEPS} steps and {MAX_BATCH_BYTES} bytes of keys and values"
            )
        refusal = self._gatekeeper.refuse_write(is_deletion=not any(isinstance(step, Set) for step in steps))
        if refusal is not None:
            return refusal
        for step in steps:
            if step.if_version is not None:
                conflict = self._conflict(step.key, step.if_version, request)
                if conflict is not None:
                    return conflict
        writes: list[tuple[Key, Value | None, int]] = []
        written: set[Key] = set()
        for step in steps:
            match step:
                case Set():
                    writes.append((step.key, step.value, step.expires_us))
                    written.add(step.key)
                case Delete() if (
                    step.key in written
                    or self._version(step.key, request) != ABSENT
                    or self._store.has_expired(step.key)
                ):
                    writes.append((step.key, None, 0))
                case Delete() | Check():
                    pass
                case _:
                    assert_never(step)
        if writes:
            self._store.batch(writes)
            request.group = self._store.group
        return None

    def _conflict(self, key: Key, if_version: int, request: Request) -> Conflict | None:
        version = self._version(key, request)
        if version == if_version:
            return None
        is_now = f"has version {version}" if version else "does not exist"
        return Conflict(f"the key {is_now}; nothing was changed. Read it again, and decide anew", version)

    # Scans

    def _when_committed(self, request: Request) -> Need | None:
        """Have the writes that were decided before a scan committed first, and the keys sorted."""
        if not request.barrier:
            request.barrier = self._store.pending_group
        if request.barrier > self._store.settled_group:
            return NeedsCommit()
        if not self._store.is_ordered:
            return NeedsOrder()
        request.barrier = 0
        return None

    def _count(self, operation: Count) -> int:
        return self._store.count(operation.start, operation.end)

    def _scan(self, operation: Scan, request: Request) -> Result:
        """A page; it ends early where its values would make too large a reply."""
        store = self._store
        keys, rest = store.page(operation.start, operation.end, max(1, min(operation.limit, MAX_PAGE_KEYS)))
        request.extra_work += len(keys)
        items: list[tuple[Key, Value | None]] = []
        place = len(request.results)

        def put_at(number: int, key: Key) -> Callable[[Stored], None]:
            def put(stored: Stored) -> None:
                page = request.results[place]
                if isinstance(page, Page):  # else another value of it was damaged
                    page.items[number] = key, stored.value

            return put

        for key in keys:
            if items and request.reply_bytes > MAX_REPLY_BYTES:
                rest = key
                break
            value: Value | Read | None = None
            try:
                if not request.hold(len(key) + _ITEM_BYTES):
                    raise out_of_memory()
                if operation.values:
                    value = store.get(key, request.hold)
            except CorruptLog as error:
                return self._gatekeeper.damaged(error)
            except Busy as error:
                if not items:
                    return error
                rest = key
                break
            if isinstance(value, Read):
                self._read_later(value, request, place, put_at(len(items), key))
                value = None
            items.append((key, value))
        return Page(items, rest)


_NEEDS: Final = (NeedsValue, NeedsCommit, NeedsOrder)

_ITEM_BYTES: Final = 100
"""What an item of a Page keeps in memory beside its key and value."""


def deleted_anyway(error: CorruptLog | Busy) -> CorruptLog | TableUnavailable:
    """The answer where the key was deleted, and its old value could not be read."""
    text = f"{error}. The key was deleted"
    return CorruptLog(text, error.path, error.offset) if isinstance(error, CorruptLog) else TableUnavailable(text)
