"""Password hashes, and the verification of many credentials at once."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsd.config import User
from kvsd.errors import AuthenticationError, Busy, ConfigError
from kvsd.server.authentication import (
    MAX_MEMORY_KIB,
    Authenticator,
    PasswordHash,
    Principal,
    hash_password,
    insecure_users,
)

# Of "secret", made by cryptography's own derive_phc_encoded.
OF_SECRET = "$argon2id$v=19$m=19456,t=2,p=1$i+AaWr42PjHCgejSUnqBuA$GVGH87ySxg5LYuy7fr14WMFPGwxHTBSV39XUyhYA//g"

# Of "correct horse battery staple", from the documentation of argon2-cffi: four lanes.
OF_STAPLE = "$argon2id$v=19$m=65536,t=3,p=4$MIIRqgvgQbgj220jfp0MPA$YfwJSVjtjSU0zzV/P3S9nnQ/USre2wvJMjfCIjrTQbg"


def cheap_hash(password: str, *, lanes: int = 1, iterations: int = 1) -> str:
    """The least that Argon2 allows: these tests are not about the cost."""
    blank = PasswordHash(8 * lanes, iterations, lanes)
    digest = blank._compute(password.encode("utf-8", "surrogatepass"))
    return str(PasswordHash(8 * lanes, iterations, lanes, blank.salt, digest))


class Hashing:
    """Counts the hashes that are computed, and can hold them up."""

    def __init__(self, compute: Callable[[PasswordHash, bytes], bool]) -> None:
        self.computed: list[PasswordHash] = []
        self.started = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._compute = compute

    def matches(self, stored: PasswordHash, password: bytes) -> bool:
        self.computed.append(stored)
        self.started.release()
        assert self.may_go_on.wait(10)
        return self._compute(stored, password)

    async def wait_started(self) -> None:
        async with asyncio.timeout(5):
            while not self.started.acquire(blocking=False):
                await asyncio.sleep(0)


@pytest.fixture
def hashing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hashing]:
    hashing = Hashing(PasswordHash.matches)

    def matches(stored: PasswordHash, password: bytes) -> bool:
        return hashing.matches(stored, password)

    monkeypatch.setattr(PasswordHash, "matches", matches)
    yield hashing
    hashing.may_go_on.set()


@pytest.fixture
async def authenticator(hashing: Hashing):
    authenticator = Authenticator(
        {"ann": cheap_hash("apple"), "bob": cheap_hash("banana", iterations=2)}, max_waiting=3
    )
    yield authenticator
    hashing.may_go_on.set()
    async with asyncio.timeout(10):
        await authenticator.close()


@pytest.mark.parametrize(("phc", "password"), [(OF_SECRET, b"secret"), (OF_STAPLE, b"correct horse battery staple")])
def test_a_hash_that_another_program_made_verifies(phc: str, password: bytes) -> None:
    stored = PasswordHash.parse(phc)
    assert str(stored) == phc
    assert stored.matches(password)
    assert not stored.matches(password + b"!")


def test_our_hashes_have_the_documented_cost_and_a_salt_of_their_own() -> None:
    first, second = PasswordHash.parse(hash_password("secret")), PasswordHash.parse(hash_password("secret"))
    assert (first.memory_kib, first.iterations, first.lanes) == (19_456, 2, 1)
    assert (len(first.salt), len(first.digest)) == (16, 32)
    assert first.salt != second.salt


@pytest.mark.parametrize(
    "phc",
    [
        "",
        "secret",
        OF_SECRET.replace("argon2id", "argon2i"),
        OF_SECRET.replace("v=19", "v=16"),
        OF_SECRET.replace("m=19456,t=2", "t=2,m=19456"),
        OF_SECRET.replace("p=1", "p=0"),
        OF_SECRET.replace("t=2", "t=0"),
        OF_SECRET.replace("m=19456", "m=7"),
        OF_SECRET.replace("m=19456", "m=-1"),
        OF_SECRET.replace("m=19456", f"m={MAX_MEMORY_KIB + 1}"),
        OF_SECRET.replace("t=2", "t=99999999"),
        OF_SECRET.replace("p=1", "p=17"),
        OF_SECRET.replace("uA$", "u$"),
        OF_SECRET.replace("$i+AaWr42PjHCgejSUnqBuA$", "$aaaa$"),
        OF_SECRET + "=",
        OF_SECRET + "\n",
        OF_SECRET[:-30],
    ],
)
def test_a_malformed_or_absurdly_costly_hash_is_refused_without_quoting_it(phc: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Authenticator({"ann": phc})
    assert str(caught.value).startswith("user 'ann': ")
    assert "kvsd passwd" in str(caught.value)
    assert not phc or phc not in str(caught.value)


def test_a_hash_at_the_limit_of_memory_is_accepted() -> None:
    PasswordHash.parse(OF_SECRET.replace("m=19456,t=2", f"m={MAX_MEMORY_KIB},t=4"))
    with pytest.raises(ConfigError, match="costs too much"):
        PasswordHash.parse(OF_SECRET.replace("m=19456,t=2", f"m={MAX_MEMORY_KIB},t=5"))


@pytest.mark.parametrize("password", ["", "line\nbreak", "line\rbreak"])
def test_a_password_that_no_client_could_send_is_not_hashed(password: str) -> None:
    with pytest.raises(ConfigError, match="password must not"):
        hash_password(password)


@settings(max_examples=50)
@given(st.text(st.characters(), min_size=1))
def test_any_text_can_be_a_password_even_lone_surrogates_and_nul(password: str) -> None:
    digest = Authenticator({"ann": OF_SECRET})._digest(password, password)
    assert len(digest) == 32


async def test_surrogates_and_nul_in_credentials_are_verified_like_other_characters() -> None:
    passwords = {"nul": "a\0b", "escaped": "caf\udce9", "lone": "\ud800", "sharp\udcff": "ß"}
    authenticator = Authenticator({name: hash_password(text) for name, text in passwords.items()})
    for name, text in passwords.items():
        assert await authenticator.verify(name, text) == Principal(name)
        with pytest.raises(AuthenticationError):
            await authenticator.verify(name, text[:1] + "x")
    await authenticator.close()


def test_bytes_that_are_no_utf8_hash_as_the_bytes_they_were() -> None:
    assert PasswordHash.parse(hash_password("caf\udce9")).matches(b"caf\xe9")


@pytest.mark.parametrize("username", ["", "a\nb", "a\rb"])
def test_a_user_that_could_never_log_in_is_refused(username: str) -> None:
    with pytest.raises(ConfigError, match="username must not be empty"):
        Authenticator({username: OF_SECRET})


@pytest.mark.parametrize(
    ("users", "problem"),
    [
        (
            [User(username="ann", password_hash=OF_SECRET), User(username="ann", password="other")],
            "user 'ann': configured twice",
        ),
        ([User(username="ann", password="")], "user 'ann': a password must not be empty"),
        ([User(username="ann", password_hash="secret")], "user 'ann': not an Argon2id hash"),
    ],
)
def test_a_user_with_an_unclear_password_is_refused(users: list[User], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Authenticator.from_users(users)
    assert "secret" not in str(caught.value)


async def test_configured_users_log_in_by_hash_and_by_plain_password() -> None:
    authenticator = Authenticator.from_users(
        [User(username="ann", password_hash=OF_SECRET), User(username="bob", password="banana")]
    )
    assert await authenticator.verify("ann", "secret") == Principal("ann")
    assert await authenticator.verify("bob", "banana") == Principal("bob")
    await authenticator.close()


@pytest.mark.parametrize(
    ("username", "password"), [("ann", "Apple"), ("ann", ""), ("", ""), ("", "apple"), ("eve", "apple")]
)
async def test_wrong_credentials_are_refused_and_not_remembered(
    authenticator: Authenticator, username: str, password: str
) -> None:
    for _ in range(2):
        with pytest.raises(AuthenticationError, match=r"^wrong username or password$"):
            await authenticator.verify(username, password)
    assert authenticator.remembered(username, password) is None


async def test_the_second_login_costs_no_hash(authenticator: Authenticator, hashing: Hashing) -> None:
    assert authenticator.remembered("ann", "apple") is None
    await authenticator.verify("ann", "apple")
    assert authenticator.remembered("ann", "apple") == Principal("ann")
    assert await authenticator.verify("ann", "apple") == Principal("ann")
    assert len(hashing.computed) == 1


async def test_only_the_very_credentials_are_remembered(authenticator: Authenticator) -> None:
    await authenticator.verify("ann", "apple")
    for username, password in [("ann", "appl"), ("anna", "pple"), ("bob", "apple"), ("", "annapple")]:
        assert authenticator.remembered(username, password) is None


async def test_what_is_remembered_does_not_grow_with_attempts(authenticator: Authenticator) -> None:
    await authenticator.verify("ann", "apple")
    for attempt in range(20):
        with pytest.raises(AuthenticationError):
            await authenticator.verify(f"eve{attempt}", "x")
    assert len(authenticator._verified) == 1
    assert not authenticator._in_progress


async def test_an_unknown_user_costs_as_much_as_a_known_one(authenticator: Authenticator, hashing: Hashing) -> None:
    costs_of_users = {(8, 1, 1), (8, 2, 1)}
    costs_seen = set()
    for number in range(40):
        hashing.computed.clear()
        name = f"nobody{number}"
        for attempt in ("x", "y"):
            with pytest.raises(AuthenticationError):
                await authenticator.verify(name, attempt)
        first, second = ((h.memory_kib, h.iterations, h.lanes) for h in hashing.computed)
        assert first == second, "the cost of a name changes"
        costs_seen.add(first)
    assert costs_seen == costs_of_users


async def test_without_users_a_login_still_costs_a_hash(hashing: Hashing) -> None:
    authenticator = Authenticator({})
    with pytest.raises(AuthenticationError):
        await authenticator.verify("ann", "apple")
    assert [stored.memory_kib for stored in hashing.computed] == [19_456]
    await authenticator.close()


async def test_a_thousand_equal_logins_at_once_cost_one_hash(authenticator: Authenticator, hashing: Hashing) -> None:
    async with asyncio.timeout(10):
        principals = await asyncio.gather(*(authenticator.verify("ann", "apple") for _ in range(1000)))
    assert principals == [Principal("ann")] * 1000
    assert len(hashing.computed) == 1


async def test_a_thousand_equal_failures_at_once_cost_one_hash(authenticator: Authenticator, hashing: Hashing) -> None:
    attempts = (authenticator.verify("ann", "pear") for _ in range(1000))
    async with asyncio.timeout(10):
        results = await asyncio.gather(*attempts, return_exceptions=True)
    assert all(isinstance(result, AuthenticationError) for result in results)
    assert len(hashing.computed) == 1


async def test_past_the_queue_logins_are_busy_and_equal_or_remembered_ones_are_not(
    authenticator: Authenticator, hashing: Hashing
) -> None:
    await authenticator.verify("bob", "banana")
    hashing.may_go_on.clear()
    waiting = [asyncio.create_task(authenticator.verify("ann", f"guess{n}")) for n in range(2 + 3)]
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await authenticator.verify("ann", "apple")
    assert await authenticator.verify("bob", "banana") == Principal("bob")
    same = asyncio.create_task(authenticator.verify("ann", "guess0"))
    await asyncio.sleep(0)
    hashing.may_go_on.set()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*waiting, same, return_exceptions=True)
    assert all(isinstance(result, AuthenticationError) for result in results)
    assert await authenticator.verify("ann", "apple") == Principal("ann")


async def test_a_cancelled_waiter_takes_nobody_with_it(authenticator: Authenticator, hashing: Hashing) -> None:
    hashing.may_go_on.clear()
    first = asyncio.create_task(authenticator.verify("ann", "apple"))
    second = asyncio.create_task(authenticator.verify("ann", "apple"))
    await hashing.wait_started()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    hashing.may_go_on.set()
    async with asyncio.timeout(10):
        assert await second == Principal("ann")
    assert len(hashing.computed) == 1


async def test_a_login_whose_only_waiter_left_is_still_remembered(
    authenticator: Authenticator, hashing: Hashing
) -> None:
    hashing.may_go_on.clear()
    waiter = asyncio.create_task(authenticator.verify("ann", "apple"))
    await hashing.wait_started()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    hashing.may_go_on.set()
    async with asyncio.timeout(10):
        while authenticator._in_progress:
            await asyncio.sleep(0)
    assert authenticator.remembered("ann", "apple") == Principal("ann")


async def test_a_failing_computation_reaches_its_waiters_and_is_not_kept(
    authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PasswordHash, "matches", lambda *_: (_ for _ in ()).throw(MemoryError()))
        results = await asyncio.gather(
            *(authenticator.verify("ann", "apple") for _ in range(2)), return_exceptions=True
        )
    assert [type(result) for result in results] == [MemoryError] * 2
    assert await authenticator.verify("ann", "apple") == Principal("ann")


async def test_close_finishes_what_runs_and_answers_what_waits_with_busy(hashing: Hashing) -> None:
    authenticator = Authenticator({"ann": cheap_hash("apple")}, workers=1)
    hashing.may_go_on.clear()
    running = asyncio.create_task(authenticator.verify("ann", "apple"))
    waiting = asyncio.create_task(authenticator.verify("ann", "pear"))
    await hashing.wait_started()
    closing = asyncio.create_task(authenticator.close())
    await asyncio.sleep(0)
    hashing.may_go_on.set()
    async with asyncio.timeout(10):
        await closing
        assert await running == Principal("ann")
        with pytest.raises(Busy):
            await waiting
        with pytest.raises(Busy):
            await authenticator.verify("ann", "plum")
        await authenticator.close()
    assert len(hashing.computed) == 1


async def test_hashes_with_several_lanes_do_not_deadlock_each_other() -> None:
    stored = PasswordHash.parse(OF_SECRET.replace("p=1", "p=4"))
    authenticator = Authenticator({"ann": str(stored)}, workers=4)
    async with asyncio.timeout(30):
        await asyncio.gather(*(authenticator.verify("ann", f"guess{n}") for n in range(6)), return_exceptions=True)
        await authenticator.close()


async def test_no_password_or_hash_shows_in_a_repr_or_a_traceback(authenticator: Authenticator) -> None:
    stored = PasswordHash.parse(OF_SECRET)
    assert "i+Aa" not in repr(stored)
    assert repr(stored.salt) not in repr(stored)
    assert repr(stored.digest) not in repr(stored)
    wrong = "pear" * 2  # a traceback quotes this source, so the word itself must not stand here
    with pytest.raises(AuthenticationError) as caught:
        await authenticator.verify("ann", wrong)
    assert wrong not in "".join(traceback.format_exception(caught.value))
    assert "apple" not in repr(vars(authenticator))


def test_users_that_must_stay_local_are_found() -> None:
    users = [
        User(username="hashed", password_hash=hash_password("a good one")),
        User(username="plain", password="a good one"),
        User(username="sample", password_hash=OF_SECRET),
    ]
    reasons = insecure_users(users)
    assert list(reasons) == ["plain", "sample"]
    assert "plain text" in reasons["plain"]
    assert "sample user" in reasons["sample"]


def test_a_malformed_hash_is_no_secure_user() -> None:
    with pytest.raises(ConfigError, match="user 'ann'"):
        insecure_users([User(username="ann", password_hash="garbage")])
