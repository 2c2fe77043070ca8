"""Histories of concurrent calls on single keys, and whether one order explains them.

Owns: the recorder, the model of a key (a register with set, get and delete), and a checker after Wing and Gong with
Lowe's memory of configurations. Must not know servers or clients.

A history is linearizable if every call can be given one moment between its start and its return, such that the calls,
in the order of these moments, did what a key does. A call whose outcome nobody knows has no return: its moment is any
after its start, or never. Keys are independent, so each is checked by itself.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Final

NEVER: Final = 1 << 62
"""The return of a call whose outcome is unknown."""

MAX_CONFIGURATIONS: Final = 1_000_000
"""About a second for each; a history of thousands of calls by a few clients needs a few thousand."""


class Call(StrEnum):
    SET = auto()
    GET = auto()
    DELETE = auto()


@dataclass(slots=True)
class Operation:
    """One call on a key. `value` is what a set wrote, what a get read, what a delete found."""

    call: Call
    started: int
    returned: int = NEVER
    value: bytes | None = None

    def __str__(self) -> str:
        shown = "absent" if self.value is None else repr(self.value[:24])
        returned = "?" if self.returned == NEVER else self.returned
        return f"{self.call} {shown} [{self.started}, {returned}]"


@dataclass(slots=True)
class Recorder:
    """Collects what concurrent tasks of one event loop call. Time is a count of starts and returns."""

    operations: defaultdict[bytes, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    _now: int = 0

    def start(self, key: bytes, call: Call, value: bytes | None = None) -> Operation:
        """`value` is what a set is about to write, which must differ from what all others write."""
        operation = Operation(call, self._tick(), value=value)
        self.operations[key].append(operation)
        return operation

    def finish(self, operation: Operation, found: bytes | None = None) -> None:
        """The call was answered; a get or a delete found `found`."""
        operation.returned = self._tick()
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


@dataclass(frozen=True, slots=True)
class _Configuration:
    """Which calls have had their moment so far, and what the key holds."""

    first: int
    """All certain calls before this one."""
    ahead: int
    """Bit n: the certain call `first + n` too."""
    maybe: int
    """Bit n: the uncertain set n has happened."""
    deletions: int
    """So many uncertain deletions have."""
    value: bytes | None


def check_key(operations: list[Operation]) -> None:
    """Search depth first for an order of the calls on one key, which is absent at first."""
    certain = sorted((o for o in operations if o.returned != NEVER), key=lambda o: o.started)
    seen = {o.value for o in certain if o.call is not Call.SET}
    # An uncertain get says nothing, and an uncertain set that nobody saw may as well never have happened.
    sets = [o for o in operations if o.returned == NEVER and o.call is Call.SET and o.value in seen]
    # Uncertain deletions differ by their start alone, so each time the oldest one is as good as any.
    deletions = sorted(o.started for o in operations if o.returned == NEVER and o.call is Call.DELETE)

    stack = [_Configuration(0, 0, 0, 0, None)]
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
            maybe = here.maybe | 1 << number
            steps.append(_Configuration(here.first, here.ahead, maybe, here.deletions, uncertain.value))
    if here.deletions < len(deletions) and deletions[here.deletions] < first_return and here.value is not None:
        steps.append(_Configuration(here.first, here.ahead, here.maybe, here.deletions + 1, None))
    for index in reversed(candidates):
        operation = certain[index]
        if operation.call is not Call.SET and operation.value != here.value:
            continue
        value = here.value if operation.call is Call.GET else operation.value if operation.call is Call.SET else None
        first, ahead = here.first, here.ahead | 1 << (index - here.first)
        while ahead & 1:
            first, ahead = first + 1, ahead >> 1
        steps.append(_Configuration(first, ahead, here.maybe, here.deletions, value))
    return steps
