"""Which errors are worth another try, and how long the pauses get."""

from __future__ import annotations

import pytest

from kvsd.client import retries
from kvsd.client.retries import Retries
from kvsd.errors import AuthenticationError, Busy, ConnectionLost, InvalidKey, KvsdError, Loading, Timeout

SENT = ConnectionLost("gone", may_be_applied=True)
UNSENT = ConnectionLost("gone")


@pytest.mark.parametrize(
    ("error", "idempotent", "connected", "tries"),
    [
        (SENT, True, True, 2),
        (SENT, False, True, 0),
        (UNSENT, False, True, 2),
        (UNSENT, True, False, 0),
        (Timeout("late"), True, True, 0),
        (AuthenticationError("no"), True, True, 0),
        (InvalidKey("long"), True, True, 0),
    ],
)
def test_a_lost_connection_is_worth_two_tries_where_nothing_can_be_done_twice(
    error: KvsdError, idempotent: bool, connected: bool, tries: int
) -> None:
    policy = Retries(idempotent=idempotent)
    pauses = [policy.pause_after(error, connected=connected) for _ in range(5)]
    assert [pause is not None for pause in pauses] == [n < tries for n in range(5)]


@pytest.mark.parametrize("error", [Busy("busy"), Loading("loading")])
def test_pauses_double_up_to_a_second_and_vary(error: KvsdError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.05)
    policy = Retries(idempotent=False)
    for longest in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
        pause = policy.pause_after(error, connected=True)
        assert pause is not None
        assert longest / 2 <= pause <= longest
    assert len({Retries(idempotent=False).pause_after(error, connected=True) for _ in range(50)}) > 1
