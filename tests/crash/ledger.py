"""What clients of a server have been told, key by key, to be compared with what they find later.

Owns: the last acknowledged value of each key, and those that unanswered calls may have put in its place. Each key is
written by one task at a time.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from kvsd.client.aio import Client
from kvsd.errors import ConnectionLost, KvsdError, ReadOnly, TableUnavailable, Timeout


@dataclass
class Ledger:
    acknowledged: dict[bytes, bytes | None] = field(default_factory=dict)
    """None: deleted."""
    uncertain: defaultdict[bytes, set[bytes | None]] = field(default_factory=lambda: defaultdict(set))
    refusals_are_final: bool = False
    """A table that refuses writes has not begun them, as with a full disk; a failed disk may have a part of them."""

    async def set(self, client: Client, key: bytes, value: bytes) -> None:
        try:
            await client.set(key, value)
        except KvsdError as error:
            self._failed(key, value, error)
            raise
        self._succeeded(key, value)

    async def delete(self, client: Client, key: bytes) -> None:
        try:
            found = await client.delete(key)
        except KvsdError as error:
            self._failed(key, None, error)
            raise
        assert found == self.acknowledged.get(key)
        self._succeeded(key, None)

    def _succeeded(self, key: bytes, value: bytes | None) -> None:
        self.acknowledged[key] = value
        self.uncertain.pop(key, None)

    def _failed(self, key: bytes, value: bytes | None, error: KvsdError) -> None:
        match error:
            case ConnectionLost() | Timeout():
                may_be_applied = error.may_be_applied
            case ReadOnly() | TableUnavailable():
                may_be_applied = not self.refusals_are_final
            case _:
                may_be_applied = False
        if may_be_applied:
            self.uncertain[key].add(value)

    async def verify(self, client: Client, *, restarted: bool = True) -> int:
        """Compare every key that was ever written; how many have a value.

        Only a restart may bring uncertain writes to light, and settles what became of them.
        """
        for key in sorted(self.acknowledged.keys() | self.uncertain.keys()):
            found = await client.get(key)
            if not restarted or found not in self.uncertain[key]:
                assert found == self.acknowledged.get(key), f"{key!r}: an acknowledged write is lost"
            if restarted:
                self.acknowledged[key] = found
        if restarted:
            self.uncertain.clear()
        return sum(value is not None for value in self.acknowledged.values())
