"""The checker itself: what it must accept, and what it must not let pass."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.crash import history
from tests.crash.history import ABSENT, NEVER, Call, NotLinearizable, Operation, Recorder, Undecided, check, check_key


def put(
    value: bytes, started: int, returned: int = NEVER, *, only_if: int | None = None, told: int | None = None
) -> Operation:
    """With `told`, it was refused with this version."""
    return Operation(Call.SET, started, returned, value, only_if, told)


def get(value: bytes | None, started: int, returned: int = NEVER, *, told: int | None = None) -> Operation:
    """With `told`, it was told this version with the value."""
    return Operation(Call.GET, started, returned, value, version=told)


def delete(found: bytes | None, started: int, returned: int = NEVER) -> Operation:
    return Operation(Call.DELETE, started, returned, found)


LINEARIZABLE = {
    "nothing": [],
    "one after the other": [put(b"a", 1, 2), get(b"a", 3, 4), delete(b"a", 5, 6), get(None, 7, 8)],
    "a get beside a set sees the old value": [put(b"a", 1, 2), put(b"b", 3, 6), get(b"a", 4, 5)],
    "a get beside a set sees the new value": [put(b"a", 1, 2), put(b"b", 3, 6), get(b"b", 4, 5)],
    "sets beside each other take effect in any order": [put(b"a", 1, 4), put(b"b", 2, 3), get(b"a", 5, 6)],
    "of two deletes one finds the value": [put(b"a", 1, 2), delete(None, 3, 5), delete(b"a", 4, 6)],
    "an uncertain set never happens": [put(b"a", 1, 2), put(b"b", 3), get(b"a", 4, 5)],
    "an uncertain set happens late": [put(b"a", 1, 2), put(b"b", 3), get(b"a", 4, 5), get(b"b", 6, 7)],
    "an uncertain delete never happens": [put(b"a", 1, 2), delete(None, 3), get(b"a", 4, 5)],
    "an uncertain delete happens late": [put(b"a", 1, 2), delete(None, 3), put(b"b", 4, 5), get(None, 6, 7)],
    "two uncertain deletes happen": [
        *(delete(None, 1), delete(None, 2), put(b"a", 3, 4), get(None, 5, 6), put(b"b", 7, 8), get(None, 9, 10)),
    ],
    "an uncertain set that a delete found": [put(b"a", 1), delete(b"a", 2, 3), get(None, 4, 5)],
    "an uncertain get says nothing": [put(b"a", 1, 2), get(None, 3), get(b"a", 4, 5)],
    "versions rise, with gaps": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), get(b"b", 7, 8, told=9), get(b"b", 9, 10, told=9)),
    ],
    "an absent key has version 0, before and after": [
        *(get(None, 1, 2, told=ABSENT), put(b"a", 3, 4), delete(b"a", 5, 6), get(None, 7, 8, told=ABSENT)),
    ],
    "a set on the version that was read": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6, only_if=7), get(b"b", 7, 8, told=8)),
    ],
    "of two sets on one version the second is told that of the first": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7)),
        *(put(b"b", 5, 9, only_if=7), put(b"c", 6, 8, only_if=7, told=8), get(b"b", 10, 11, told=8)),
    ],
    "a set on a version that a conflict told": [
        *(put(b"a", 1, 2), put(b"b", 3, 4, only_if=ABSENT, told=5), put(b"c", 5, 6, only_if=5), get(b"c", 7, 8)),
    ],
    "of two sets on absence one is refused": [
        *(put(b"a", 1, 4, only_if=ABSENT, told=3), put(b"b", 2, 3, only_if=ABSENT), get(b"b", 5, 6, told=3)),
    ],
    "a refusal tells of absence": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), delete(b"a", 5, 6), put(b"b", 7, 8, only_if=7, told=ABSENT)),
    ],
    "a refusal tells of an uncertain set that nobody reads": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5), put(b"c", 6, 7, only_if=7, told=8), put(b"d", 8, 9)),
    ],
    "a refusal tells of an uncertain set on a condition": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, only_if=7), put(b"c", 6, 7, only_if=7, told=9)),
    ],
    "an uncertain set on absence, behind an uncertain delete": [
        *(put(b"a", 1, 2), delete(None, 3), put(b"b", 4, only_if=ABSENT), get(b"b", 5, 6)),
    ],
    "an uncertain set on a condition that no longer holds": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, only_if=7), put(b"c", 6, 7), get(b"c", 8, 9)),
    ],
}

NOT_LINEARIZABLE = {
    "a stale read": [put(b"a", 1, 2), put(b"b", 3, 4), get(b"a", 5, 6)],
    "an acknowledged set is lost": [put(b"a", 1, 2), get(None, 3, 4)],
    "an acknowledged delete is lost": [put(b"a", 1, 2), delete(b"a", 3, 4), get(b"a", 5, 6)],
    "a lost update: both deletes found the value": [put(b"a", 1, 2), delete(b"a", 3, 5), delete(b"a", 4, 6)],
    "a value that nobody wrote": [put(b"a", 1, 2), get(b"z", 3, 4)],
    "a value before it was written": [get(b"a", 1, 2), put(b"a", 3, 4)],
    "reads that go back in time": [put(b"a", 1, 2), put(b"b", 3, 8), get(b"b", 4, 5), get(b"a", 6, 7)],
    "an uncertain set happens twice": [
        *(put(b"a", 1), get(b"a", 2, 3), put(b"b", 4, 5), get(b"b", 6, 7), get(b"a", 8, 9)),
    ],
    "an uncertain set is seen before its start": [get(b"a", 1, 2), put(b"a", 3)],
    "an uncertain set comes and goes": [put(b"a", 1, 2), put(b"b", 3), get(b"b", 4, 5), get(b"a", 6, 7)],
    "one uncertain delete cannot happen twice": [
        *(delete(None, 1), put(b"a", 2, 3), get(None, 4, 5), put(b"b", 6, 7), get(None, 8, 9)),
    ],
    "a lost update: both sets on one version succeeded": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 9, only_if=7), put(b"c", 6, 8, only_if=7)),
    ],
    "both sets on absence succeeded": [put(b"a", 1, 4, only_if=ABSENT), put(b"b", 2, 3, only_if=ABSENT)],
    "a set on a version that was replaced": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), put(b"c", 7, 8, only_if=7)),
    ],
    "a set on absence, though there was a value": [put(b"a", 1, 2), put(b"b", 3, 4, only_if=ABSENT)],
    "a conflict that tells a version that never was": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6, only_if=6, told=9), get(b"a", 7, 8, told=7)),
    ],
    "a conflict that tells the version of a value gone": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), put(b"c", 7, 8, only_if=6, told=7)),
    ],
    "a conflict with the very version it was on": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6, only_if=7, told=7)),
    ],
    "a conflict with a value where there is none": [put(b"b", 1, 2, only_if=6, told=7)],
    "a conflict with absence where there is a value": [put(b"a", 1, 2), put(b"b", 3, 4, only_if=6, told=ABSENT)],
    "a refused set is seen": [put(b"a", 1, 2), put(b"b", 3, 4, only_if=9, told=7), get(b"b", 5, 6)],
    "a stale version read with the value that is new": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), get(b"b", 7, 8, told=7)),
    ],
    "a version lower than one before": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), get(b"b", 7, 8, told=6)),
    ],
    "a version lower than one before a deletion": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), delete(b"a", 5, 6), put(b"b", 7, 8), get(b"b", 9, 10, told=7)),
    ],
    "no version left for a write in between": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), put(b"c", 7, 8), get(b"c", 9, 10, told=8)),
    ],
    "two versions of one value": [put(b"a", 1, 2), get(b"a", 3, 4, told=7), get(b"a", 5, 6, told=8)],
    "a value of version 0": [put(b"a", 1, 2), get(b"a", 3, 4, told=ABSENT)],
    "absence with a version": [get(None, 1, 2, told=3)],
    "an uncertain set on a condition happens though that does not hold": [
        *(put(b"a", 1, 2), get(b"a", 3, 4, told=7), put(b"b", 5, 6), put(b"c", 7, only_if=7), get(b"c", 8, 9)),
    ],
}


@pytest.mark.parametrize("operations", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_a_linearizable_history_is_accepted(operations: list[Operation]) -> None:
    check_key(operations)


@pytest.mark.parametrize("operations", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_a_history_that_no_order_explains_is_refused(operations: list[Operation]) -> None:
    with pytest.raises(NotLinearizable):
        check_key(operations)


def explains(order: tuple[Operation, ...]) -> bool:
    """Whether versions can be given to the writes of `order` such that all calls returned what they did."""
    value, writes = None, 0
    versions: dict[int, int] = {0: 0}
    """Of the writes, by their number, as far as they were told."""
    for place, operation in enumerate(order):
        if any(later.returned < operation.started for later in order[place:]):
            return False
        is_certain = operation.returned != NEVER
        if operation.call is not Call.SET and is_certain and operation.value != value:
            return False
        for told in (operation.if_version if operation.version is None else operation.version, operation.version):
            if told is not None and (told if value is None else versions.setdefault(writes, told) != told):
                return False
        if operation.call is Call.SET and operation.version is None:
            value, writes = operation.value, writes + 1
        elif operation.call is Call.DELETE and value is not None:
            value, writes = None, writes + 1
        elif operation.call is Call.SET and operation.version == operation.if_version:
            return False
    known = sorted(versions.items())
    return all(after - before >= n - m for (m, before), (n, after) in itertools.pairwise(known))


def try_all_orders(operations: list[Operation]) -> bool:
    certain = [o for o in operations if o.returned != NEVER]
    uncertain = [o for o in operations if o.returned == NEVER]
    return any(
        explains(order)
        for count in range(len(uncertain) + 1)
        for some in itertools.combinations(uncertain, count)
        for order in itertools.permutations([*certain, *some])
    )


def random_history(rng: random.Random) -> list[Operation]:
    """Five overlapping calls that return what an atomic key would say, or in part what may or may not make sense."""
    moments = rng.sample(range(30), 10)
    spans = [sorted(moments[2 * n : 2 * n + 2]) for n in range(5)]
    calls = [Operation(rng.choice(list(Call)), started, returned) for started, returned in spans]
    value, version = None, ABSENT
    for number, operation in enumerate(sorted(calls, key=lambda o: rng.uniform(o.started, o.returned)), 1):
        happens = True
        if rng.random() < 0.2:
            operation.returned = NEVER
            happens = rng.random() < 0.5
        operation.value = b"%d" % number if operation.call is Call.SET else value
        match operation.call:
            case Call.GET if rng.random() < 0.5:
                operation.version = version
            case Call.SET if rng.random() < 0.5:
                operation.if_version = rng.choice((version, rng.randrange(8)))
                if operation.if_version != version:
                    happens = False
                    if operation.returned != NEVER:
                        operation.version = version
            case _:
                pass
        if happens and operation.call is Call.SET:
            value, version = operation.value, number + rng.randrange(2)
        elif happens and operation.call is Call.DELETE:
            value, version = None, ABSENT
    if rng.random() < 0.6:
        spoilt = rng.choice(calls)
        if spoilt.version is not None:
            spoilt.version = rng.randrange(8)
        elif spoilt.if_version is not None:
            spoilt.if_version = rng.randrange(8)
        elif spoilt.call is not Call.SET:
            spoilt.value = rng.choice([None, *(b"%d" % n for n in range(1, 6))])
    return calls


def test_the_checker_agrees_with_trying_all_orders() -> None:
    rng = random.Random(4)
    verdicts = []
    for _ in range(1_500):
        operations = random_history(rng)
        try:
            check_key(operations)
        except NotLinearizable:
            verdicts.append(False)
        else:
            verdicts.append(True)
        assert verdicts[-1] == try_all_orders(operations), [str(o) for o in operations]
    assert 300 < sum(verdicts) < 1_200


def test_each_key_is_checked_by_itself_and_the_error_names_it() -> None:
    recorder = Recorder()
    recorder.finish(recorder.start(b"good", Call.SET, b"a"))
    recorder.finish(recorder.start(b"good", Call.GET), b"a")
    check(recorder)
    recorder.finish(recorder.start(b"bad", Call.GET), b"a")
    with pytest.raises(NotLinearizable, match=r"key b'bad': nothing explains get b'a'"):
        check(recorder)


def test_a_withdrawn_call_has_not_happened() -> None:
    recorder = Recorder()
    operation = recorder.start(b"k", Call.SET, b"a")
    recorder.finish(recorder.start(b"k", Call.GET), b"a")
    recorder.withdraw(b"k", operation)
    with pytest.raises(NotLinearizable):
        check(recorder)


def test_a_long_history_with_many_uncertain_calls_is_decided_soon() -> None:
    """Memory of configurations makes the cost linear here; without it, it doubles with each uncertain call."""
    recorder = Recorder()
    for number in range(2_000):
        value = b"%d" % number
        recorder.finish(recorder.start(b"k", Call.SET, value))
        recorder.finish(recorder.start(b"k", Call.GET), value)
        if number % 50 == 0:
            recorder.start(b"k", Call.SET, b"lost %d" % number)
            recorder.start(b"k", Call.DELETE)
    check(recorder)


def test_a_search_that_grows_too_large_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_CONFIGURATIONS", 1_000)
    operations = [put(b"%d" % n, n, 1_000 + n) for n in range(20)]
    operations.append(get(b"never written", 2_000, 2_001))
    with pytest.raises(Undecided):
        check_key(operations)
