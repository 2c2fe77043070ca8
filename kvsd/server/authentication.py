"""Who may log in: Argon2id password hashes, and the Authenticator that verifies credentials against them.

Owns: the PHC form of a hash and its limits, the small thread pool in which hashes are computed, and the
memory of what was verified. Must not know the wire, the session, or where the users were configured.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from kvsd.config import SAMPLE_PASSWORD, User
from kvsd.errors import AuthenticationError, Busy, ConfigError
from kvsd.table.threads import Threads
from kvsd.types import to_bytes

MAX_MEMORY_KIB = 1024 * 1024
"""Most memory that a stored hash may ask for: 1 GiB."""

MAX_WORK_KIB = 4 * MAX_MEMORY_KIB
"""Most memory times iterations that a stored hash may ask for, some seconds of one core."""

MAX_LANES = 16

_PHC = re.compile(
    r"\$argon2id\$v=19\$m=([0-9]{1,8}),t=([0-9]{1,8}),p=([0-9]{1,2})"
    r"\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})"
)

# Two computations at once that have several lanes each wait for ever in OpenSSL (seen in cryptography 50).
_several_lanes = threading.Lock()


@dataclass(frozen=True, slots=True)
class PasswordHash:
    """An Argon2id hash (version 19) with its cost; the defaults are the cost of the hashes that we make."""

    memory_kib: int = 19_456
    iterations: int = 2
    lanes: int = 1
    salt: bytes = field(repr=False, default_factory=partial(secrets.token_bytes, 16))
    digest: bytes = field(repr=False, default_factory=partial(secrets.token_bytes, 32))

    @classmethod
    def of(cls, password: str) -> PasswordHash:
        """A fresh hash of `password`, with a salt of its own. Raises ConfigError as `hash_password` does."""
        if not password or "\r" in password or "\n" in password:
            raise ConfigError("a password must not be empty and must not hold line breaks: clients could not send it")
        blank = cls()
        return replace(blank, digest=blank._compute(_to_bytes(password)))

    @classmethod
    def parse(cls, phc: str) -> PasswordHash:
        """The hash that a PHC string spells; ConfigError where it is none, or costs more than the limits."""
        match = _PHC.fullmatch(phc)
        if match is None:
            raise ConfigError(
                "not an Argon2id hash of the form $argon2id$v=19$m=…,t=…,p=…$salt$hash; make one with `kvsd passwd`"
            )
        memory_kib, iterations, lanes = (int(number) for number in match.group(1, 2, 3))
        if memory_kib > MAX_MEMORY_KIB or memory_kib * iterations > MAX_WORK_KIB or lanes > MAX_LANES:
            raise ConfigError(
                f"an Argon2id hash with m={memory_kib},t={iterations},p={lanes} costs too much to verify: "
                f"m may be {MAX_MEMORY_KIB}, m times t {MAX_WORK_KIB}, p {MAX_LANES}; "
                "make another with `kvsd passwd`"
            )
        try:
            parsed = cls(memory_kib, iterations, lanes, *map(_decode_base64, match.group(4, 5)))
            parsed._argon2id()
        except ValueError as error:
            raise ConfigError(f"not a valid Argon2id hash ({error}); make one with `kvsd passwd`") from None
        return parsed

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).rstrip(b"=").decode("ascii") for part in (self.salt, self.digest))
        return f"$argon2id$v=19$m={self.memory_kib},t={self.iterations},p={self.lanes}${salt}${digest}"

    def matches(self, password: bytes) -> bool:
        """Whether this is the hash of `password`; blocks for the whole cost, without the GIL."""
        return hmac.compare_digest(self._compute(password), self.digest)

    def decoy(self) -> PasswordHash:
        """A hash of the same cost that no password matches."""
        return replace(self, salt=secrets.token_bytes(len(self.salt)), digest=secrets.token_bytes(len(self.digest)))

    def _compute(self, password: bytes) -> bytes:
        with contextlib.nullcontext() if self.lanes == 1 else _several_lanes:
            return self._argon2id().derive(password)

    def _argon2id(self) -> Argon2id:
        try:
            return Argon2id(
                salt=self.salt,
                length=len(self.digest),
                iterations=self.iterations,
                lanes=self.lanes,
                memory_cost=self.memory_kib,
            )
        except UnsupportedAlgorithm:
            raise ConfigError(
                "this build of the cryptography package has no Argon2id: its OpenSSL is older than 3.2; "
                "install the package from a wheel with `pip install --force-reinstall cryptography`"
            ) from None


def hash_password(password: str) -> str:
    """A PHC string for `users: password_hash`, with a fresh salt; takes about 30 ms.

    Raises ConfigError for a password that no client could send: an empty one, or one with CR or LF.
    """
    return str(PasswordHash.of(password))


@dataclass(frozen=True, slots=True)
class Principal:
    """Who authenticated."""

    username: str


class Authenticator:
    """Verifies credentials in threads of its own, and remembers the good ones.

    Usernames and passwords are any `str`. NUL is a character like others; an empty password or username is
    verified like any other, and no configured user has one. Everything but the hashing belongs to one loop.
    """

    def __init__(self, users: Mapping[str, str], *, workers: int = 2, max_waiting: int = 64) -> None:
        """`users` maps usernames to PHC hashes; ConfigError names the first user that could never log in.

        At most `workers` verifications run and `max_waiting` wait for a thread.
        """
        for username in users:
            if not username or "\r" in username or "\n" in username:
                raise ConfigError(
                    f"user {username!r}: a username must not be empty and must not hold line breaks: "
                    "clients could not send it"
                )
        self._users = {username: _parse(username, phc) for username, phc in users.items()}
        self._decoys = [stored.decoy() for stored in self._users.values()] or [PasswordHash()]
        self._key = secrets.token_bytes(32)
        self._nobody = secrets.token_bytes(32)
        # One password is right for a user, so one digest a user is all there is to remember.
        self._verified: dict[str, bytes] = {}
        self._in_progress: dict[bytes, asyncio.Future[bool]] = {}
        self._max_in_progress = workers + max_waiting
        self._pool = Threads(workers, "kvsd-password")
        self._closed = False

    @classmethod
    def from_users(cls, users: Iterable[User], *, workers: int = 2, max_waiting: int = 64) -> Authenticator:
        """As the constructor, for users as configured; hashes each plain-text password (about 30 ms a user).

        Raises ConfigError for a user twice, for a password that no client could send, or as the constructor.
        """
        hashes: dict[str, str] = {}
        for user in users:
            if user.username in hashes:
                raise ConfigError(f"user {user.username!r}: configured twice; remove one of the two")
            match user.password_hash, user.password:
                case str() as phc, None:
                    hashes[user.username] = phc
                case None, str() as password:
                    with _naming(user.username):
                        hashes[user.username] = hash_password(password)
        return cls(hashes, workers=workers, max_waiting=max_waiting)

    def remembered(self, username: str, password: str) -> Principal | None:
        """The principal, if exactly these credentials were verified before; takes microseconds."""
        known = self._verified.get(username, self._nobody)
        if hmac.compare_digest(self._digest(username, password), known):
            return Principal(username)
        return None

    async def verify(self, username: str, password: str) -> Principal:
        """The principal that these credentials prove.

        Raises AuthenticationError where they are wrong, after the same work for a user that does not exist,
        and Busy where too many other credentials wait for verification, or after `close`.
        """
        if (principal := self.remembered(username, password)) is not None:
            return principal
        digest = self._digest(username, password)
        verification = self._in_progress.get(digest)
        if verification is None:
            verification = self._start(username, password, digest)
        # Others may wait for the same result: who goes away cancels only the own wait.
        if not await asyncio.shield(verification):
            raise AuthenticationError("wrong username or password")
        return Principal(username)

    async def close(self) -> None:
        """Ends the threads. What is being computed is finished; what waits is answered with Busy."""
        self._closed = True
        if self._in_progress:
            await asyncio.wait(self._in_progress.values())
        self._pool.shutdown()

    def _start(self, username: str, password: str, digest: bytes) -> asyncio.Future[bool]:
        if self._closed or len(self._in_progress) >= self._max_in_progress:
            raise Busy("too many logins wait for verification; try again in a moment")
        stored = self._users.get(username) or self._decoy(username)
        verification = asyncio.get_running_loop().run_in_executor(
            self._pool, self._matches, stored, _to_bytes(password)
        )
        self._in_progress[digest] = verification
        verification.add_done_callback(partial(self._finish, username, digest))
        return verification

    def _matches(self, stored: PasswordHash, password: bytes) -> bool:
        """Runs in a thread of the pool."""
        if self._closed:
            raise Busy("the server is stopping")
        return stored.matches(password)

    def _finish(self, username: str, digest: bytes, verification: asyncio.Future[bool]) -> None:
        del self._in_progress[digest]
        # Asking for the exception also tells asyncio that it was seen, should every waiter have gone.
        if verification.exception() is None and verification.result():
            self._verified[username] = digest

    def _decoy(self, username: str) -> PasswordHash:
        """What an unknown user is verified against: as costly as some user's, and fixed for a name."""
        choice = hashlib.blake2b(_to_bytes(username), digest_size=8, key=self._key).digest()
        return self._decoys[int.from_bytes(choice, "big") % len(self._decoys)]

    def _digest(self, username: str, password: str) -> bytes:
        stored = self._users.get(username)
        digest = hashlib.blake2b(digest_size=32, key=self._key)
        for part in (_to_bytes(username), _to_bytes(password), b"" if stored is None else stored.digest):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


def insecure_users(users: Iterable[User]) -> dict[str, str]:
    """Username → why it must not be reachable from other machines; takes about 30 ms for each hash.

    Raises ConfigError for a malformed hash.
    """
    reasons: dict[str, str] = {}
    for user in users:
        if user.password_hash is None:
            reasons[user.username] = "its password stands in the configuration as plain text"
        elif _parse(user.username, user.password_hash).matches(SAMPLE_PASSWORD.encode()):
            reasons[user.username] = "its password is the published one of the sample user"
    return reasons


def _parse(username: str, phc: str) -> PasswordHash:
    with _naming(username):
        return PasswordHash.parse(phc)


@contextlib.contextmanager
def _naming(username: str) -> Iterator[None]:
    """Lets a ConfigError say which user it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"user {username!r}: {error}") from None


def _to_bytes(text: str) -> bytes:
    """UTF-8; bytes that were escaped as surrogates become themselves, other lone surrogates their code."""
    try:
        return to_bytes(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _decode_base64(text: str) -> bytes:
    """Base64 without padding, as PHC strings have it."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("its salt or hash is no base64") from None
