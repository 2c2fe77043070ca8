"""The checker itself: what it must accept, and what it must not let pass."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.crash import history
from tests.crash.history import NEVER, Call, NotLinearizable, Operation, Recorder, Undecided, check, check_key


def put(value: bytes, started: int, returned: int = NEVER) -> Operation:
    return Operation(Call.SET, started, returned, value)


def get(value: bytes | None, started: int, returned: int = NEVER) -> Operation:
    return Operation(Call.GET, started, returned, value)


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
}


@pytest.mark.parametrize("operations", LINEARIZABLE.values(), ids=LINEARIZABLE)
def test_a_linearizable_history_is_accepted(operations: list[Operation]) -> None:
    check_key(operations)


@pytest.mark.parametrize("operations", NOT_LINEARIZABLE.values(), ids=NOT_LINEARIZABLE)
def test_a_history_that_no_order_explains_is_refused(operations: list[Operation]) -> None:
    with pytest.raises(NotLinearizable):
        check_key(operations)


def explains(order: tuple[Operation, ...]) -> bool:
    value = None
    for place, operation in enumerate(order):
        if any(later.returned < operation.started for later in order[place:]):
            return False
        match operation.call:
            case Call.SET:
                value = operation.value
            case _ if operation.returned != NEVER and operation.value != value:
                return False
            case Call.DELETE:
                value = None
    return True


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
    """Five overlapping calls that return what may or may not make sense."""
    moments = rng.sample(range(100), 10)
    operations = []
    for number in range(5):
        started, returned = sorted(moments[2 * number : 2 * number + 2])
        call = rng.choice(list(Call))
        value = b"%d" % number if call is Call.SET else rng.choice([None, *(b"%d" % n for n in range(5))])
        operations.append(Operation(call, started, NEVER if rng.random() < 0.3 else returned, value))
    return operations


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
    assert 100 < sum(verdicts) < 1_400


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
