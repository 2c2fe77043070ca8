"""Histories of concurrent calls on single keys, and whether one order explains them.

Owns: the recorder, the model of a key (a register with set, get and delete, and sets that depend on its version), and a
checker after Wing and Gong with Lowe's memory of configurations. Must not know servers or clients.

A history is linearizable if every call can be given one moment between its start and its return, such that the calls,
in the order of these moments, did what a key does. A call whose outcome nobody knows has no return: its moment is any
after its start, or never. Keys are independent, so each is checked by itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Final, NamedTuple, assert_never

NEVER: Final = 1 << 62
"""The return of a call whose outcome is unknown."""

ABSENT: Final = 0
"""The version of a key without a value."""

MAX_CONFIGURATIONS: Final = 1_000_000
"""Half a minute; a history of thousands of calls by a few clients needs a few thousand."""


class Held(NamedTuple):
    """What a key holds. A writer is not told its version, so that is known once somebody has seen it."""

    value: bytes | None = None
    lowest: int = 0
    """The version, or while that is not known, the lowest that it can be: each write has a higher one than the last."""
    is_known: bool = False

    def seen_with(self, version: int) -> Held | None:
        """Somebody was told that this is the version; None if it cannot be."""
        if self.value is None:
            return self if version == ABSENT else None
        is_possible = version == self.lowest or (version > self.lowest and not self.is_known)
        return Held(self.value, version, is_known=True) if is_possible else None

    def replaced_by(self, value: bytes | None) -> Held:
        return Held(value, self.lowest + 1)


class Call(StrEnum):
    SET = auto()
    GET = auto()
    DELETE = auto()


@dataclass(slots=True)
class Operation:
    """One call on a key."""

    call: Call
    started: int
    returned: int = NEVER
    value: bytes | None = None
    """What a set wrote, a get read, a delete found."""
    if_version: int | None = None
    """The condition of a set; ABSENT: only if there is no value."""
    version: int | None = None
    """What the key had: as a get was told, or a set that was refused. None: the call was not told."""

    def explained_by(self, held: Held) -> Held | None:
        """What the key holds after this call, if it returned what it did because the key held `held`; else None."""
        match self.call:
            case Call.GET:
                if self.value != held.value:
                    return None
                return held if self.version is None else held.seen_with(self.version)
            case Call.DELETE:
                if self.value != held.value:
                    return None
                return held if held.value is None else held.replaced_by(None)
            case Call.SET if self.version is not None:
                return None if self.version == self.if_version else held.seen_with(self.version)
            case Call.SET:
                met = held if self.if_version is None else held.seen_with(self.if_version)
                return None if met is None else met.replaced_by(self.value)
            case _:
                assert_never(self.call)

    @property
    def is_blind(self) -> bool:
        """Whether the call would have gone the same way whatever the key held."""
        return self.call is Call.SET and self.if_version is None

    def __str__(self) -> str:
        shown = "absent" if self.value is None else repr(self.value[:24])
        condition = "" if self.if_version is None else f" if version {self.if_version}"
        told = "" if self.version is None else f" told version {self.version}"
        returned = "?" if self.returned == NEVER else self.returned
        return f"{self.call} {shown}{condition}{told} [{self.started}, {returned}]"


@dataclass(slots=True)
class Recorder:
    """Collects what concurrent tasks of one event loop call. Time is a count of starts and returns."""

    operations: defaultdict[bytes, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _now: int = 0

    def start(self, key: bytes, call: Call, value: bytes | None = None, *, if_version: int | None = None) -> Operation:
        """`value` is what a set is about to write, which must differ from what all others write."""
        operation = Operation(call, self._tick(), value=value, if_version=if_version)
        self.operations[key].append(operation)
        return operation

    def finish(self, operation: Operation, found: bytes | None = None, *, version: int | None = None) -> None:
        """The call was answered. A get or a delete found `found`; a get or a refused set was told `version`."""
        operation.returned = self._tick()
        operation.version = version
        if operation.call is not Call.SET:
            operation.value = found

    def withdraw(self, key: bytes, operation: Operation) -> None:
        """The call has certainly not been carried out, nor learned anything."""
        self.operations[key].remove(operation)

    def _tick(self) -> int:
        self._now += 1
        return self._now


class NotLinearizable(AssertionError):
    """No order of the calls explains what they returned."""


class Undecided(Exception):
    """The search took more than MAX_CONFIGURATIONS."""


def check(recorder: Recorder) -> None:
    """Raises NotLinearizable, naming the key and the call that no order reaches, or Undecided."""
    for key, operations in recorder.operations.items():
        try:
            check_key(operations)
        except NotLinearizable as error:
            raise NotLinearizable(f"key {key!r}: {error}") from None


class _Configuration(NamedTuple):
    """Which calls have had their moment so far, and what the key holds."""

    first: int = 0
    """All certain calls before this one."""
    ahead: int = 0
    """Bit n: the certain call `first + n` too."""
    maybe: int = 0
    """Bit n: the uncertain set n has happened."""
    deletions: int = 0
    """So many uncertain deletions have."""
    held: Held = Held()
    is_news: bool = False
    """An uncertain call was the last. The next must not be blind to it: else it may as well never have happened."""


def check_key(operations: list[Operation]) -> None:
    """Search depth first for an order of the calls on one key, which is absent at first."""
    certain = sorted((o for o in operations if o.returned != NEVER), key=lambda o: o.started)
    seen = {o.value for o in certain if o.call is not Call.SET}
    named = {o.version for o in certain if o.call is Call.GET} | {ABSENT, None}
    unnamed = {version for o in operations if o.call is Call.SET for version in (o.version, o.if_version)} - named
    # An uncertain get says nothing, and an uncertain set that nobody saw may as well never have happened. Who was told
    # a version that no get has put a name to may have seen any of them.
    uncertain = [o for o in operations if o.returned == NEVER]
    sets = [o for o in uncertain if o.call is Call.SET and (unnamed or o.value in seen)]
    # Uncertain deletions differ by their start alone, so each time the oldest one is as good as any.
    deletions = sorted(o.started for o in uncertain if o.call is Call.DELETE)

    stack = [_Configuration()]
    visited = set(stack)
    furthest = stack[0]
    while stack:
        here = stack.pop()
        if here.first == len(certain):
            return
        furthest = max(furthest, here, key=lambda configuration: configuration.first)
        for there in _steps(here, certain, sets, deletions):
            if there not in visited:
                visited.add(there)
                stack.append(there)
        if len(visited) > MAX_CONFIGURATIONS:
            raise Undecided(f"{len(certain)} calls, {len(sets)} uncertain sets, {len(deletions)} uncertain deletions")
    stuck = certain[furthest.first]
    near = [str(o) for o in certain[max(0, furthest.first - 6) : furthest.first + 6]]
    raise NotLinearizable(f"nothing explains {stuck}; the calls around it: {', '.join(near)}")


def _steps(
    here: _Configuration, certain: list[Operation], sets: list[Operation], deletions: list[int]
) -> list[_Configuration]:
    """Every configuration that one more call leads to; the most promising last."""
    candidates = []
    first_return = NEVER
    for index in range(here.first, len(certain)):
        operation = certain[index]
        if operation.started > first_return:
            break
        if not here.ahead >> (index - here.first) & 1:
            candidates.append(index)
            first_return = min(first_return, operation.returned)
    candidates = [index for index in candidates if certain[index].started < first_return]

    steps = []
    for number, uncertain in enumerate(sets):
        if uncertain.started < first_return and not here.maybe >> number & 1:
            held = None if here.is_news and uncertain.is_blind else uncertain.explained_by(here.held)
            if held is not None:
                steps.append(here._replace(maybe=here.maybe | 1 << number, held=held, is_news=True))
    may_delete = here.deletions < len(deletions) and deletions[here.deletions] < first_return
    if may_delete and here.held.value is not None and not here.is_news:
        steps.append(here._replace(deletions=here.deletions + 1, held=here.held.replaced_by(None), is_news=True))
    for index in reversed(candidates):
        operation = certain[index]
        held = None if here.is_news and operation.is_blind else operation.explained_by(here.held)
        if held is None:
            continue
        first, ahead = here.first, here.ahead | 1 << (index - here.first)
        while ahead & 1:
            first, ahead = first + 1, ahead >> 1
        steps.append(_Configuration(first, ahead, here.maybe, here.deletions, held))
    return steps
