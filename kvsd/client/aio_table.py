"""A table as the asyncio client sees it.

Owns: the calls on one table as coroutines. The meaning of each is `calls`', how it is carried out is the client's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from kvsd.client import calls, numbers
from kvsd.client.batch import Batch
from kvsd.client.calls import HERE, Call, Place
from kvsd.client.numbers import ANY_VERSION, Unconditional
from kvsd.client.ranges import Range, range_of
from kvsd.types import Duration, Entry, Key, KeyLike, Value, ValueLike

R = TypeVar("R")


class Table:
    """One table's keys and values.

    Keys and values are bytes; `str` is encoded as UTF-8. What every call raises stands at the client. A call with a
    condition that does not hold raises Conflict, whose `version` is what the key has, 0 none.
    """

    def __init__(self, place: Place = HERE) -> None:
        self._place = place

    @abstractmethod
    async def run(self, call: Call[R]) -> R:
        """Carry `call` out."""

    async def get(self, key: KeyLike) -> bytes | None:
        """The value of `key`, None where it is absent."""
        return await self.run(calls.get(key, self._place))

    async def set(
        self,
        key: KeyLike,
        value: ValueLike,
        *,
        ttl: Duration | None = None,
        if_version: int | Unconditional = ANY_VERSION,
        if_absent: bool = False,
        versioned: bool = False,
    ) -> int | None:
        """Store `value` under `key`. Under the server's default settings it is on disk when this returns.

        With `ttl`, seconds or a timedelta, the key is gone after so long; without, an earlier expiry is taken away.

        With `versioned`, and with `ttl`, `if_version` or `if_absent`, the result is the version that was made, to go
        on from: `set(key, value, if_version=version)`. Otherwise it is None, since a set without them is the message
        that every server knows, which takes half of the processor time and whose answer has no room for a version.
        None is also what a server says that is too old to tell. As an `if_version`, None is a TypeError.
        """
        call = calls.set_(
            key,
            value,
            ttl=ttl,
            if_version=if_version,
            if_absent=if_absent,
            versioned=versioned,
            place=self._place,
        )
        return await self.run(call)

    async def delete(self, key: KeyLike, *, if_version: int | Unconditional = ANY_VERSION) -> bytes | None:
        """Remove `key`; the value that it had, None where it was absent."""
        return await self.run(calls.delete(key, if_version=if_version, place=self._place))

    async def entry(self, key: KeyLike) -> Entry | None:
        """The value of `key` with its version, time and expiry; None where it is absent."""
        return await self.run(calls.entry(key, self._place))

    async def ttl(self, key: KeyLike) -> float | None:
        """Seconds that `key` has left by the server's clock; None where it has no expiry, or is absent."""
        found = await self.entry(key)
        if found is None or found.expires_at is None:
            return None
        return calls.left_seconds(found.expires_at, await self.run(calls.clock()))

    async def expire(self, key: KeyLike, ttl: Duration) -> bool:
        """Have `key` gone after `ttl`, seconds or a timedelta; False where it is absent."""
        return await self.run(calls.expire(key, ttl, self._place))

    async def persist(self, key: KeyLike) -> bool:
        """Have `key` not expire; False where it had no expiry, or is absent."""
        return await self.run(calls.persist(key, self._place))

    async def incr(self, key: KeyLike, amount: int = 1) -> int:
        """Add `amount` to the decimal integer of 64 bits under `key`, 0 where it is absent; the sum.

        Raises InvalidValue where the value is no such integer, or the sum would be none.
        """
        return await self.run(calls.increment(key, amount, self._place))

    async def decr(self, key: KeyLike, amount: int = 1) -> int:
        """Subtract, as `incr` adds."""
        return await self.run(calls.decrement(key, amount, self._place))

    async def append(self, key: KeyLike, suffix: ValueLike) -> int:
        """Put `suffix` behind the value of `key`, or store it; the new length in bytes."""
        return await self.run(calls.append(key, suffix, self._place))

    async def getset(self, key: KeyLike, value: ValueLike) -> bytes | None:
        """Store `value` under `key`; the value that it had, None where it was absent."""
        return await self.run(calls.getset(key, value, self._place))

    async def getdel(self, key: KeyLike) -> bytes | None:
        """`delete` under its other name."""
        return await self.delete(key)

    async def exists(self, key: KeyLike) -> bool:
        """Whether `key` has a value."""
        return await self.run(calls.exists(key, self._place))

    async def count(self, prefix: KeyLike = b"", *, start: KeyLike | None = None, end: KeyLike | None = None) -> int:
        """How many keys begin with `prefix`, from `start` (included) to `end` (excluded)."""
        return await self.run(calls.count(range_of(prefix, start, end), self._place))

    async def scan(
        self,
        prefix: KeyLike = b"",
        *,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[tuple[Key, Value]]:
        """Keys and values in the order of the keys, page by page as they are taken, at most `limit`.

        Each page is what the table held at one moment. A key that is there all the while is found once; one that comes
        or goes meanwhile may be found or not. To go on later, start behind the last key: `start=key + b"\\0"`.
        """
        async for key, value in self._pages(range_of(prefix, start, end), limit, values=True):
            if value is not None:
                yield key, value

    async def keys(
        self,
        prefix: KeyLike = b"",
        *,
        start: KeyLike | None = None,
        end: KeyLike | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Key]:
        """The same without the values."""
        async for key, _ in self._pages(range_of(prefix, start, end), limit, values=False):
            yield key

    async def _pages(self, keys: Range, limit: int | None, *, values: bool) -> AsyncIterator[tuple[Key, Value | None]]:
        limit = numbers.limit(limit)
        rest: Key | None = keys.start
        while rest is not None and (limit is None or limit > 0):
            size = calls.PAGE_KEYS if limit is None else min(limit, calls.PAGE_KEYS)
            page = await self.run(calls.page(Range(rest, keys.end), size, values=values, place=self._place))
            for item in page.items:
                yield item
            limit = None if limit is None else limit - len(page.items)
            rest = page.next

    async def get_many(self, keys: Iterable[KeyLike]) -> list[bytes | None]:
        """The values of `keys` in their order, None for those that are absent; no snapshot, but pipelined."""
        return [value async for value in self.run_all(calls.get(key, self._place) for key in keys)]

    async def set_many(self, items: Mapping[str, ValueLike] | Mapping[bytes, ValueLike]) -> None:
        """Store all of `items`, pipelined; each for itself, so an error may leave some of them stored."""
        batch = (calls.set_(key, value, place=self._place) for key, value in items.items())
        async for _ in self.run_all(batch):
            pass

    @abstractmethod
    def run_all(self, batch: Iterable[Call[R]]) -> AsyncIterator[R]:
        """Carry all of `batch` out, pipelined, a part at a time; each part has the time of a call."""

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[Batch]:
        """An atomic batch, sent at the end of the block; nothing is sent where the block raises.

        Raises Conflict where one of its conditions does not hold: nothing has happened then.
        """
        batch = Batch()
        yield batch
        await self.run(calls.batch(batch.steps, self._place))
